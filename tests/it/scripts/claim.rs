//! `lua/claim.lua` and `lua/due.lua`

use presenced::model::HeartbeatWord::Online;

use super::{Bench, TTL_MS};

#[tokio::test]
async fn a_passed_deadline_is_claimed_once_at_its_instant() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    bench.age(7, TTL_MS + 1_000);
    let deadline: i64 = bench.redis.cli(&["ZSCORE", "presence:{0}:live", "7"]).parse().unwrap();
    assert_eq!(bench.live.claim(0, &[7]).await.unwrap(), 1);
    assert_eq!(bench.live.claim(0, &[7]).await.unwrap(), 0);
    assert_eq!(bench.deadline(7), None);
    let entries = bench.entries();
    assert_eq!(entries.len(), 2);
    assert_eq!(
        entries[1],
        ["7", "offline", "expired", &deadline.to_string(), &(deadline - TTL_MS).to_string()]
            .map(ToString::to_string)
    );
}

#[tokio::test]
async fn a_late_expiry_does_not_take_a_returned_user_offline() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    bench.age(7, TTL_MS + 1_000);
    bench.beat(7, "phone", Online).await;
    assert_eq!(bench.live.claim(0, &[7]).await.unwrap(), 0);
    assert!(bench.deadline(7).is_some());
    assert_eq!(bench.transitions(), ["7 online heartbeat", "7 offline expired", "7 online heartbeat"]);
}

#[tokio::test]
async fn nobody_is_claimed_before_the_deadline_nor_whom_nobody_knows() {
    let bench = Bench::start().await;
    bench.beat(7, "phone", Online).await;
    assert_eq!(bench.live.claim(0, &[7, 8]).await.unwrap(), 0);
    assert!(bench.exists(7));
}

#[tokio::test]
async fn of_many_who_claim_at_once_one_wins() {
    let bench = Bench::start().await;
    let users: Vec<i64> = (1..=200).collect();
    for user in &users {
        bench.redis.cli(&["ZADD", "presence:{0}:live", "1000", &user.to_string()]);
    }
    let claims = (0..16).map(|_| bench.live.claim(0, &users));
    let won: u64 = futures_util::future::try_join_all(claims).await.unwrap().into_iter().sum();
    assert_eq!(won, 200);
    assert_eq!(bench.entries().len(), 200);
}

#[tokio::test]
async fn due_names_the_passed_the_next_and_the_strays() {
    let bench = Bench::start().await;
    let empty = bench.live.due(0, 10).await.unwrap();
    assert_eq!((empty.next_in, empty.fenced), (None, true));
    bench.beat(1, "phone", Online).await;
    bench.beat(2, "phone", Online).await;
    bench.age(1, TTL_MS + 10);
    bench.redis.cli(&["ZADD", "presence:{0}:live", "4", "007", "5", "nobody"]);
    let due = bench.live.due(0, 10).await.unwrap();
    assert_eq!(due.passed.iter().map(|(user, _)| *user).collect::<Vec<_>>(), [1]);
    assert_eq!(due.strays, ["007", "nobody"]);
    let next = due.next_in.unwrap().as_millis();
    assert!((115_000..=120_000).contains(&next), "{next}");
    assert!(bench.live.due(0, 1).await.unwrap().next_in.unwrap().is_zero(), "there is more");
}
