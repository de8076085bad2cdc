//! The faults: each does its harm, waits a while, and heals it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::{Instant, sleep_until};

use super::crowd::now;
use super::ledger::{Fault, Span};
use super::world::{INSTANCES, USERS, World};
use crate::support::dice::Dice;
use crate::support::proxy::Proxy;

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
    SaveStaleRows,
    ForgetRowLock,
    EvictKeys,
    StepSqlClock,
}

impl Kind {
    pub const ALL: [Self; 22] = [
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
        Self::SaveStaleRows,
        Self::ForgetRowLock,
        Self::EvictKeys,
        Self::StepSqlClock,
    ];

    /// The fault of this name, as it is written here.
    pub fn named(name: &str) -> Self {
        let found = Self::ALL.into_iter().find(|kind| format!("{kind:?}") == name);
        found.unwrap_or_else(|| panic!("KINDS names '{name}', which is none of {:?}", Self::ALL))
    }

    /// Whether it concerns one Redis server.
    const fn is_of_redis(self) -> bool {
        matches!(
            self,
            Self::KillRedis
                | Self::EmptyRedis
                | Self::OlderRedis
                | Self::FlushRedis
                | Self::HangRedis
                | Self::PauseRedis
                | Self::CutSubscribers
                | Self::CutClients
                | Self::CutRedisMidCommand
                | Self::FlushScripts
                | Self::MuteEvents
                | Self::EvictKeys
        )
    }

    const fn aftermath_ms(self) -> i64 {
        match self {
            Self::FlushScripts | Self::MuteEvents | Self::SaveStaleRows | Self::StepSqlClock => 0,
            Self::CutSubscribers | Self::CutClients | Self::CutRedisMidCommand => 1_000,
            // The turn of a persister that is gone is respected for 3 s.
            Self::KillInstance | Self::StopInstance | Self::PauseInstance => 3_500,
            _ => 1_500,
        }
    }
}

/// A copy of all Redis servers' data, a folder for each, and when it was begun.
pub struct Copy {
    pub at: i64,
    pub path: PathBuf,
}

/// The time for which something stays broken is the subject, not a wait for something.
pub async fn last(ms: i64) {
    sleep_until(Instant::now() + Duration::from_millis(ms.unsigned_abs())).await;
}

/// How long a transition may be in the stream before SQL has it, ms.
const IN_THE_STREAM_MS: i64 = 500;
/// How far SQL's clock is stepped at most, s.
const CLOCK_STEP_S: i64 = 1_800;

/// As an ORM does: loads rows, thinks a while, and writes all columns back.
async fn save_stale_rows(world: &World, dice: &mut Dice) {
    let first = dice.between(2, USERS - 40);
    let loaded = world
        .sql
        .rows(&format!(
            "SELECT id::text, email, online_status, last_seen::text, presence_version::text FROM users \
             WHERE id BETWEEN {first} AND {}",
            first + 40
        ))
        .await;
    last(dice.between(100, 1_500)).await;
    for row in loaded {
        let seen = if row[3].is_empty() { "NULL".to_owned() } else { format!("'{}'", row[3]) };
        let save = format!(
            "UPDATE users SET email = '{}', online_status = '{}', last_seen = {seen}, presence_version = {} WHERE id = {}",
            row[1], row[2], row[4], row[0]
        );
        world.sql.try_run(&save).await;
    }
}

/// A transaction of another application that locks some rows and is forgotten; whose rows they were.
async fn forget_row_lock(world: &World, dice: &mut Dice) -> BTreeSet<i64> {
    let users: BTreeSet<i64> = (0..5).map(|_| dice.between(2, USERS)).collect();
    let ids = users.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let mut session = PgConnection::connect(&world.direct_url).await.unwrap();
    let lock = format!("BEGIN; UPDATE users SET email = email WHERE id IN ({ids})");
    sqlx::raw_sql(AssertSqlSafe(lock)).execute(&mut session).await.unwrap();
    last(dice.between(500, 4_000)).await;
    // Gone with its connection, as forgotten ones go.
    drop(session);
    users
}

