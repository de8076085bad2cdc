//! Behind sentinels, of which some are dead, the primary dies or hangs under load.

use std::time::Duration;

use tokio::time::Instant;

use super::crowd::refusals;
use super::failover::{assert_nobody_flapped, end, stage_with_crowd};
use crate::support::mint::access_token;
use crate::support::poll::eventually;
use crate::support::sentinel::SentinelSet;

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_primary_that_dies_is_replaced_by_the_one_that_the_sentinels_name() {
    let mut set = SentinelSet::start().await;
    let (stage, mut crowd) = stage_with_crowd(set.url()).await;
    let everyone: Vec<i64> = (2..=100).collect();
    // The first of the URL is dead already: a majority is enough.
    set.sentinels[0].kill().await;

    let killed = Instant::now();
    set.servers[0].kill().await;
    let replaced = crowd.heard_again(&everyone, killed, Duration::from_secs(30)).await;
    println!("good again after {replaced:?}");
    let (refused, longest) = refusals(&crowd.told(), &everyone, killed, killed + replaced);
    assert!(refused.iter().all(|beat| beat.status == 503), "{refused:?}");
    println!("{} refused, the longest answer {longest:?}", refused.len());
    // Back as a replica of the new one.
    set.servers[0].restart().await;
    set.follows(2).await;
    crowd.heard_again(&everyone, Instant::now(), Duration::from_secs(10)).await;
    assert_nobody_flapped(&stage.histories().await);
    let victim = 50;
    stage.sql.run(&format!("UPDATE users SET status = 'banned' WHERE id = {victim}")).await;
    eventually(Duration::from_secs(2), async || {
        let (code, body, _) = stage.apis[0].heartbeat(&access_token(victim, "other")).await;
        if code == 403 { Ok(()) } else { Err((code, body)) }
    })
    .await;
    let lost = end(&stage, &mut crowd).await;
    println!("acknowledged transitions lost: {lost}");
    assert!(lost <= 25, "{lost} were lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_hung_primary_is_left_for_the_new_one_and_not_believed_when_it_wakes() {
    let set = SentinelSet::start().await;
    let (stage, mut crowd) = stage_with_crowd(set.url()).await;
    let everyone: Vec<i64> = (2..=100).collect();
    let begun = Instant::now();
    set.servers[0].pause();
    eventually(Duration::from_secs(30), async || {
        let primary = set.primary_by(2);
        if primary == 0 { Err(primary) } else { Ok(()) }
    })
    .await;
    let replaced = Instant::now();
    let again = crowd.heard_again(&everyone, replaced, Duration::from_secs(10)).await;
    println!("replaced after {:?}, good again {again:?} later", replaced - begun);
    let (_, longest) = refusals(&crowd.told(), &everyone, begun, replaced + again);
    assert!(longest < Duration::from_secs(2), "{longest:?}");

    // It takes itself for the primary until the sentinels tell it otherwise, which is some seconds.
    let woken = Instant::now();
    set.servers[0].resume();
    set.follows(2).await;
    crowd.heard_again(&everyone, Instant::now(), Duration::from_secs(10)).await;
    let (refused, _) = refusals(&crowd.told(), &everyone, woken, Instant::now());
    assert!(refused.is_empty(), "{refused:?}");
    assert_nobody_flapped(&stage.histories().await);
    let lost = end(&stage, &mut crowd).await;
    println!("acknowledged transitions lost: {lost}");
    assert!(lost <= 25, "{lost} were lost");
}
