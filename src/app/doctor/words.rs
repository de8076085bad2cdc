//! The words: each finding, its likely cause, and what `--repair` does about it.

use super::findings::{Finding, NameTrouble, ShardTrouble, WhyWaiting};
use super::mend::version_of;
use crate::model::audit::{Break, Disagreement, InSql};
use crate::model::{Millis, UserId};

/// What is said of a finding.
pub(super) struct Words {
    /// One name for all findings of the kind, for the sums.
    pub(super) kind: &'static str,
    /// What is so, and the likely cause.
    pub(super) what: String,
    /// What `--repair` does; where it does nothing, what to do by hand.
    pub(super) remedy: String,
}

pub(super) fn words(finding: &Finding) -> Words {
    match finding {
        Finding::User { user, what, sql } => of_user(*user, what, sql.as_ref()),
        Finding::Stray { shard, member } => Words {
            kind: "no user of this shard",
            what: format!(
                "'{member}' is in presence:{{{shard}}}:live and is no id of a user of this shard: somebody put it there by \
                 hand, or by a program that counts shards otherwise"
            ),
            remedy: "drops it from the live set".into(),
        },
        Finding::Session { user, sid } => Words {
            kind: "ended session",
            what: format!(
                "user {user} has the session {sid} in the presence key, and by SQL it has ended: Redis was away when it did, \
                 or somebody wrote to one of the two by hand. Its tokens are still taken",
                sid = sid.as_str()
            ),
            remedy: "ends it in Redis, too".into(),
        },
        Finding::Break(broken) => of_break(broken),
        Finding::Shard(trouble) => of_shard(trouble),
        Finding::Names(trouble) => of_names(trouble),
    }
}

fn of_names(trouble: &NameTrouble) -> Words {
    match trouble {
        NameTrouble::Clash(clash) => Words {
            kind: "shared login name",
            what: clash.to_string(),
            remedy: "nothing, for only people know which account keeps the name; give one of the two another: UPDATE users \
                     SET username = … (or email = …) WHERE id = …"
                .into(),
        },
        NameTrouble::Keys { user, username } => Words {
            kind: "login name without its key",
            what: format!(
                "user {user} ('{}') has a login name whose key in login_names is missing or another's: triggers were off \
                 when it was written. A login or a search by that name may miss the account",
                username.escape_debug()
            ),
            remedy: "computes the keys again".into(),
        },
    }
}

fn instant(at: Option<Millis>) -> String {
    at.map_or_else(|| "never".to_string(), |at| format!("at {at}"))
}

fn of_user(user: UserId, what: &Disagreement, sql: Option<&InSql>) -> Words {
    use Disagreement as D;
    let (kind, what, remedy) = match what {
        D::KeyMissing { deadline } => (
            "no presence key",
            format!(
                "is in the live set until {deadline} and has no presence key: somebody deleted it. Reads call the user \
                 offline, the online count and SQL do not"
            ),
            "makes the key anew, to stand until the deadline or the next heartbeat",
        ),
        D::KeyOfWrongType { kind } => (
            "presence key of another type",
            format!("has a presence key that is a {kind} and no hash: somebody wrote to it by hand"),
            "deletes it, and makes it anew where the live set has a deadline ahead",
        ),
        D::DeadlineMissing { expires } => (
            "not in the live set",
            format!(
                "has a presence key (it expires {}) and is not in the live set: somebody removed the member, or wrote the \
                 key by hand. Nobody would claim it: reads call the user online, the online count does not",
                instant(*expires)
            ),
            "puts the user back into the live set while a session in the key is alive, else deletes the key",
        ),
        D::DeadlineTooFar { deadline } => (
            "deadline too far ahead",
            format!(
                "has the deadline {deadline}, further ahead than any PRESENCE_TTL: somebody wrote to the live set by hand. \
                 The user would stay online until then"
            ),
            "sets deadline and expiry to the last heartbeat plus PRESENCE_TTL",
        ),
        D::ExpiryDiffers { deadline, expires } => (
            "expiry is not the deadline",
            format!(
                "has a presence key that expires {}, and the deadline {deadline}: somebody used EXPIRE, PERSIST, SET or \
                 ZADD by hand. Reads and the online count will differ",
                instant(*expires)
            ),
            "sets the key's expiry to the deadline",
        ),
        D::StatusUnsupported { status, sessions } => (
            "status without a session",
            format!(
                "has the status '{}' in the presence key, and its sessions come to '{}': somebody wrote to the key by hand",
                status.map_or("", crate::model::OnlineStatus::as_str),
                sessions.map_or("", crate::model::OnlineStatus::as_str)
            ),
            "sets the status to what the sessions come to and records it; a key without sessions is made anew",
        ),
        D::BlockedButPresent => (
            "blocked and present",
            "may not be present by SQL, and is in the live set: the fence has not heard of the change. Does an instance \
             run that follows the changes of accounts?"
                .into(),
            "takes the user offline and fences the account off",
        ),
        D::FenceLacks => (
            "missing from the fence",
            "may not be present by SQL, and the fence does not hold the account: a heartbeat would bring the user online. \
             Either no instance follows the changes of accounts, or somebody removed it from the set 'blocked'"
                .into(),
            "fences the account off",
        ),
        D::FenceHolds => (
            "held by the fence",
            "may be present by SQL, and the fence holds the account: every heartbeat is refused. Either no instance follows \
             the changes of accounts, or somebody added it to the set 'blocked'"
                .into(),
            "lets the account in again",
        ),
        D::Stranger => (
            "unknown to SQL",
            "is in the live set, and SQL has no such account: it was deleted while nobody followed, or its token was minted \
             for another database"
                .into(),
            "takes the user out of the live set and fences the id off",
        ),
        D::MirrorDiffers { mirror, live, version } => (
            "mirror is not the live set",
            format!(
                "is {live} in Redis and {mirror} in SQL (users.online_status), and nothing is on its way: {}",
                cause_of_mirror(*version, sql)
            ),
            "tells SQL by a transition, which is recorded as any other",
        ),
        D::HistoryDiffers { mirror, history, .. } => (
            "mirror is not the history",
            format!(
                "is {mirror} in users.online_status, and the newest row of presence_transitions says {history}: somebody \
                 changed one of the two by hand, or a restore brought back one without the other"
            ),
            "sets the mirror to where the history leads; what Redis says otherwise is recorded after it",
        ),
    };
    Words { kind, what: format!("user {user} {what}"), remedy: remedy.into() }
}

