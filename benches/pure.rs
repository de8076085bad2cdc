//! The pure parts, by the nanosecond: `make bench ONLY=pure`.

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use futures_util::future::join_all;
use presenced::identity::token::{Keyring, Kind};
use presenced::live::{self, Heartbeat, LiveSet};
use presenced::model::merge::{Evidence, Presence, effective};
use presenced::model::{
    Account, AccountStatus, HeartbeatWord, Millis, OnlineStatus, Role, SessionId, SessionKey, UserId,
};
use presenced::presence::PresenceService;
use presenced::store;

const SECRET: &str = "a secret of the benches that is long enough for HS256";
const NOW: Millis = Millis(1_800_000_000_000);

/// What every request pays first: one signature, and the claims.
fn token(criterion: &mut Criterion) {
    let ring = Keyring::new(SECRET, &[]);
    let sid = SessionId::parse("dGhpcyBpcyBhIHNlc3Npb24").expect("a good sid");
    let token =
        ring.mint(Kind::Access, 123_456, &sid, "bm9ib2R5IHJlYWRzIHRoaXM", NOW, 900_000).expect("HMAC signs");
    criterion.bench_function("token check", |bencher| {
        bencher.iter(|| ring.verify(black_box(&token), Kind::Access, NOW));
    });
}

/// What a list pays for each of its users.
fn merge(criterion: &mut Criterion) {
    let account = Account {
        id: 123_456,
        username: "ada".into(),
        email: "ada@example.com".into(),
        role: Role::User,
        status: AccountStatus::Active,
        is_active: true,
        mirror: OnlineStatus::Online,
        last_seen: Some(NOW),
    };
    let presence = Presence { status: OnlineStatus::Away, last_seen: Some(NOW) };
    let live = Evidence::Live { now: NOW, presence: Some(presence) };
    let mirror = Evidence::Mirror { now: NOW, ttl_ms: 120_000 };
    for (name, evidence) in [("merge, live", live), ("merge, by the mirror", mirror)] {
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| effective(black_box(&account), black_box(evidence)));
        });
    }
}

/// As many heartbeats as go into one call of the script.
const BATCH: UserId = 256;

fn who(user: UserId) -> SessionKey {
    SessionKey { user, sid: SessionId::parse("dGhpcyBpcyBhIHNlc3Npb24") }
}

/// A live set whose Redis is nobody: a call is made ready, finds that, and ends.
fn nowhere() -> LiveSet {
    let options = live::Options {
        url: "redis://127.0.0.1:1".into(),
        ttl: Duration::from_mins(2),
        prefix: "presence".into(),
        shards: 1,
        max_sessions: 50,
        ended_ttl: Duration::from_mins(15),
        instance: "bench".into(),
        command_timeout: Duration::from_secs(1),
    };
    LiveSet::open(options).expect("a plain URL")
}

/// What a heartbeat pays on its way to Redis and back, but for Redis: the arguments of a script call for a whole batch; and
/// the group commit, in which every heartbeat is refused, for there is no Redis.
fn batch(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let _inside = runtime.enter();
    let live = nowhere();
    let beats: Vec<Heartbeat> =
        (1..=BATCH).map(|user| Heartbeat { who: who(user), word: HeartbeatWord::Online }).collect();
    criterion.bench_function("script arguments of 256 heartbeats", |bencher| {
        bencher.iter(|| runtime.block_on(live.heartbeat(0, black_box(&beats))));
    });

    let folder = tempfile::tempdir().expect("a temporary folder");
    let url = format!("sqlite://{}", folder.path().join("presence.db").display());
    let store = runtime.block_on(store::open(&url, &store::Options::default())).expect("a new file");
    let presence = PresenceService::new(live, store, Duration::from_mins(15));
    criterion.bench_function("batcher, 256 heartbeats in and out", |bencher| {
        bencher.iter(|| {
            let each = beats.iter().map(|beat| presence.heartbeat(black_box(&beat.who), beat.word));
            runtime.block_on(join_all(each))
        });
    });
}

criterion_group!(pure, token, merge, batch);
criterion_main!(pure);
