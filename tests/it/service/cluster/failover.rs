//! A primary dies, or hands over, under load.

use std::time::Duration;

use tokio::time::Instant;

use super::crowd::{Crowd, refusals};
use super::{SHARDS, Stage, all_ready};
use crate::support::cluster::RedisCluster;
use crate::support::mint::access_token;
use crate::support::poll::eventually;

const USERS: i64 = 100;
/// Longer than a failover, so that nobody who goes on is taken offline by it.
const TTL: Duration = Duration::from_secs(8);

/// Those whose shards the node serves, and the others, by the word of `witness`.
pub(super) fn split(cluster: &RedisCluster, witness: usize, node: usize) -> (Vec<i64>, Vec<i64>) {
    (2..=USERS).partition(|user| {
        cluster.of_shard_by(witness, u32::try_from(user % i64::from(SHARDS)).unwrap()) == node
    })
}

/// A stage with a crowd at full pace.
pub(super) async fn stage_with_crowd(url: String) -> (Stage, Crowd) {
    let stage = Stage::start(url, USERS, TTL).await;
    all_ready(&stage).await;
    let crowd = Crowd::start(&stage.apis, 2, USERS);
    let everyone: Vec<i64> = (2..=USERS).collect();
    crowd.heard_again(&everyone, Instant::now(), Duration::from_secs(20)).await;
    (stage, crowd)
}

/// Nobody who was heard all the while was taken offline.
pub(super) fn assert_nobody_flapped(histories: &[Vec<String>]) {
    let gone: Vec<_> = histories.iter().filter(|row| row[2] == "offline").collect();
    assert!(gone.is_empty(), "taken offline though heard: {gone:?}");
}

/// Half of the crowd has stopped: they expire at their deadlines, and the doctor is content.
pub(super) async fn end(stage: &Stage, crowd: &mut Crowd) -> usize {
    crowd.stop().await;
    eventually(TTL * 3, async || {
        let online = "SELECT CAST(count(*) AS text) FROM users WHERE online_status <> 'offline'";
        let left = stage.sql.number(online).await;
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
    stage.judge(crowd).await
}

/// Nobody has come back to a server that serves no more, to stay. (Who asks it once is gone at once.)
pub(super) fn assert_left(cluster: &RedisCluster, node: usize) {
    let clients = cluster.nodes[node].cli(&["CLIENT", "LIST"]);
    let stays = clients.lines().filter(|client| {
        let field = |name: &str| client.split(' ').find_map(|field| field.strip_prefix(name));
        let age: u64 = field("age=").and_then(|age| age.parse().ok()).unwrap_or(0);
        age >= 4 && !field("flags=").is_some_and(|flags| flags.contains('M') || flags.contains('S'))
    });
    assert_eq!(stays.collect::<Vec<_>>(), Vec::<&str>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_dead_primary_harms_no_other_and_is_replaced() {
    let mut cluster = RedisCluster::start(&[]).await;
    let (stage, mut crowd) = stage_with_crowd(cluster.url()).await;
    let (theirs, others) = split(&cluster, 1, 0);
    assert!(theirs.len() > 10 && others.len() > 10);

    let killed = Instant::now();
    cluster.nodes[0].kill().await;
    let replaced = crowd.heard_again(&theirs, killed, Duration::from_secs(20)).await;
    println!("all shards good again after {replaced:?}");
    assert!(replaced < Duration::from_secs(10), "{replaced:?}");

    let told = crowd.told();
    let (refused, longest) = refusals(&told, &others, killed, Instant::now());
    println!("others: {} refused, the longest answer {longest:?}", refused.len());
    assert!(refused.is_empty(), "{:?}", refused[0]);
    assert!(longest < Duration::from_millis(500), "{longest:?}");
    let (refused, longest) = refusals(&told, &theirs, killed, killed + replaced);
    println!("theirs: {} refused, the longest answer {longest:?}", refused.len());
    assert!(refused.iter().all(|beat| beat.status == 503), "{refused:?}");

    // The dead one comes back as a replica.
    cluster.nodes[0].restart().await;
    cluster.settled().await;
    assert!(cluster.nodes[0].cli(&["ROLE"]).starts_with("slave"));
    let everyone: Vec<i64> = (2..=USERS).collect();
    crowd.heard_again(&everyone, Instant::now(), Duration::from_secs(10)).await;
    all_ready(&stage).await;
    assert_nobody_flapped(&stage.histories().await);

    // A block is followed on the new primary, too.
    let victim = theirs[0];
    stage.sql.run(&format!("UPDATE users SET status = 'banned' WHERE id = {victim}")).await;
    eventually(Duration::from_secs(2), async || {
        let (code, body, _) = stage.apis[0].heartbeat(&access_token(victim, "other")).await;
        if code == 403 { Ok(()) } else { Err((code, body)) }
    })
    .await;

    let lost = end(&stage, &mut crowd).await;
    println!("acknowledged transitions lost: {lost}");
    assert_left(&cluster, 0);
    // What the replica had not been sent: a part of a second, at most.
    assert!(lost <= theirs.len() / 4, "{lost} were lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_primary_that_hands_over_loses_nothing() {
    let cluster = RedisCluster::start(&[]).await;
    let (stage, mut crowd) = stage_with_crowd(cluster.url()).await;
    let (theirs, others) = split(&cluster, 1, 0);
    let replica = cluster.replica_of(0);
    let begun = Instant::now();
    assert_eq!(cluster.nodes[replica].cli(&["CLUSTER", "FAILOVER"]), "OK");
    eventually(Duration::from_secs(20), async || {
        let role = cluster.nodes[replica].cli(&["ROLE"]);
        if role.starts_with("master") { Ok(()) } else { Err(role) }
    })
    .await;
    let replaced = crowd.heard_again(&theirs, Instant::now(), Duration::from_secs(10)).await;
    println!("good again after {replaced:?}");
    let (refused, longest) = refusals(&crowd.told(), &others, begun, Instant::now());
    assert!(refused.is_empty() && longest < Duration::from_millis(500), "{longest:?}, {refused:?}");
    // Back again, for good measure. A replica that is still catching up gives up the attempt.
    cluster.settled().await;
    eventually(Duration::from_secs(20), async || {
        cluster.nodes[0].cli(&["CLUSTER", "FAILOVER"]);
        let role = cluster.nodes[0].cli(&["ROLE"]);
        if role.starts_with("master") { Ok(()) } else { Err(role) }
    })
    .await;
    crowd.heard_again(&theirs, Instant::now(), Duration::from_secs(10)).await;
    assert_nobody_flapped(&stage.histories().await);
    assert_eq!(end(&stage, &mut crowd).await, 0, "acknowledged transitions were lost");
}
