//! `lua/check.lua`: whether account and session are good, for a request that is no activity.

use presenced::live::{Checked, Verdict};
use presenced::model::HeartbeatWord::Online;
use presenced::model::{Millis, UserId};

use super::{Bench, ENDED, key, session};

async fn check(bench: &Bench, user: UserId, sid: &str) -> Checked {
    let before = bench.everything();
    let first = bench.live.check(user, key(user, sid).sid.as_ref()).await.unwrap();
    let again = bench.live.check(user, key(user, sid).sid.as_ref()).await.unwrap();
    assert_eq!((first, bench.everything()), (again, before), "reads never write");
    first
}

#[tokio::test]
async fn a_request_that_is_no_activity_is_checked_and_makes_nobody_present() {
    let bench = Bench::unfenced().await;
    assert_eq!(check(&bench, 7, "phone").await, Checked::Unfenced);
    bench.raise_fence().await;
    assert_eq!(check(&bench, 7, "phone").await, Checked::Good);
    assert_eq!(check(&bench, 7, "").await, Checked::Good, "a token without a session");
    assert!(!bench.exists(7) && bench.transitions().is_empty());
}

#[tokio::test]
async fn a_session_that_has_ended_is_refused_and_no_other() {
    let bench = Bench::start().await;
    for user in [7, 8] {
        bench.beat(user, "phone", Online).await;
    }
    bench.live.leave(7, &session("phone"), Millis(0)).await.unwrap();
    assert_eq!(check(&bench, 7, "phone").await, Checked::SessionEnded);
    assert_eq!(check(&bench, 7, "laptop").await, Checked::Good);
    assert_eq!(check(&bench, 7, "").await, Checked::Good);
    assert_eq!(check(&bench, 8, "phone").await, Checked::Good, "it is another user's");
}

#[tokio::test]
async fn of_a_blocked_account_the_block_is_named_whether_or_not_the_session_has_ended() {
    let bench = Bench::start().await;
    bench.live.leave(7, &session("phone"), Millis(0)).await.unwrap();
    bench.tell(&[(7, Verdict::Block), (8, Verdict::Gone)]).await;
    for (user, sid) in [(7, "phone"), (7, "laptop"), (7, ""), (8, "phone")] {
        assert_eq!(check(&bench, user, sid).await, Checked::Blocked, "{user} {sid}");
    }
    bench.tell(&[(7, Verdict::Allow)]).await;
    assert_eq!(check(&bench, 7, "phone").await, Checked::SessionEnded);
    bench.redis.cli(&["ZREM", ENDED, "7:phone"]);
    assert_eq!(check(&bench, 7, "phone").await, Checked::Good);
}
