//! `lua/block.lua`, `lua/fence.lua`, and who may raise a fence (`lua/raise.lua`)

use presenced::live::{HeartbeatOutcome, Loss, Verdict};
use presenced::model::HeartbeatWord::Online;

use super::{Bench, TTL_MS};

#[tokio::test]
async fn a_block_evicts_once_and_stands() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    let before = bench.live.fence(0).await.unwrap().moves;
    let verdicts = [(7, Verdict::Block), (8, Verdict::Block)];
    assert_eq!(bench.live.block(0, &before, &verdicts).await.unwrap(), Some(1));
    assert_eq!(bench.live.block(0, &before, &verdicts).await.unwrap(), None, "it was told something since");
    assert_eq!(bench.tell(&verdicts).await, 0);
    assert_eq!(bench.deadline(7), None);
    assert_eq!(bench.beat(7, "phone", Online).await, HeartbeatOutcome::Blocked);
    assert_eq!(bench.transitions(), ["7 online heartbeat", "7 offline blocked"]);
}

#[tokio::test]
async fn an_overtaken_answer_changes_nothing() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    // One instance asks SQL, and is slow; another tells Redis of a later answer.
    let slow = bench.live.fence(0).await.unwrap().moves;
    bench.tell(&[(7, Verdict::Block)]).await;
    assert_eq!(bench.live.block(0, &slow, &[(7, Verdict::Allow)]).await.unwrap(), None);
    assert_eq!(bench.live.blocked_members(0, None, 10).await.unwrap(), (vec![7], None));
    // Nor does one from before a loss of data, when the count began anew.
    let old = bench.live.fence(0).await.unwrap().moves;
    bench.redis.cli(&["FLUSHALL"]);
    bench.tell(&[(7, Verdict::Block)]).await;
    bench.tell(&[(7, Verdict::Block)]).await;
    assert_eq!(bench.live.block(0, &old, &[(7, Verdict::Allow)]).await.unwrap(), None);
    assert_eq!(bench.live.blocked_members(0, None, 10).await.unwrap(), (vec![7], None));
}

#[tokio::test]
async fn a_fence_is_raised_only_on_the_data_that_it_was_built_on() {
    let bench = Bench::unfenced().await;
    assert!(bench.live.begin_fence(0, "one").await.unwrap());
    assert!(!bench.live.begin_fence(0, "two").await.unwrap(), "one builds at a time");
    assert!(
        bench.live.renew_fence(&[0], "one").await.unwrap()
            && !bench.live.renew_fence(&[0], "two").await.unwrap()
    );
    bench.redis.cli(&["FLUSHALL"]);
    assert!(!bench.live.renew_fence(&[0], "one").await.unwrap());
    assert!(!bench.live.raise_fence(0, "5", "one", &Loss::default()).await.unwrap());
    assert_eq!(bench.live.fence(0).await.unwrap().cursor, None);
    assert!(bench.live.begin_fence(0, "three").await.unwrap());
    for _ in 0..2 {
        assert!(bench.live.raise_fence(0, "5", "three", &Loss::default()).await.unwrap());
    }
    bench.live.end_fence("another's").await.unwrap();
    assert!(bench.live.fence_is_being_built(0).await.unwrap());
    bench.live.end_fence("three").await.unwrap();
    assert!(!bench.live.fence_is_being_built(0).await.unwrap());
    assert!(bench.live.move_fence(0, "5", "6").await.unwrap());
    assert!(!bench.live.move_fence(0, "5", "7").await.unwrap(), "someone else has moved it");
    assert_eq!(bench.live.fence(0).await.unwrap().cursor.as_deref(), Some("6"));
}

#[tokio::test]
async fn an_allowed_account_may_come_back() {
    let bench = Bench::start().await;
    bench.tell(&[(7, Verdict::Block)]).await;
    for _ in 0..2 {
        bench.tell(&[(7, Verdict::Allow)]).await;
    }
    assert!(matches!(bench.beat(7, "phone", Online).await, HeartbeatOutcome::Present(_)));
}

#[tokio::test]
async fn a_deleted_account_leaves_without_a_word_and_stays_out() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    assert_eq!(bench.tell(&[(7, Verdict::Gone)]).await, 1);
    assert_eq!(bench.tell(&[(7, Verdict::Gone)]).await, 0);
    assert_eq!(bench.deadline(7), None);
    assert_eq!(bench.beat(7, "phone", Online).await, HeartbeatOutcome::Blocked);
    assert_eq!(bench.transitions(), ["7 online heartbeat"]);
}

#[tokio::test]
async fn whose_deadline_had_passed_was_not_taken_offline_by_the_block() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    bench.age(7, TTL_MS + 1_000);
    bench.tell(&[(7, Verdict::Block)]).await;
    assert_eq!(bench.transitions(), ["7 online heartbeat", "7 offline expired"]);
}

#[tokio::test]
async fn a_large_fence_is_walked_page_by_page_and_a_large_crowd_evicted_at_once() {
    let bench = Bench::start().await;
    for user in [3, 1_500, 2_400] {
        bench.beat(user, "phone", Online).await;
    }
    // A key without a place in the live set is nobody's presence, and goes too.
    bench.redis.cli(&["HSET", "presence:{0}:user:9", "status", "online"]);
    let verdict = |user| match user % 5 {
        0 => Verdict::Allow,
        4 => Verdict::Gone,
        _ => Verdict::Block,
    };
    let verdicts: Vec<(i64, Verdict)> = (1..=2_500).map(|user| (user, verdict(user))).collect();
    assert_eq!(bench.tell(&verdicts).await, 1, "the other two are allowed");
    assert_eq!(bench.redis.cli(&["EXISTS", "presence:{0}:user:9"]), "0");
    assert!(bench.deadline(3).is_none() && bench.deadline(1_500).is_some());
    assert_eq!(bench.transitions().last().unwrap(), "3 offline blocked");

    let (mut found, mut place, mut pages) = (std::collections::BTreeSet::new(), None, 0);
    loop {
        let (members, next) = bench.live.blocked_members(0, place, 100).await.unwrap();
        assert!(members.len() < 1_000, "{}", members.len());
        found.extend(members);
        pages += 1;
        place = next;
        if place.is_none() {
            break;
        }
    }
    let barred = verdicts.iter().filter(|(_, verdict)| *verdict != Verdict::Allow).map(|(user, _)| *user);
    assert!(found.into_iter().eq(barred) && pages > 10, "{pages}");
}
