//! Ids above 2^53, which are one and the same number to whatever counts in doubles: two users all the same.

use presenced::live::{Checked, HeartbeatOutcome, InShard, Mend, Mended, Turn, Verdict};
use presenced::model::HeartbeatWord::{Away, Online};
use presenced::model::{Millis, OnlineCursor, OnlineStatus, Page, Place, UserId};

use super::{Bench, LIVE, TTL_MS, key, session};

const ADA: UserId = 1_234_567_890_123_456_789;
/// The nearest double of Ada's id is this one's, too.
const BOB: UserId = 1_234_567_890_123_456_768;
const LARGEST: UserId = i64::MAX;

#[tokio::test]
async fn a_heartbeat_is_that_of_one_of_them_in_keys_stream_reads_and_lists() {
    let bench = Bench::start().await;
    let (seen, _) = bench.beat_at(ADA, "phone", Online).await;
    assert!(bench.exists(ADA) && !bench.exists(BOB));
    assert_eq!(bench.redis.cli(&["ZRANGE", LIVE, "0", "-1"]), format!("0\n{ADA}"));
    assert_eq!(bench.deadline(ADA), Some(seen.0 + TTL_MS));
    let read = bench.live.read(&[BOB, ADA, LARGEST]).await.unwrap();
    assert_eq!(read.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true, false]);
    assert_eq!(bench.live.seen(0, None, 10).await.unwrap().users, [(ADA, seen)]);
    bench.beat(BOB, "phone", Away).await;
    bench.beat(LARGEST, "phone", Online).await;
    let listed = async |place: Place<OnlineCursor>| bench.live.online(place).await.unwrap();
    let first = listed(Place::Page(Page { number: 1, size: 1 })).await;
    let (mut met, mut next) = (first.users, first.next);
    while let Some(cursor) = next {
        let page = listed(Place::After(cursor, 1)).await;
        met.extend(page.users);
        next = page.next;
    }
    met.sort_unstable();
    assert_eq!(met, [BOB, ADA, LARGEST], "each is met once");
    let mut unsettled = bench.live.unsettled(10).await.unwrap().unwrap();
    unsettled.sort_unstable_by_key(|(user, _)| *user);
    let online = OnlineStatus::Online;
    assert_eq!(unsettled, [(BOB, OnlineStatus::Away), (ADA, online), (LARGEST, online)]);
    let Turn::Mine(work) = bench.live.take(0, 10).await.unwrap() else { panic!("nobody else is here") };
    let users: Vec<_> = work.transitions.iter().map(|transition| transition.user).collect();
    assert_eq!((users, work.unreadable.len()), (vec![ADA, BOB, LARGEST], 0));
}

#[tokio::test]
async fn a_deadline_is_claimed_of_one_of_them_and_exactly() {
    let bench = Bench::start().await;
    for user in [ADA, BOB] {
        bench.beat(user, "phone", Online).await;
        bench.age(user, TTL_MS + 1_000);
    }
    let due = bench.live.due(0, 10).await.unwrap();
    let mut passed: Vec<_> = due.passed.into_iter().map(|(user, _)| user).collect();
    passed.sort_unstable();
    assert_eq!((passed, due.strays.len()), (vec![BOB, ADA], 0));
    let mut unsettled = bench.live.unsettled(10).await.unwrap().unwrap();
    unsettled.sort_unstable_by_key(|(user, _)| *user);
    assert_eq!(unsettled, [(BOB, OnlineStatus::Offline), (ADA, OnlineStatus::Offline)]);
    for _ in 0..2 {
        bench.live.claim(0, &[ADA]).await.unwrap();
    }
    assert_eq!(bench.transitions()[2..], [format!("{ADA} offline expired")]);
    assert_eq!(bench.redis.cli(&["ZRANGE", LIVE, "0", "-1"]), format!("0\n{BOB}"));
}

#[tokio::test]
async fn a_block_an_end_and_a_word_of_the_administrator_meet_one_of_them() {
    let bench = Bench::start().await;
    bench.tell(&[(ADA, Verdict::Block)]).await;
    assert_eq!(bench.live.blocked_members(0, None, 10).await.unwrap().0, [ADA]);
    assert_eq!(bench.live.are_blocked(0, &[BOB, ADA]).await.unwrap(), [false, true]);
    assert_eq!(bench.beat(ADA, "phone", Online).await, HeartbeatOutcome::Blocked);
    assert!(matches!(bench.beat(BOB, "phone", Online).await, HeartbeatOutcome::Present(_)));
    bench.live.leave(ADA, &session("tablet"), Millis(0)).await.unwrap();
    let check = async |user, sid: &str| bench.live.check(user, key(user, sid).sid.as_ref()).await.unwrap();
    assert_eq!(check(ADA, "phone").await, Checked::Blocked);
    assert_eq!(check(BOB, "tablet").await, Checked::Good);
    bench.tell(&[(ADA, Verdict::Allow)]).await;
    assert_eq!(check(ADA, "tablet").await, Checked::SessionEnded);
    bench.live.set_status(ADA, OnlineStatus::Away).await.unwrap();
    assert_eq!(bench.field(BOB, "status"), "online");
    assert_eq!(bench.redis.cli(&["SMEMBERS", "presence:{0}:lent"]), ADA.to_string());
}

#[tokio::test]
async fn what_compares_and_mends_tells_them_apart() {
    let bench = Bench::start().await;
    bench.beat(ADA, "phone", Online).await;
    let page = bench.live.members(0, None, 10).await.unwrap();
    assert_eq!((page.users, page.strays.len()), (vec![ADA], 0));
    let found = bench.live.audit(0, &[ADA, BOB]).await.unwrap();
    assert_eq!(found.iter().map(|user| user.deadline.is_some()).collect::<Vec<_>>(), [true, false]);
    assert_eq!(bench.live.affirm(0, &[BOB, ADA]).await.unwrap(), 1);
    assert_eq!(bench.transitions(), [format!("{ADA} online heartbeat"), format!("{ADA} online heartbeat")]);
    bench.redis.cli(&["ZREM", LIVE, &ADA.to_string()]);
    let mend = |user| Mend { user, fallback: OnlineStatus::Online, tell: false };
    let mended = bench.live.mend(0, &[mend(BOB), mend(ADA)]).await.unwrap();
    assert_eq!(mended, [Mended::Nothing, Mended::DeadlineSet]);
    assert!(bench.deadline(ADA).is_some() && bench.deadline(BOB).is_none());
    bench.live.epoch(0).await.unwrap();
    bench.age_epoch(TTL_MS * 2);
    assert_eq!(bench.live.reconcile(0, &[(ADA, None), (BOB, None)]).await.unwrap(), Some(1));
    assert_eq!(bench.transitions().last().unwrap(), &format!("{BOB} offline expired"));
    let read = bench.live.read_what_answers(&[BOB, ADA]).await.unwrap();
    assert!(matches!(
        read[..],
        [InShard::Known { presence: None, .. }, InShard::Known { presence: Some(_), .. }]
    ));
    bench.age(ADA, -3_600_000);
    assert_eq!(bench.live.clock_back(0, &[BOB, ADA]).await.unwrap(), 1);
}
