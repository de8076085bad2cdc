//! The scripts against a model: any sequence of calls and steps of the clock, on a real Redis, now and then made twice.
//!
//! | module | holds |
//! |---|---|
//! | [`ops`] | what may happen |
//! | [`run`] | one case: each op as its calls |
//! | [`agree`] | a call made to Redis and told to the model |
//! | [`calls`] | a call of a script, as data |
//! | [`reference`] | the model: what API.md's rules make of it |
//! | [`whole`] | the same of a shard as a whole: its loss of a key, and how that is put right |
//! | [`answers`] | what the model answers |
//! | [`compare`] | model and Redis side by side |
//! | [`invariants`] | what must hold whatever the model says |
//! | [`persisted`] | SQL's side, through the store's own chain |
//! | [`probe`] | all that Redis holds, and the steps of the clock |
//!
//! Time is exact: for each call the model must name one instant between the look before it and the look after it at which
//! it does all that Redis did, to the millisecond. So a step may lead to right before, onto or right after a deadline.
//!
//! `PROPTEST_CASES=20000 cargo test --test it model::` goes on for longer (no runner that ends it after minutes). A failing
//! case is shrunk, and its seed kept in `tests/it/model/sequences.proptest-regressions`, to be committed: it is tried first
//! from then on.

mod agree;
mod answers;
mod calls;
mod compare;
mod invariants;
mod ops;
mod persisted;
mod probe;
mod reference;
mod run;
mod whole;

use std::cell::{Cell, RefCell};
use std::time::Duration;

use presenced::live::{LiveSet, Options};
use proptest::test_runner::{Config, FileFailurePersistence, TestCaseError, TestRunner};

use crate::support::redis::RedisServer;
use compare::CONSUMERS;
use probe::Probe;
use run::{Counts, Place, Run};

/// Some five seconds.
const CASES: u32 = 250;
/// How many smaller cases are tried in place of one that failed.
const SHRINKS: u32 = 3_000;
/// What cases in such a number never miss; otherwise they test less than they seem to.
const HAPPENS: [&str; 30] = [
    "Present(Online)",
    "Present(Away)",
    "Blocked",
    "SessionEnded",
    "Unfenced",
    "status Done",
    "status Blocked",
    "status Unfenced",
    "checked Good",
    "checked Blocked",
    "checked SessionEnded",
    "checked Unfenced",
    "damaged",
    "mended DeadlineSet",
    "read on hold",
    "a change too many",
    "a session too many",
    "a turn",
    "another's turn",
    "overtaken, or too early",
    "made twice",
    "online login",
    "online admin",
    "offline admin",
    "online heartbeat",
    "away heartbeat",
    "away expired",
    "offline logout",
    "offline blocked",
    "offline expired",
];

#[test]
fn whatever_happens_in_whatever_order_the_scripts_do_as_the_model() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (_redis, places) = runtime.block_on(async {
        let redis = RedisServer::start(&[]).await;
        let places = [place(&redis, 1).await, place(&redis, 2).await];
        (redis, RefCell::new(places))
    });
    let counts = RefCell::new(Counts::new());
    let mut config = Config {
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            "tests/it/model/sequences.proptest-regressions",
        ))),
        ..Config::default()
    };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    if std::env::var_os("PROPTEST_MAX_SHRINK_ITERS").is_none() {
        config.max_shrink_iters = SHRINKS;
    }
    let (cases, tried, failed) = (config.cases, Cell::new(0), Cell::new(false));
    let result = TestRunner::new(config).run(&ops::case(), |(shards, ops)| {
        let (mut places, mut counts) = (places.borrow_mut(), counts.borrow_mut());
        let place = &mut places[shards as usize - 1];
        // What comes after the first failure are smaller cases of it.
        tried.set(tried.get() + u32::from(!failed.get()));
        let done = runtime.block_on(Run::case(place, &mut counts, &ops));
        failed.set(failed.get() || done.is_err());
        done.map_err(TestCaseError::fail)
    });
    let counts = counts.into_inner();
    if let Err(failure) = result {
        panic!("after {} cases: {failure}", tried.get());
    }
    println!("{cases} cases: {counts:#?}");
    let missed: Vec<_> = HAPPENS.iter().filter(|what| !counts.contains_key(**what)).collect();
    assert!(cases < CASES || missed.is_empty(), "none of {cases} cases came to {missed:?}");
}

/// A database of its own for each number of shards.
async fn place(redis: &RedisServer, shards: u32) -> Place {
    let database = u8::try_from(shards).unwrap() - 1;
    let mut consumers = Vec::new();
    for instance in CONSUMERS {
        let live = LiveSet::open(Options {
            url: format!("{}/{database}", redis.url()),
            ttl: Duration::from_millis(reference::TTL.unsigned_abs()),
            shards,
            prefix: "presence".into(),
            max_sessions: reference::MAX_SESSIONS,
            ended_ttl: Duration::from_millis(reference::ENDED_TTL.unsigned_abs()),
            instance: instance.into(),
            command_timeout: Duration::from_secs(5),
        })
        .unwrap();
        live.ready().await.unwrap();
        consumers.push(live);
    }
    Place { probe: Probe::connect(redis.port(), database).await, consumers, shards }
}
