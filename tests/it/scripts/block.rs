//! `lua/block.lua`

use presenced::live::{Fence, HeartbeatOutcome, Verdict};
use presenced::model::HeartbeatWord::Online;

use super::{Bench, TTL_MS};

#[tokio::test]
async fn a_block_evicts_once_and_stands() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    let from = bench.live.fence(0).await.unwrap().unwrap();
    let to = from.moved_to("41");
    let verdicts = [(7, Verdict::Block), (8, Verdict::Block)];
    assert_eq!(bench.live.block(0, Some(&from), Some(&to), &verdicts).await.unwrap(), Some(1));
    assert_eq!(
        bench.live.block(0, Some(&from), Some(&to), &verdicts).await.unwrap(),
        None,
        "the fence has moved"
    );
    assert_eq!(bench.live.block(0, Some(&to), None, &verdicts).await.unwrap(), Some(0));
    assert_eq!(bench.live.fence(0).await.unwrap(), Some(to));
    assert_eq!(bench.deadline(7), None);
    assert_eq!(bench.beat(7, "phone", Online).await, HeartbeatOutcome::Blocked);
    assert_eq!(bench.transitions(), ["7 online heartbeat", "7 offline blocked"]);
}

#[tokio::test]
async fn an_overtaken_answer_changes_nothing() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    let stale = Fence { cursor: "0".into(), moves: 99 };
    assert_eq!(bench.live.block(0, Some(&stale), None, &[(7, Verdict::Block)]).await.unwrap(), None);
    assert!(bench.exists(7));
    assert_eq!(bench.live.blocked_members(0).await.unwrap(), Vec::<i64>::new());
}

#[tokio::test]
async fn an_allowed_account_may_come_back() {
    let bench = Bench::start().await;
    bench.live.block(0, None, None, &[(7, Verdict::Block)]).await.unwrap();
    for _ in 0..2 {
        bench.live.block(0, None, None, &[(7, Verdict::Allow)]).await.unwrap();
    }
    assert!(matches!(bench.beat(7, "phone", Online).await, HeartbeatOutcome::Present(_)));
}

#[tokio::test]
async fn a_deleted_account_leaves_without_a_word_and_stays_out() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    for evicted in [1, 0] {
        let gone = bench.live.block(0, None, None, &[(7, Verdict::Gone)]).await.unwrap();
        assert_eq!(gone, Some(evicted));
    }
    assert_eq!(bench.deadline(7), None);
    assert_eq!(bench.beat(7, "phone", Online).await, HeartbeatOutcome::Blocked);
    assert_eq!(bench.transitions(), ["7 online heartbeat"]);
}

#[tokio::test]
async fn whose_deadline_had_passed_was_not_taken_offline_by_the_block() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    bench.age(7, TTL_MS + 1_000);
    bench.live.block(0, None, None, &[(7, Verdict::Block)]).await.unwrap();
    assert_eq!(bench.transitions(), ["7 online heartbeat", "7 offline expired"]);
}
