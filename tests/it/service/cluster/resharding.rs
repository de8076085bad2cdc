//! Slots move under load.

use std::time::Duration;

use tokio::time::Instant;

use super::crowd::refusals;
use super::failover::{assert_nobody_flapped, end, split, stage_with_crowd};
use crate::support::cluster::RedisCluster;
use crate::support::mint::access_token;
use crate::support::poll::eventually;

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn shards_that_move_to_another_primary_lose_and_double_nothing() {
    let cluster = RedisCluster::start(&[]).await;
    let (stage, mut crowd) = stage_with_crowd(cluster.url()).await;
    let (theirs, _) = split(&cluster, 0, 0);
    let shards: Vec<u32> = (0..64).filter(|shard| cluster.of_shard_by(0, *shard) == 0).take(6).collect();
    let everyone: Vec<i64> = (2..=100).collect();
    let begun = Instant::now();
    for shard in &shards {
        let slot = RedisCluster::slot_of(*shard);
        cluster.begin_move(slot, 0, 1);
        cluster.finish_move(slot, 0, 1, 10);
    }
    crowd.heard_again(&everyone, Instant::now(), Duration::from_secs(10)).await;
    // A move that takes a while is waited for, and then there is an answer.
    let (slot, mover) = (RedisCluster::slot_of(shards[0]), i64::from(shards[0]) + 64);
    let held = Instant::now();
    cluster.begin_move(slot, 1, 2);
    let migrated = cluster.nodes[1].cli(&[
        "MIGRATE",
        "127.0.0.1",
        &cluster.nodes[2].port().to_string(),
        &format!("presence:{{{}}}:live", shards[0]),
        "0",
        "5000",
    ]);
    assert_eq!(migrated, "OK");
    let (code, body, _) = stage.apis[0].heartbeat(&access_token(mover, "phone")).await;
    assert_eq!(code, 503, "{body}");
    let waited = held.elapsed();
    assert!(waited > Duration::from_millis(900) && waited < Duration::from_secs(2), "{waited:?}");
    cluster.finish_move(slot, 1, 2, 100);
    let settled = Instant::now();
    crowd.heard_again(&everyone, settled, Duration::from_secs(5)).await;
    let (refused, longest) = refusals(&crowd.told(), &everyone, begun, held);
    println!("{} refused while {} slots moved, the longest answer {longest:?}", refused.len(), shards.len());
    assert!(refused.is_empty(), "{:?}", refused[0]);
    let theirs_moved = theirs.iter().filter(|user| shards.contains(&u32::try_from(*user % 64).unwrap()));
    assert!(theirs_moved.count() > 3);

    // The new owners tell of the expiries.
    let events = async |node: usize| {
        let stats = cluster.nodes[node].cli(&["CONFIG", "GET", "notify-keyspace-events"]);
        let listeners = cluster.nodes[node].cli(&["PUBSUB", "NUMSUB", "__keyevent@0__:expired"]);
        stats.contains('E') && listeners.ends_with('2')
    };
    assert!(events(1).await && events(2).await);
    assert_nobody_flapped(&stage.histories().await);
    // And a shard that has moved is swept where it lies now, at once.
    let lost = end(&stage, &mut crowd).await;
    assert_eq!(lost, 0, "acknowledged transitions were lost");
    let late = stage.histories().await;
    let late = late.iter().filter(|row| row[3] == "expired");
    let latest = late.map(|row| row[5].parse::<i64>().unwrap() - row[4].parse::<i64>().unwrap()).max();
    assert!(latest.is_some_and(|latest| latest <= 1_000), "deadline to SQL {latest:?} ms");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_primary_that_has_given_all_its_slots_away_is_left_and_a_new_one_is_found() {
    let cluster = RedisCluster::start(&[]).await;
    let (stage, mut crowd) = stage_with_crowd(cluster.url()).await;
    let shards: Vec<u32> = (0..64).filter(|shard| cluster.of_shard_by(0, *shard) == 0).collect();
    // All slots of the first that hold anything of ours go to the second, and one of the third's.
    for shard in shards {
        let slot = RedisCluster::slot_of(shard);
        cluster.begin_move(slot, 0, 1);
        cluster.finish_move(slot, 0, 1, 100);
    }
    let everyone: Vec<i64> = (2..=100).collect();
    crowd.heard_again(&everyone, Instant::now(), Duration::from_secs(10)).await;
    // The one that has nothing left dies: nobody's concern, but readyz tells, for slots are missing.
    let killed = Instant::now();
    cluster.nodes[0].kill().await;
    crowd.heard_again(&everyone, Instant::now(), Duration::from_secs(5)).await;
    let (refused, _) = refusals(&crowd.told(), &everyone, killed, Instant::now());
    assert!(refused.is_empty(), "{refused:?}");
    eventually(Duration::from_secs(20), async || {
        let (code, body, _) = stage.apis[0].get("/readyz", None).await;
        if code == 200 { Ok(()) } else { Err(body) }
    })
    .await;
    assert_nobody_flapped(&stage.histories().await);
    assert_eq!(end(&stage, &mut crowd).await, 0);
}
