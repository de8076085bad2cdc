//! The names of the keys: the one place that spells them.

use fred::types::Key;

use crate::model::{SessionId, UserId};

/// Key names of one shard; the tag in braces puts them all into one slot of a cluster.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keys {
    shard: u32,
}

impl Keys {
    pub(super) const fn of(shard: u32) -> Self {
        Self { shard }
    }

    /// The presence key of a user: hash, its TTL the time left.
    pub(super) fn user(self, user: UserId) -> Key {
        format!("{}{user}", self.user_prefix()).into()
    }

    /// What stands before the id in [`Self::user`].
    pub(super) fn user_prefix(self) -> String {
        format!("presence:{{{}}}:user:", self.shard)
    }

    /// The mark of a session that was logged out; one never set stands for tokens without `sid`.
    pub(super) fn ended(self, sid: Option<&SessionId>) -> Key {
        format!("presence:{{{}}}:ended:{}", self.shard, sid.map_or("", SessionId::as_str)).into()
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

    pub(super) fn epoch(self) -> Key {
        self.named("epoch")
    }

    /// Whose turn the write-behind of `last_seen` is.
    pub(super) fn flush_turn(self) -> Key {
        self.named("flush")
    }

    /// How many shards this Redis has been used with; in the first one, which there is always.
    pub(super) fn shards() -> Key {
        Self::of(0).named("shards")
    }

    /// Written by a process that wants to know whether Redis takes writes; gone a millisecond later. The number is
    /// chosen so that it lies at the server that is asked.
    pub(super) fn probe(instance: &str, number: u32) -> Key {
        format!("presence:probe:{instance}:{number}").into()
    }

    /// Written by a process that wants to know whether a server publishes expiries; the number as in [`Self::probe`].
    pub(super) fn canary(instance: &str, number: u32) -> Key {
        format!("presence:canary:{instance}:{number}").into()
    }

    /// The count against a limit: a slot of its own on a cluster, for no script touches two of them.
    pub(super) fn limit(name: &str) -> Key {
        format!("presence:limit:{name}").into()
    }

    fn named(self, name: &str) -> Key {
        format!("presence:{{{}}}:{name}", self.shard).into()
    }

    /// Reads shard and user off a presence key; `None` for any other key.
    pub(super) fn parse_user(key: &str) -> Option<(u32, UserId)> {
        let (shard, user) = key.strip_prefix("presence:{")?.split_once("}:user:")?;
        Some((shard.parse().ok()?, user.parse().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_presence_key_is_read_back_as_it_was_written() {
        let key = Keys::of(63).user(1_234_567_890_123);
        assert_eq!(key.as_str(), Some("presence:{63}:user:1234567890123"));
        assert_eq!(Keys::parse_user(key.as_str().unwrap()), Some((63, 1_234_567_890_123)));
    }

    #[test]
    fn other_keys_are_nobodys() {
        for key in ["presence:{0}:live", "presence:{0}:user:", "presence:{0}:user:x", "user:1", ""] {
            assert_eq!(Keys::parse_user(key), None, "{key}");
        }
    }
}