/// Versions are dated; one that is ahead of the user's last sign by far was given by another clock.
fn cause_of_mirror(version: i64, sql: Option<&InSql>) -> &'static str {
    const HOUR_MS: i64 = 3_600_000;
    let last_seen = sql.and_then(|sql| sql.last_seen);
    if last_seen.is_some_and(|seen| version > version_of(seen.plus(HOUR_MS))) {
        return "SQL's version of the user is dated well after the last sign of life. Redis's clock may have gone back, or \
                entries were taken out of the stream by hand";
    }
    "somebody changed the column by hand, or removed entries from the stream, or Redis came back with other data"
}

fn of_break(broken: &Break) -> Words {
    let (before, row) = (broken.before, broken.row);
    let remedy = if row.to == before.to {
        "takes the later row out: it leads where the history stood already"
    } else {
        "lets the later row begin where the earlier one ended"
    };
    Words {
        kind: "history that does not chain",
        what: format!(
            "user {} has a history that does not chain: row {} of presence_transitions leads to {}, and the next one, {}, \
             begins at {}: somebody deleted or changed rows by hand",
            row.user, before.id, before.to, row.id, row.from
        ),
        remedy: remedy.into(),
    }
}

fn of_shard(trouble: &ShardTrouble) -> Words {
    let (kind, what, remedy) = match trouble {
        ShardTrouble::Unfenced { shard } => (
            "no fence",
            format!(
                "shard {shard} has no fence: Redis has lost its data or was restarted, and no instance has built it anew. \
                 Nobody can come online before"
            ),
            "builds the fence from SQL".into(),
        ),
        ShardTrouble::OddKey { key, kind, .. } => (
            "key of another type",
            format!(
                "{key} is a {kind}: somebody wrote to it by hand. The shard works only when it is gone, and was not looked at"
            ),
            format!("nothing, for it may be somebody's; look at it, then: redis-cli DEL '{key}'"),
        ),
        ShardTrouble::Unclaimed { shard, users } => (
            "unclaimed deadlines",
            format!(
                "{} deadline(s) of shard {shard} have passed and nobody has claimed them, the first that of user {} {}: no \
                 sweeper runs. Is an instance of presenced running on this Redis?",
                users.len(),
                users.first().map_or(0, |(user, _)| *user),
                instant(users.first().map(|(_, deadline)| *deadline))
            ),
            "claims them".into(),
        ),
        ShardTrouble::Waiting { shard, count, since, why, .. } => (
            "transitions wait",
            format!(
                "{count} transition(s) of shard {shard} wait for SQL, the oldest for {} s, and none was written meanwhile: {}",
                since.as_secs(),
                cause_of_waiting(why)
            ),
            "writes them to SQL".into(),
        ),
        ShardTrouble::Unreadable { shard, ids } => (
            "unreadable entries",
            format!(
                "{} entries of presence:{{{shard}}}:transitions are no transitions, the first {}: somebody added them by hand",
                ids.len(),
                ids.first().map_or("", String::as_str)
            ),
            "drops them, with a warning in the log, as the service does".into(),
        ),
        ShardTrouble::Abandoned { shard, count } => (
            "transitions in a shard out of use",
            format!(
                "{count} transition(s) wait in shard {shard}, which nobody reads: PRESENCE_SHARDS was made smaller before \
                 they were written"
            ),
            format!(
                "nothing, for later ones may be recorded already; look at them (XRANGE 'presence:{{{shard}}}:transitions' - \
                 +), then: redis-cli DEL 'presence:{{{shard}}}:transitions'"
            ),
        ),
    };
    Words { kind, what, remedy }
}

fn cause_of_waiting(why: &WhyWaiting) -> String {
    match why {
        WhyWaiting::NoGroup => {
            "there is no consumer group 'persist', so no persister has been here. Is an instance of \
                                presenced running on this Redis?"
                .into()
        }
        WhyWaiting::Held { by, silent } => format!(
            "the persister '{by}' took some and has not been heard for {} s, and no other runs to take over. Is an instance \
             of presenced running on this Redis?",
            silent.as_secs()
        ),
        WhyWaiting::InHand { by } => {
            format!("the persister '{by}' has them in hand and cannot write them; its log says why")
        }
        WhyWaiting::NotTaken => {
            "no persister takes them. Is an instance of presenced running on this Redis, and has it SQL?"
                .into()
        }
    }
}
