//! `lua/unsettled.lua`: the users of whom SQL's mirror may not know the latest yet, all of them.

use std::collections::BTreeMap;

use presenced::model::HeartbeatWord::{Away, Online};
use presenced::model::{Millis, OnlineStatus, UserId};

use super::{Bench, LIVE, STREAM, TTL_MS, session};

async fn unsettled(bench: &Bench, most: usize) -> Option<BTreeMap<UserId, OnlineStatus>> {
    let found = bench.live.unsettled(most).await.unwrap()?;
    let users: BTreeMap<_, _> = found.iter().copied().collect();
    assert_eq!(users.len(), found.len(), "each once");
    Some(users)
}

#[tokio::test]
async fn the_unsettled_are_those_in_the_stream_and_those_past_their_deadline() {
    let bench = Bench::start().await;
    assert_eq!(unsettled(&bench, 0).await, Some(BTreeMap::new()));
    bench.beat(1, "phone", Online).await;
    bench.beat(1, "phone", Away).await;
    bench.beat(2, "phone", Online).await;
    bench.age(2, TTL_MS + 5);
    bench.beat(3, "phone", Online).await;
    bench.live.leave(3, &session("phone"), Millis(0)).await.unwrap();
    let before = bench.everything();
    for _ in 0..2 {
        let expected = [(1, OnlineStatus::Away), (2, OnlineStatus::Offline), (3, OnlineStatus::Offline)];
        assert_eq!(unsettled(&bench, 100).await, Some(expected.into()));
    }
    assert_eq!(bench.everything(), before, "reads never write");
}

/// Adds what so many users leave behind who came online and whom SQL does not know; of the second half the deadline has passed, many
/// at one instant.
fn crowd(bench: &Bench, users: i64) {
    const CROWD: &str = "for user = 1, tonumber(ARGV[1]) do
          redis.call('XADD', KEYS[1], '*', 'user', user, 'to', 'online', 'reason', 'login', 'at', 1, 'seen', 1)
          if user * 2 > tonumber(ARGV[1]) then
            redis.call('ZADD', KEYS[2], 1000 + math.floor(user / 900), user)
          end
        end
        return 'added'";
    assert_eq!(bench.redis.cli(&["EVAL", CROWD, "2", STREAM, LIVE, &users.to_string()]), "added");
}

#[tokio::test]
async fn of_five_thousand_who_are_unsettled_none_is_left_out() {
    let bench = Bench::start().await;
    crowd(&bench, 5_000);
    let found = unsettled(&bench, 7_500).await.unwrap();
    let online = found.iter().filter(|(_, status)| **status == OnlineStatus::Online);
    assert!(online.map(|(user, _)| *user).eq(1..=2_500));
    let offline = found.iter().filter(|(_, status)| **status == OnlineStatus::Offline);
    assert!(offline.map(|(user, _)| *user).eq(2_501..=5_000));
    assert_eq!(unsettled(&bench, 7_499).await, None, "a cut list would be a wrong one");
    assert_eq!(unsettled(&bench, 4_999).await, None);
    bench.redis.cli(&["DEL", LIVE]);
    assert_eq!(unsettled(&bench, 5_000).await.unwrap().len(), 5_000);
    // As many as one page holds, in the stream and past their deadlines.
    bench.redis.cli(&["DEL", STREAM]);
    crowd(&bench, 4_000);
    assert_eq!(unsettled(&bench, 6_000).await.unwrap().len(), 4_000);
}

#[tokio::test]
async fn a_deadline_that_is_claimed_while_the_pages_are_read_is_in_one_of_them() {
    const CROWD: &str =
        "for user = 1, 9000 do redis.call('ZADD', KEYS[1], 1000 + user, user) end return 'added'";
    let bench = Bench::start().await;
    for _ in 0..3 {
        assert_eq!(bench.redis.cli(&["EVAL", CROWD, "1", LIVE]), "added");
        let claims = async {
            for first in (1..=9_000).step_by(250) {
                let users: Vec<UserId> = (first..first + 250).collect();
                bench.live.claim(0, &users).await.unwrap();
            }
        };
        let reads = async {
            loop {
                let found = unsettled(&bench, usize::MAX).await.unwrap();
                assert!(found.into_keys().eq(1..=9_000), "some are missing");
                if bench.live.due(0, 1).await.unwrap().passed.is_empty() {
                    break;
                }
            }
        };
        tokio::join!(claims, reads);
        bench.redis.cli(&["XTRIM", STREAM, "MAXLEN", "0"]);
    }
}
