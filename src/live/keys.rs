//! The names of the keys: the one place that spells them.

use fred::types::Key;

use crate::model::UserId;

/// Key names of one shard; the tag in braces puts them all into one slot of a cluster.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keys<'a> {
    prefix: &'a str,
    shard: u32,
}

impl<'a> Keys<'a> {
    /// Names that begin with `prefix`, of this shard.
    pub(super) const fn new(prefix: &'a str, shard: u32) -> Self {
        Self { prefix, shard }
    }

    /// The presence key of a user: hash, its TTL the time left.
    pub(super) fn user(self, user: UserId) -> Key {
        format!("{}{user}", self.user_prefix()).into()
    }

    /// What stands before the id in [`Self::user`].
    pub(super) fn user_prefix(self) -> String {
        format!("{}:{{{}}}:user:", self.prefix, self.shard)
    }

    /// The sessions that have ended, with the instant until which each is remembered.
    pub(super) fn ended(self) -> Key {
        self.named("ended")
    }

    pub(super) fn live(self) -> Key {
        self.named("live")
    }

    pub(super) fn transitions(self) -> Key {
        self.named("transitions")
    }

    pub(super) fn blocked(self) -> Key {
        self.named("blocked")
    }

    pub(super) fn fence(self) -> Key {
        self.named("fence")
    }

    /// Counts what was told to `blocked`; whoever asks SQL notes it before.
    pub(super) fn moves(self) -> Key {
        self.named("moves")
    }

    /// The keys by which a script knows whether the fence stands and the shard is whole, in the order in which it takes them.
    pub(super) fn of_a_fence(self) -> [Key; 5] {
        [self.live(), self.transitions(), self.blocked(), self.ended(), self.fence()]
    }

    /// A recent instant at which heartbeats were taken.
    pub(super) fn heard(self) -> Key {
        self.named("heard")
    }

    /// There while no deadline is claimed.
    pub(super) fn hold(self) -> Key {
        self.named("hold")
    }

    /// The token of a fence being built.
    pub(super) fn building(self) -> Key {
        self.named("building")
    }

    /// The last moment at which data that were lost since are known to have served.
    pub(super) fn lost(self) -> Key {
        self.named("lost")
    }

    /// Users whose presence an administrator lent.
    pub(super) fn lent(self) -> Key {
        self.named("lent")
    }

    pub(super) fn epoch(self) -> Key {
        self.named("epoch")
    }

    /// Whose turn the write-behind of `last_seen` is.
    pub(super) fn flush_turn(self) -> Key {
        self.named("flush")
    }

    /// Whose turn it is to compare presence keys with the live set.
    pub(super) fn verify_turn(self) -> Key {
        self.named("verify")
    }

    /// How many shards this Redis has been used with; in shard 0, which always exists.
    pub(super) fn shards(self) -> Key {
        self.named("shards")
    }

    /// The installation that this Redis belongs to; in shard 0.
    pub(super) fn installation(self) -> Key {
        self.named("installation")
    }

    /// The largest account id that SQL is known to have given; in shard 0.
    pub(super) fn largest_id(self) -> Key {
        self.named("largest_id")
    }

    /// Written by a process that wants to know whether Redis takes writes; gone a millisecond later. The number is
    /// chosen so that it lies at the server that is asked.
    pub(super) fn probe(self, instance: &str, number: u32) -> Key {
        format!("{}:probe:{instance}:{number}", self.prefix).into()
    }

    /// Written by a process that wants to know whether a server publishes expiries; the number as in [`Self::probe`].
    pub(super) fn canary(self, instance: &str, number: u32) -> Key {
        format!("{}:canary:{instance}:{number}", self.prefix).into()
    }

    /// The count against a limit: a slot of its own on a cluster, for no script touches two of them.
    pub(super) fn limit(self, name: &str) -> Key {
        format!("{}:limit:{name}", self.prefix).into()
    }

    fn named(self, name: &str) -> Key {
        format!("{}:{{{}}}:{name}", self.prefix, self.shard).into()
    }

    /// Reads shard and user off a presence key with this prefix; `None` for any other key.
    pub(super) fn parse_user(prefix: &str, key: &str) -> Option<(u32, UserId)> {
        let (shard, user) = key.strip_prefix(prefix)?.strip_prefix(":{")?.split_once("}:user:")?;
        Some((shard.parse().ok()?, user.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_presence_key_is_read_back_as_it_was_written() {
        let key = Keys::new("staging", 63).user(1_234_567_890_123);
        assert_eq!(key.as_str(), Some("staging:{63}:user:1234567890123"));
        assert_eq!(Keys::parse_user("staging", key.as_str().unwrap()), Some((63, 1_234_567_890_123)));
        assert_eq!(Keys::parse_user("presence", key.as_str().unwrap()), None);
    }

    #[test]
    fn other_keys_are_nobodys() {
        for key in ["presence:{0}:live", "presence:{0}:user:", "presence:{0}:user:x", "user:1", ""] {
            assert_eq!(Keys::parse_user("presence", key), None, "{key}");
        }
    }
}
