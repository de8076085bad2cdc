//! The faults: each does its harm, waits a while, and heals it.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::crowd::now;
use super::ledger::{Fault, Span};
use super::world::{INSTANCES, World};
use crate::support::dice::Dice;

/// Every kind of fault. A round draws a few.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    KillInstance,
    StopInstance,
    PauseInstance,
    KillRedis,
    EmptyRedis,
    OlderRedis,
    FlushRedis,
    HangRedis,
    PauseRedis,
    CutSubscribers,
    CutClients,
    CutRedisMidCommand,
    FlushScripts,
    MuteEvents,
    KillPostgres,
    PausePostgres,
    CutBackends,
    CutPostgresMidCommand,
}

impl Kind {
    pub const ALL: [Self; 18] = [
        Self::KillInstance,
        Self::StopInstance,
        Self::PauseInstance,
        Self::KillRedis,
        Self::EmptyRedis,
        Self::OlderRedis,
        Self::FlushRedis,
        Self::HangRedis,
        Self::PauseRedis,
        Self::CutSubscribers,
        Self::CutClients,
        Self::CutRedisMidCommand,
        Self::FlushScripts,
        Self::MuteEvents,
        Self::KillPostgres,
        Self::PausePostgres,
        Self::CutBackends,
        Self::CutPostgresMidCommand,
    ];

    /// The fault of this name, as it is written here.
    pub fn named(name: &str) -> Self {
        let found = Self::ALL.into_iter().find(|kind| format!("{kind:?}") == name);
        found.unwrap_or_else(|| panic!("KINDS names '{name}', which is none of {:?}", Self::ALL))
    }

    const fn aftermath_ms(self) -> i64 {
        match self {
            Self::FlushScripts | Self::MuteEvents => 0,
            Self::CutSubscribers | Self::CutClients | Self::CutRedisMidCommand => 1_000,
            // The turn of a persister that is gone is respected for 3 s.
            Self::KillInstance | Self::StopInstance | Self::PauseInstance => 3_500,
            _ => 1_500,
        }
    }
}

/// A copy of Redis's data, and when it was begun.
pub struct Copy {
    pub at: i64,
    pub path: PathBuf,
}

/// The time for which something stays broken is the subject, not a wait for something.
pub async fn last(ms: i64) {
    sleep_until(Instant::now() + Duration::from_millis(ms.unsigned_abs())).await;
}

/// Injects one fault and heals it.
pub async fn inject(world: &mut World, kind: Kind, copy: &Copy, dice: &mut Dice) -> Fault {
    let from = now();
    let which = usize::try_from(dice.roll(INSTANCES as u64)).unwrap();
    let mut forgot_since = None;
    let redis = |world: &World, arguments: &[&str]| drop(world.redis.cli(arguments));
    match kind {
        Kind::KillInstance => {
            world.instances[which].kill9().await;
            last(dice.between(0, 800)).await;
            world.start_again(which).await;
        }
        Kind::StopInstance => {
            assert_eq!(world.instances[which].terminate().await, 0, "a graceful end");
            world.start_again(which).await;
        }
        Kind::PauseInstance => {
            world.instances[which].pause();
            // Longer than a persister's turn is respected.
            last(dice.between(300, 4_500)).await;
            world.instances[which].resume();
        }
        Kind::KillRedis => {
            world.redis.kill().await;
            last(dice.between(0, 1_500)).await;
            world.redis.restart().await;
        }
        Kind::EmptyRedis => {
            world.redis.kill().await;
            last(dice.between(0, 500)).await;
            world.redis.restart_empty().await;
            forgot_since = Some(0);
        }
        Kind::OlderRedis => {
            world.redis.kill().await;
            last(dice.between(0, 500)).await;
            world.restore_redis(&copy.path).await;
            forgot_since = Some(copy.at);
        }
        Kind::FlushRedis => {
            redis(world, &["FLUSHALL"]);
            forgot_since = Some(0);
        }
        Kind::HangRedis => {
            world.redis.pause();
            last(dice.between(1_600, 3_000)).await;
            world.redis.resume();
        }
        Kind::PauseRedis => {
            world.redis.pause();
            last(dice.between(50, 1_000)).await;
            world.redis.resume();
        }
        Kind::CutSubscribers => redis(world, &["CLIENT", "KILL", "TYPE", "pubsub"]),
        Kind::CutClients => redis(world, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]),
        Kind::CutRedisMidCommand => {
            for _ in 0..dice.between(1, 6) {
                world.redis_proxy.cut();
                last(dice.between(1, 150)).await;
            }
        }
        Kind::FlushScripts => redis(world, &["SCRIPT", "FLUSH"]),
        Kind::MuteEvents => redis(world, &["CONFIG", "SET", "notify-keyspace-events", ""]),
        Kind::KillPostgres => {
            world.postgres.kill().await;
            last(dice.between(0, 1_000)).await;
            world.postgres.restart().await;
        }
        Kind::PausePostgres => {
            world.postgres.pause();
            last(dice.between(300, 4_000)).await;
            world.postgres.resume();
        }
        Kind::CutBackends => {
            let cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND \
                       datname = current_database()";
            world.sql.try_run(cut).await;
        }
        Kind::CutPostgresMidCommand => {
            for _ in 0..dice.between(1, 6) {
                world.sql_proxy.cut();
                last(dice.between(1, 150)).await;
            }
        }
    }
    Fault {
        name: format!("{kind:?}"),
        span: Span { from, to: now() },
        aftermath_ms: kind.aftermath_ms(),
        forgot_since,
    }
}
