//! Redis slow but alive: whoever has waited long behind one call is told so, and not made to wait for another.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::{Database, SOON, Scene};
use crate::support::http::Api;
use crate::support::mint::access_token;
use crate::support::poll::eventually;

/// What a heartbeat may wait for the call before its own (`MAX_WAIT` of the group commit), with room for measuring.
const TOO_LONG: Duration = Duration::from_millis(600);
const SHORT_ENOUGH: Duration = Duration::from_millis(400);
/// A call that takes longer is given up.
const CALL: Duration = Duration::from_millis(1_500);

fn beat(api: &Api, user: i64) -> JoinHandle<u16> {
    let api = api.clone();
    tokio::spawn(async move { api.heartbeat(&access_token(user, "phone")).await.0.as_u16() })
}

/// Gives what was sent before a moment to arrive.
async fn arrived(api: &Api) {
    sleep(Duration::from_millis(100)).await;
    assert_eq!(api.get("/healthz", None).await.0.as_u16(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_has_waited_long_behind_a_slow_call_is_not_made_to_wait_for_another() {
    let scene = Scene::start(Database::Sqlite, 3, Duration::from_mins(1), &[]).await;
    for user in 1..=3 {
        assert_eq!(beat(&scene.api, user).await.unwrap(), 200);
    }
    // Where the machine itself stood still for too long, the call was given up, which is not the subject.
    for _ in 0..10 {
        let begun = Instant::now();
        scene.redis.pause();
        let under_way = beat(&scene.api, 1);
        arrived(&scene.api).await;
        let early = beat(&scene.api, 2);
        arrived(&scene.api).await;
        sleep(TOO_LONG).await;
        let sent = Instant::now();
        let late = beat(&scene.api, 3);
        arrived(&scene.api).await;
        scene.redis.resume();
        let (under_way, early, late) = tokio::join!(under_way, early, late);
        if begun.elapsed() < CALL && sent.elapsed() < SHORT_ENOUGH {
            let statuses = [under_way, early, late].map(Result::unwrap);
            assert_eq!(statuses, [200, 503, 200]);
            return;
        }
        eventually(SOON, async || {
            let status = beat(&scene.api, 1).await.unwrap();
            if status == 200 { Ok(()) } else { Err(status) }
        })
        .await;
    }
    panic!("the machine stood still ten times");
}
