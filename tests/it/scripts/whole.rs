//! `lua/lib/life.lua`: what a shard may do that has lost one of the keys that belong together, until its fence is raised again.

use presenced::live::{Checked, HeartbeatOutcome, Loss, StatusOutcome, Verdict};
use presenced::model::HeartbeatWord::{Away, Online};
use presenced::model::{Millis, OnlineStatus};

use super::life::begin_another_life;
use super::{BLOCKED, Bench, ENDED, FENCE, LIVE, STREAM, TTL_MS, key, session};

const ONLINE: HeartbeatOutcome = HeartbeatOutcome::Present(OnlineStatus::Online);

/// A shard with a user who is present (7), one whose deadline has passed (8), and a blocked one (6); of the first a session has
/// ended. Redis has been heard for long enough to miss users.
async fn busy_shard() -> Bench {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    bench.beat(8, "phone", Online).await;
    bench.age(8, TTL_MS + 1_000);
    bench.tell(&[(6, Verdict::Block)]).await;
    bench.live.leave(7, &session("tablet"), Millis(0)).await.unwrap();
    bench.live.epoch(0).await.unwrap();
    bench.age_epoch(TTL_MS * 2);
    bench
}

/// What waits until somebody has compared Redis with SQL, and what goes on.
async fn assert_waits(bench: &Bench, lost: &str) {
    let fence = bench.live.fence(0).await.unwrap();
    assert_eq!((fence.cursor, fence.former), (None, None), "{lost}");
    assert_eq!(fence.is_damaged, [LIVE, STREAM].contains(&lost), "{lost}");
    assert_eq!(bench.beat(7, "phone", Online).await, ONLINE, "{lost}: a steady heartbeat goes on");
    for (user, sid) in [(7, "laptop"), (7, "tablet"), (8, "phone"), (9, "phone"), (6, "phone")] {
        for word in [Online, Away] {
            assert_eq!(bench.beat(user, sid, word).await, HeartbeatOutcome::Unfenced, "{lost}: {user} {sid}");
        }
    }
    assert_eq!(
        bench.live.set_status(9, OnlineStatus::Online).await.unwrap(),
        StatusOutcome::Unfenced,
        "{lost}"
    );
    assert!(!bench.live.due(0, 10).await.unwrap().fenced, "{lost}");
    assert_eq!(bench.live.claim(0, &[8]).await.unwrap(), 0, "{lost}");
    assert_eq!(bench.live.reconcile(0, &[(9, None)]).await.unwrap(), None, "{lost}");
    let phone = key(7, "phone").sid;
    assert_eq!(bench.live.check(7, phone.as_ref()).await.unwrap(), Checked::Unfenced, "{lost}");
}

async fn loses(lost: &str) {
    let bench = busy_shard().await;
    let before = bench.transitions();
    assert_eq!(bench.redis.cli(&["DEL", lost]), "1");
    assert_waits(&bench, lost).await;
    // Whatever writes to the key that was lost makes it anew, but not whole.
    bench.tell(&[(5, Verdict::Block)]).await;
    bench.live.leave(7, &session("desk"), Millis(0)).await.unwrap();
    assert_waits(&bench, lost).await;
    assert_eq!(bench.transitions(), if lost == STREAM { vec![] } else { before }, "{lost}");

    // Somebody has compared Redis with SQL.
    bench.tell(&[(5, Verdict::Block), (6, Verdict::Block)]).await;
    bench.live.end_again(&[(7, session("tablet")), (7, session("desk"))]).await.unwrap();
    for _ in 0..2 {
        bench.raise_fence().await;
        let fence = bench.live.fence(0).await.unwrap();
        assert_eq!((fence.cursor.as_deref(), fence.is_damaged), (Some("0"), false), "{lost}");
    }
    assert_eq!(bench.beat(7, "laptop", Online).await, ONLINE, "{lost}");
    assert_eq!(bench.beat(7, "tablet", Online).await, HeartbeatOutcome::SessionEnded, "{lost}");
    assert_eq!(bench.beat(6, "phone", Online).await, HeartbeatOutcome::Blocked, "{lost}");
    assert_eq!(bench.beat(9, "phone", Online).await, ONLINE, "{lost}");
    let claimed = bench.live.claim(0, &[8]).await.unwrap();
    assert_eq!(claimed, u64::from(lost != LIVE), "{lost}: without a deadline there is nothing to claim");
    assert!(bench.deadline(7).is_some(), "{lost}: and who was present is");
}

#[tokio::test]
async fn a_shard_that_lost_its_blocked_accounts_lets_nobody_in() {
    loses(BLOCKED).await;
}

#[tokio::test]
async fn a_shard_that_lost_its_ended_sessions_lets_no_new_session_in() {
    loses(ENDED).await;
}

#[tokio::test]
async fn a_shard_that_lost_its_deadlines_claims_nothing_and_lets_nobody_in() {
    loses(LIVE).await;
}

