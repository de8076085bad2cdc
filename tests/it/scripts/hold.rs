//! Reads while deadlines are on hold, because data were lost (`lua/read.lua`, `lua/online.lua`).

use std::time::Duration;

use presenced::live::{InShard, Loss};
use presenced::model::HeartbeatWord::Online;
use presenced::model::{OnlineStatus, Page};

use super::{Bench, TTL_MS, live_set};

const HOLD: Loss =
    Loss { hold: Duration::from_mins(2), served_until: presenced::model::Millis(0), newest_in_sql: None };

#[tokio::test]
async fn after_a_loss_a_user_who_was_not_heard_yet_may_be_present_and_whoever_was_heard_is() {
    let bench = Bench::unfenced().await;
    bench.raise_fence_after(&HOLD).await;
    let (seen, _) = bench.beat_at(7, "phone", Online).await;
    bench.beat(8, "phone", Online).await;
    bench.age(8, TTL_MS + 1_000);
    let before = bench.everything();
    for _ in 0..2 {
        let read = bench.live.read_and_count(&[7, 8, 9]).await.unwrap();
        assert!(read.settles);
        assert_eq!(read.count, Some(1));
        let InShard::Known { presence: Some(presence), .. } = read.users[0] else { panic!("{read:?}") };
        assert_eq!((presence.status, presence.last_seen), (OnlineStatus::Online, Some(seen)));
        for user in &read.users[1..] {
            assert!(matches!(user, InShard::Unheard { now } if *now >= seen), "{user:?}");
        }
    }
    assert_eq!(bench.live.read(&[7, 9]).await.unwrap()[1], None);
    let page = bench.live.online(Page { number: 1, size: 10 }).await.unwrap();
    assert_eq!((page.count, page.users, page.settles), (1, vec![7], true));
    let past = bench.live.online(Page { number: 9, size: 10 }).await.unwrap();
    assert_eq!((past.count, past.settles), (1, true));
    assert_eq!(bench.everything(), before, "reads never write");
}

#[tokio::test]
async fn when_the_hold_is_over_a_user_who_was_not_heard_is_offline() {
    let bench = Bench::unfenced().await;
    bench.raise_fence_after(&HOLD).await;
    assert_eq!(bench.redis.cli(&["DEL", "presence:{0}:hold"]), "1");
    let read = bench.live.read_and_count(&[9]).await.unwrap();
    assert!(!read.settles);
    assert!(matches!(read.users[..], [InShard::Known { presence: None, .. }]), "{read:?}");
    assert!(!bench.live.online(Page { number: 1, size: 10 }).await.unwrap().settles);
}

#[tokio::test]
async fn one_shard_on_hold_makes_the_count_of_all_uncertain_and_its_own_users_alone_unheard() {
    let bench = Bench::unfenced().await;
    bench.redis.cli(&["SET", "presence:{0}:shards", "2"]);
    let live = live_set(&bench.redis, "two", 2);
    live.ready().await.unwrap();
    for shard in 0..2 {
        assert!(live.begin_fence(shard, "bench").await.unwrap());
        let loss = if shard == 1 { HOLD } else { Loss::default() };
        assert!(live.raise_fence(shard, "0", "bench", &loss).await.unwrap());
    }
    let read = live.read_and_count(&[2, 3]).await.unwrap();
    assert!(read.settles);
    assert!(
        matches!(read.users[..], [InShard::Known { presence: None, .. }, InShard::Unheard { .. }]),
        "{read:?}"
    );
    for page in [Page { number: 1, size: 10 }, Page { number: 2, size: 10 }] {
        assert!(live.online(page).await.unwrap().settles);
    }
}
