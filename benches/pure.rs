//! The pure parts, by the nanosecond: `make bench ONLY=pure`.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use presenced::identity::token::{Keyring, Kind};
use presenced::model::merge::{Evidence, Presence, effective};
use presenced::model::{Account, AccountStatus, Millis, OnlineStatus, Role, SessionId};

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
    let live = Evidence::Live(Some(Presence { status: OnlineStatus::Away, last_seen: NOW }));
    let mirror = Evidence::Mirror { now: NOW, ttl_ms: 120_000 };
    for (name, evidence) in [("merge, live", live), ("merge, by the mirror", mirror)] {
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| effective(black_box(&account), black_box(evidence)))
        });
    }
}

criterion_group!(pure, token, merge);
criterion_main!(pure);