#[tokio::test]
async fn a_shard_that_lost_its_stream_lets_nobody_in_whose_presence_nobody_would_record() {
    loses(STREAM).await;
}

#[tokio::test]
async fn a_shard_that_lost_its_fence_lets_nobody_in() {
    loses(FENCE).await;
}

#[tokio::test]
async fn a_mark_alone_makes_no_difference_to_what_is_counted_and_listed() {
    let bench = Bench::start().await;
    assert_eq!(bench.live.online_count().await.unwrap(), 0);
    assert_eq!(bench.live.measure().await.unwrap().present, 0);
    assert_eq!(bench.live.blocked_members(0, None, 10).await.unwrap(), (vec![], None));
    assert_eq!(bench.live.due(0, 10).await.unwrap().passed, []);
    assert_eq!(bench.live.seen(0, None, 10).await.unwrap().users, []);
    assert_eq!(bench.live.unsettled(10).await.unwrap(), Some(vec![]));
    let members = bench.live.members(0, None, 10).await.unwrap();
    assert!(members.users.is_empty() && members.strays.is_empty());
}

#[tokio::test]
async fn without_a_stream_no_transition_is_recorded_and_none_makes_a_new_stream() {
    let bench = Bench::start().await;
    for user in 1..=6 {
        bench.beat(user, "phone", Online).await;
    }
    bench.age(3, TTL_MS + 1_000);
    bench.redis.cli(&["DEL", STREAM]);
    bench.beat(1, "phone", Away).await;
    bench.live.leave(2, &session("phone"), Millis(0)).await.unwrap();
    bench.tell(&[(3, Verdict::Block), (4, Verdict::Block)]).await;
    bench.live.set_status(5, OnlineStatus::Offline).await.unwrap();
    assert_eq!(bench.live.affirm(0, &[6]).await.unwrap(), 1);
    assert_eq!(bench.redis.cli(&["EXISTS", STREAM]), "0");
    assert_eq!(bench.field(1, "status"), "away", "the live set goes on");
    assert!([2, 3, 4, 5].iter().all(|user| !bench.exists(*user)));
    bench.raise_fence().await;
    assert_eq!(bench.transitions(), [""; 0]);
    bench.beat(1, "phone", Online).await;
    assert_eq!(bench.transitions(), ["1 online heartbeat"]);
}

#[tokio::test]
async fn a_fence_of_a_former_life_is_taken_over_only_where_the_shard_is_whole() {
    for lost in [BLOCKED, ENDED, LIVE, STREAM, FENCE] {
        let bench = busy_shard().await;
        begin_another_life(&bench);
        let former = bench.live.fence(0).await.unwrap().former.unwrap();
        bench.redis.cli(&["DEL", lost]);
        assert_eq!(bench.live.fence(0).await.unwrap().former, None, "{lost}");
        for _ in 0..2 {
            assert!(!bench.live.adopt_fence(0, &former).await.unwrap(), "{lost}");
        }
        assert_eq!(bench.beat(9, "phone", Online).await, HeartbeatOutcome::Unfenced, "{lost}");
        bench.raise_fence().await;
        assert_eq!(bench.beat(9, "phone", Online).await, ONLINE, "{lost}");
    }
}

#[tokio::test]
async fn a_fence_that_moves_along_the_log_makes_no_shard_whole() {
    let bench = busy_shard().await;
    bench.redis.cli(&["DEL", BLOCKED]);
    assert!(bench.live.move_fence(0, "0", "1").await.unwrap());
    assert_eq!(bench.live.fence(0).await.unwrap().cursor, None);
    assert_eq!(bench.beat(9, "phone", Online).await, HeartbeatOutcome::Unfenced);
}

#[tokio::test]
async fn a_shard_that_never_had_a_fence_has_lost_nothing() {
    let bench = Bench::unfenced().await;
    assert!(!bench.live.fence(0).await.unwrap().is_damaged);
    bench.raise_fence_after(&Loss::default()).await;
    assert!(!bench.live.fence(0).await.unwrap().is_damaged);
    bench.redis.cli(&["FLUSHALL"]);
    assert!(!bench.live.fence(0).await.unwrap().is_damaged, "all is lost: that is another matter");
}

/// A shard of which only the instant of its last heartbeats is left has lost more than its fence.
#[tokio::test]
async fn a_shard_that_lost_fence_and_deadlines_is_damaged_whatever_life_it_was_of() {
    let bench = busy_shard().await;
    bench.redis.cli(&["DEL", FENCE, LIVE]);
    assert!(bench.live.fence(0).await.unwrap().is_damaged);
    let bench = busy_shard().await;
    begin_another_life(&bench);
    bench.redis.cli(&["DEL", LIVE]);
    assert!(bench.live.fence(0).await.unwrap().is_damaged);
}
