//! A primary hangs: for less than it takes to replace it, and for more.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::crowd::refusals;
use super::failover::{assert_left, assert_nobody_flapped, end, split, stage_with_crowd};
use crate::support::cluster::{NODE_TIMEOUT, RedisCluster};
use crate::support::poll::eventually;

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_primary_that_hangs_for_a_moment_harms_no_other_and_goes_on() {
    let cluster = RedisCluster::start(&[]).await;
    let (stage, mut crowd) = stage_with_crowd(cluster.url()).await;
    let (theirs, others) = split(&cluster, 1, 0);
    // Each time for another part of what a call waits.
    for hang in [NODE_TIMEOUT / 8, NODE_TIMEOUT / 2] {
        let begun = Instant::now();
        cluster.nodes[0].pause();
        // Time itself is the subject.
        sleep(hang).await;
        cluster.nodes[0].resume();
        crowd.heard_again(&theirs, Instant::now(), Duration::from_secs(10)).await;
        let (refused, longest) = refusals(&crowd.told(), &others, begun, Instant::now());
        assert!(refused.is_empty() && longest < Duration::from_millis(500), "{longest:?}, {refused:?}");
    }
    assert_eq!(cluster.of_shard_by(1, 0), cluster.of_shard_by(0, 0));
    assert_nobody_flapped(&stage.histories().await);
    assert_eq!(end(&stage, &mut crowd).await, 0, "acknowledged transitions were lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_hung_primary_is_replaced_and_does_not_speak_for_its_old_slots_when_it_wakes() {
    let cluster = RedisCluster::start(&[]).await;
    let (stage, mut crowd) = stage_with_crowd(cluster.url()).await;
    let (theirs, others) = split(&cluster, 1, 0);
    let slot = RedisCluster::slot_of(u32::try_from(theirs[0] % 64).unwrap());

    let begun = Instant::now();
    cluster.nodes[0].pause();
    eventually(Duration::from_secs(20), async || {
        let owner = cluster.owner_by(1, slot);
        if owner == 0 { Err(owner) } else { Ok(()) }
    })
    .await;
    let replaced = Instant::now();
    let again = crowd.heard_again(&theirs, replaced, Duration::from_secs(10)).await;
    println!("replaced after {:?}, good again {again:?} later", replaced - begun);
    let told = crowd.told();
    let (refused, longest) = refusals(&told, &others, begun, Instant::now());
    assert!(refused.is_empty() && longest < Duration::from_millis(500), "{longest:?}, {refused:?}");
    let (refused, longest) = refusals(&told, &theirs, begun, replaced + again);
    assert!(longest < Duration::from_secs(2), "{longest:?}");
    assert!(refused.iter().all(|beat| beat.status == 503), "{refused:?}");

    // Woken, it believes itself the primary for a moment. Whatever was on its way to it was not acknowledged.
    let woken = Instant::now();
    cluster.nodes[0].resume();
    cluster.settled().await;
    assert!(cluster.nodes[0].cli(&["ROLE"]).starts_with("slave"));
    let everyone: Vec<i64> = theirs.iter().chain(&others).copied().collect();
    crowd.heard_again(&everyone, Instant::now(), Duration::from_secs(10)).await;
    let (refused, _) = refusals(&crowd.told(), &everyone, woken, Instant::now());
    assert!(refused.is_empty(), "{refused:?}");
    assert_nobody_flapped(&stage.histories().await);
    let lost = end(&stage, &mut crowd).await;
    println!("acknowledged transitions lost: {lost}");
    assert_left(&cluster, 0);
    assert!(lost <= theirs.len() / 4, "{lost} were lost");
}
