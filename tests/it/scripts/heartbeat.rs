//! `lua/heartbeat.lua`

use presenced::live::Heartbeat;
use presenced::model::HeartbeatWord::{self, Away, Login, Online, Touch};
use presenced::model::OnlineStatus;
use presenced::model::UserId;

use super::{Bench, TTL_MS, key};

const ONLINE: Option<OnlineStatus> = Some(OnlineStatus::Online);
const AWAY: Option<OnlineStatus> = Some(OnlineStatus::Away);

/// Runs the script alone.
async fn renew(bench: &Bench, batch: &[(UserId, &str, HeartbeatWord)]) -> (i64, Vec<Option<OnlineStatus>>) {
    let batch: Vec<_> =
        batch.iter().map(|(user, sid, word)| Heartbeat { who: key(*user, sid), word: *word }).collect();
    let (now, renewed) = bench.live.heartbeat(0, &batch).await.unwrap();
    (now.0, renewed)
}

/// All that Redis holds of a user.
fn held(bench: &Bench, user: UserId) -> (String, Option<i64>) {
    (bench.redis.cli(&["HGETALL", &format!("presence:{{0}}:user:{user}")]), bench.deadline(user))
}

#[tokio::test]
async fn who_is_present_and_says_nothing_new_is_renewed() {
    let bench = Bench::start().await;
    bench.beats(&[(1, "phone", Online), (2, "phone", Away), (3, "", Online)]).await;
    for user in 1..=3 {
        bench.age(user, 30_000);
    }
    let before = bench.transitions();
    let batch = [(1, "phone", Online), (2, "phone", Away), (3, "", Online)];
    let (_, renewed) = renew(&bench, &batch).await;
    assert_eq!(renewed, [ONLINE, AWAY, ONLINE]);
    // A touch repeats what the session said last; and a second run renews again.
    let batch = [(1, "phone", Touch), (2, "phone", Touch), (3, "", Touch)];
    let (now, renewed) = renew(&bench, &batch).await;
    assert_eq!(renewed, [ONLINE, AWAY, ONLINE]);
    assert_eq!(bench.field(1, "s:phone"), now.to_string());
    assert_eq!(bench.field(2, "s:phone"), format!("{now} away"));
    assert_eq!(bench.field(3, "s:"), now.to_string());
    for user in 1..=3 {
        assert_eq!(bench.deadline(user), Some(now + TTL_MS));
    }
    assert_eq!(bench.transitions(), before);
}

#[tokio::test]
async fn whatever_may_change_something_is_left_untouched() {
    let bench = Bench::start().await;
    bench.beats(&[(1, "phone", Online), (2, "phone", Away), (3, "phone", Online)]).await;
    bench.live.set_status(4, OnlineStatus::Online).await.unwrap();
    bench.age_session(3, "phone", TTL_MS + 1_000);
    bench.redis.cli(&["SET", "presence:{0}:user:5", "of another type"]);
    let left = [
        (1, "phone", Away),
        (1, "laptop", Online),
        (1, "laptop", Touch),
        (1, "phone", Login),
        (2, "phone", Online),
        (3, "phone", Touch),
        (4, "phone", Online),
        (4, "phone", Touch),
        (6, "phone", Online),
        (6, "", Touch),
    ];
    for one in left {
        let before = held(&bench, one.0);
        assert_eq!(renew(&bench, &[one]).await.1, [None], "{one:?}");
        assert_eq!(held(&bench, one.0), before, "{one:?}");
    }
    assert_eq!(renew(&bench, &[(5, "phone", Online)]).await.1, [None]);
    assert_eq!(bench.redis.cli(&["GET", "presence:{0}:user:5"]), "of another type");
}

#[tokio::test]
async fn heartbeats_of_one_user_keep_their_order() {
    let bench = Bench::start().await;
    bench.beats(&[(1, "phone", Online), (2, "phone", Online)]).await;
    let batch = [(1, "phone", Away), (2, "phone", Online), (1, "phone", Online), (2, "phone", Touch)];
    assert_eq!(renew(&bench, &batch).await.1, [None, ONLINE, None, ONLINE]);
    bench.beats(&batch).await;
    let words = ["1 online heartbeat", "2 online heartbeat", "1 away heartbeat", "1 online heartbeat"];
    assert_eq!(bench.transitions(), words);
}

#[tokio::test]
async fn the_largest_batch_is_one_call() {
    let bench = Bench::start().await;
    let batch: Vec<_> = (1..=256).map(|user| (user, "phone", Online)).collect();
    bench.beats(&batch).await;
    let (now, renewed) = renew(&bench, &batch).await;
    assert_eq!(renewed, [ONLINE; 256]);
    assert!((1..=256).all(|user| bench.deadline(user) == Some(now + TTL_MS)));
}

#[tokio::test]
async fn an_instant_of_it_is_noted_where_the_fence_stands_and_not_too_often() {
    let heard = |bench: &Bench| bench.redis.cli(&["GET", "presence:{0}:heard"]);
    let bench = Bench::unfenced().await;
    renew(&bench, &[(1, "phone", Online)]).await;
    assert_eq!(heard(&bench), "");
    bench.raise_fence().await;
    bench.redis.cli(&["SET", "presence:{0}:heard", "1000"]);
    let (first, _) = renew(&bench, &[(1, "phone", Online)]).await;
    assert_eq!(heard(&bench), first.to_string());
    let (now, _) = renew(&bench, &[(1, "phone", Online)]).await;
    assert_eq!(heard(&bench), if now - first < 100 { first.to_string() } else { now.to_string() });
}