/// What a server that is short of memory does: a few keys are gone, whichever they are.
fn evict(world: &World, node: usize, dice: &mut Dice) {
    const BOOKKEEPING: [&str; 9] =
        ["blocked", "ended", "live", "transitions", "fence", "moves", "heard", "epoch", "installation"];
    let named = BOOKKEEPING[usize::try_from(dice.roll(BOOKKEEPING.len() as u64)).unwrap()];
    let shards = world.redis.shards_of(node);
    let shard = shards[usize::try_from(dice.roll(shards.len() as u64)).unwrap()];
    let redis = &world.redis.nodes()[node];
    redis.cli(&["DEL", &format!("presence:{{{shard}}}:{named}")]);
    for _ in 0..dice.between(0, 10) {
        let key = redis.cli(&["RANDOMKEY"]);
        redis.cli(&["DEL", &key]);
    }
}

/// Cuts all connections a few times.
async fn cut_mid_command(proxy: &Proxy, dice: &mut Dice) {
    for _ in 0..dice.between(1, 6) {
        proxy.cut();
        last(dice.between(1, 150)).await;
    }
}

/// Ends a server for a while; it comes back with what it had, with nothing, or with an older copy.
async fn end_redis(world: &mut World, node: usize, kind: Kind, copy: &Copy, dice: &mut Dice) {
    world.redis.nodes()[node].kill().await;
    last(dice.between(0, if kind == Kind::KillRedis { 1_500 } else { 500 })).await;
    match kind {
        Kind::EmptyRedis => world.redis.start_on(node, None).await,
        Kind::OlderRedis => world.redis.start_on(node, Some(&copy.path)).await,
        _ => world.redis.node_mut(node).restart().await,
    }
    world.redis.are_well().await;
}

/// Injects one fault and heals it.
pub async fn inject(world: &mut World, kind: Kind, copy: &Copy, dice: &mut Dice) -> Fault {
    let from = now();
    let which = usize::try_from(dice.roll(INSTANCES as u64)).unwrap();
    let node = usize::try_from(dice.roll(world.redis.nodes().len() as u64)).unwrap();
    let (mut forgot_since, mut only) =
        (None, if kind.is_of_redis() { world.redis.users_of(node) } else { None });
    let redis = |world: &World, arguments: &[&str]| drop(world.redis.nodes()[node].cli(arguments));
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
        Kind::KillRedis => end_redis(world, node, kind, copy, dice).await,
        Kind::EmptyRedis => {
            end_redis(world, node, kind, copy, dice).await;
            forgot_since = Some(0);
        }
        Kind::OlderRedis => {
            end_redis(world, node, kind, copy, dice).await;
            forgot_since = Some(copy.at);
        }
        Kind::FlushRedis => {
            redis(world, &["FLUSHALL"]);
            forgot_since = Some(0);
        }
        Kind::HangRedis => {
            world.redis.nodes()[node].pause();
            last(dice.between(1_600, 3_000)).await;
            world.redis.nodes()[node].resume();
            world.redis.are_well().await;
        }
        Kind::PauseRedis => {
            world.redis.nodes()[node].pause();
            last(dice.between(50, 1_000)).await;
            world.redis.nodes()[node].resume();
        }
        Kind::CutSubscribers => redis(world, &["CLIENT", "KILL", "TYPE", "pubsub"]),
        Kind::CutClients => redis(world, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]),
        Kind::CutRedisMidCommand => match world.redis.proxy() {
            Some(proxy) => cut_mid_command(proxy, dice).await,
            None => redis(world, &["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]),
        },
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
            cut_mid_command(&world.sql_proxy, dice).await;
        }
        Kind::SaveStaleRows => save_stale_rows(world, dice).await,
        Kind::ForgetRowLock => only = Some(forget_row_lock(world, dice).await),
        Kind::EvictKeys => {
            evict(world, node, dice);
            // What was on its way to SQL may have been in the stream that went.
            forgot_since = Some(from - IN_THE_STREAM_MS);
        }
        Kind::StepSqlClock => {
            world.sql_clock.set(dice.between(-CLOCK_STEP_S, CLOCK_STEP_S));
            last(dice.between(300, 2_500)).await;
            world.sql_clock.set(0);
        }
    }
    Fault {
        only,
        name: format!("{kind:?}"),
        span: Span { from, to: now() },
        aftermath_ms: kind.aftermath_ms(),
        forgot_since,
    }
}
