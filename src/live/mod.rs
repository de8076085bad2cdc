//! Everything Redis: the live set, its scripts, the stream of transitions, expiry events, connections, and the embedded
//! server.
//!
//! The only room that knows fred, a key name or a script. Keeps invariant 7 (every instant is Redis's own), invariant 3
//! (a change of the live set and its transition are one script run) and invariant 10 (plain keys, no `SCAN`, no
//! `KEYS`). Knows nothing of SQL or HTTP.

mod audit;
mod clock;
mod deadlines;
mod embedded;
mod events;
mod fence;
mod heartbeats;
mod installation;
mod keys;
mod limits;
mod link;
mod live_set;
mod measure;
mod mend;
mod node;
mod packed;
mod primaries;
mod promptly;
mod reading;
mod scripts;
mod stream;
mod topology;
mod view;

use std::fmt;
use std::time::Duration;

pub use audit::{Entries, EntryPlace, MemberPlace, Members, Server, Stock};
pub use deadlines::{Due, Epoch, SeenPage, SeenPlace};
pub use embedded::EmbeddedRedis;
pub use events::{Event, ExpiryEvents};
pub use fence::{Checked, Fence, FormerFence, Loss, Verdict};
pub use heartbeats::{Heartbeat, HeartbeatOutcome};
pub use installation::eviction_warning;
pub use live_set::{LiveSet, StatusOutcome};
pub use measure::Measures;
pub use mend::{Mend, Mended};
pub use primaries::{Primaries, Primary};
pub use reading::{InShard, OnlinePage, Presences};
pub use stream::{Turn, Work};

/// What can go wrong with Redis.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// The connection is lost; it is being set up again.
    #[error("there is no connection to Redis")]
    Down,
    /// Redis took too long to answer.
    #[error("Redis did not answer in time")]
    Timeout,
    /// Redis refuses to write for now: loading, read-only, out of memory, a failover under way, or a slot on the move.
    #[error("Redis refuses commands for now: {0}")]
    Refused(String),
    /// Redis answered with an error, or with something unexpected.
    #[error("Redis answered with an error: {0}")]
    Redis(String),
    /// Redis was used with another number of shards.
    #[error(
        "this Redis holds presences in {found} shard(s), but {asked} are asked for: set PRESENCE_SHARDS={found}, or stop \
         every instance, wait for PRESENCE_TTL, and redis-cli DEL '{prefix}:{{0}}:shards'"
    )]
    Shards {
        /// What the key names begin with.
        prefix: String,
        /// How many this process was told.
        asked: u32,
        /// How many Redis was used with.
        found: u32,
    },
    /// Redis belongs to another installation.
    #[error(
        "this Redis belongs to another installation ({found}) than this database ({ours}): give each installation a Redis of its \
         own, or a PRESENCE_PREFIX of its own on a shared one. Where this database has taken the place of the other for good, \
         stop every instance and run: redis-cli SET '{prefix}:{{0}}:installation' {ours}"
    )]
    Installation {
        /// The id in SQL.
        ours: String,
        /// The id in Redis.
        found: String,
        /// What the key names begin with.
        prefix: String,
    },
    /// The URL cannot be used.
    #[error("REDIS_URL cannot be used: {0}")]
    Url(String),
    /// The embedded server did not start.
    #[error("{0}")]
    Embedded(String),
    /// A file or folder of the embedded server is not private, and cannot be made so.
    #[error(transparent)]
    File(#[from] crate::files::FileError),
}

impl From<fred::error::Error> for LiveError {
    fn from(error: fred::error::Error) -> Self {
        use fred::error::ErrorKind;
        let details = error.details();
        let refused = [
            "LOADING",
            "READONLY",
            "OOM",
            "MISCONF",
            "BUSY",
            "CLUSTERDOWN",
            "MASTERDOWN",
            "NOREPLICAS",
            "MOVED",
            "ASK",
            "TRYAGAIN",
        ];
        if refused.iter().any(|word| details.starts_with(word)) {
            return Self::Refused(details.to_string());
        }
        match error.kind() {
            ErrorKind::Timeout => Self::Timeout,
            ErrorKind::IO | ErrorKind::Canceled | ErrorKind::Backpressure => Self::Down,
            ErrorKind::Url | ErrorKind::Config => Self::Url(details.to_string()),
            _ => Self::Redis(details.to_string()),
        }
    }
}

type Result<T> = std::result::Result<T, LiveError>;

/// How the live set is reached and kept. Its `Debug` does not show the URL, which may hold a password.
#[derive(Clone)]
pub struct Options {
    /// `redis://`, `rediss://`, `redis-sentinel://`, `redis-cluster://`, or what [`EmbeddedRedis::url`] gives.
    pub url: String,
    /// How long a user stays present after the last heartbeat.
    pub ttl: Duration,
    /// What the name of every key begins with: several installations can share a server by it.
    pub prefix: String,
    /// How many shards; 1 on a single server.
    pub shards: u32,
    /// How many sessions a presence key holds at most.
    pub max_sessions: u32,
    /// How long an ended session's tokens can still be presented: the lifetime of an access token.
    pub ended_ttl: Duration,
    /// This process's name among the persisters.
    pub instance: String,
    /// How long a command may take.
    pub command_timeout: Duration,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("ttl", &self.ttl)
            .field("prefix", &self.prefix)
            .field("shards", &self.shards)
            .field("max_sessions", &self.max_sessions)
            .field("ended_ttl", &self.ended_ttl)
            .field("instance", &self.instance)
            .field("command_timeout", &self.command_timeout)
            .finish_non_exhaustive()
    }
}
