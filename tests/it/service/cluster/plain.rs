//! Nothing goes wrong: all works on a cluster as it does on one server.

use std::collections::HashSet;
use std::time::Duration;

use serde_json::json;

use super::{SHARDS, Stage, all_ready};
use crate::service::assert_alternates;
use crate::support::cluster::RedisCluster;
use crate::support::http::PASSWORD;
use crate::support::mint::access_token;
use crate::support::poll::eventually;

const USERS: i64 = 192;

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_cluster_does_all_that_one_server_does() {
    let cluster = RedisCluster::start(&[]).await;
    let ttl = Duration::from_secs(5);
    let stage = Stage::start(cluster.url(), USERS, ttl).await;
    all_ready(&stage).await;
    let (one, other) = (&stage.apis[0], &stage.apis[1]);
    let admin = access_token(1, "admin");

    // Users lie on all three primaries, each in the slot of its shard.
    let owner: Vec<usize> = (0..SHARDS).map(|shard| cluster.of_shard_by(0, shard)).collect();
    let beats = (2..=USERS).map(|user| async move { one.heartbeat(&access_token(user, "phone")).await });
    for (code, body, _) in futures_util::future::join_all(beats).await {
        assert_eq!(code, 200, "{body}");
    }
    let owners: HashSet<usize> = owner.iter().copied().collect();
    assert_eq!(owners, HashSet::from([0, 1, 2]));
    let (_, body, _) = other.get("admin/users/online/?per_page=1000", Some(&admin)).await;
    assert_eq!(body["online_count"], json!(USERS), "the admin's own request counts: {body}");
    let shown: HashSet<i64> =
        body["online_users"].as_array().unwrap().iter().map(|user| user["id"].as_i64().unwrap()).collect();
    assert_eq!(shown, (1..=USERS).collect());
    let live: usize = (0..SHARDS)
        .map(|shard| {
            let node = &cluster.nodes[owner[shard as usize]];
            node.cli(&["ZCOUNT", &format!("presence:{{{shard}}}:live"), "(0", "+inf"])
                .parse::<usize>()
                .unwrap()
        })
        .sum();
    assert_eq!(i64::try_from(live).unwrap(), USERS);

    // They expire within a second of their deadlines, by the default settings of Redis, and events come from everywhere.
    eventually(ttl + Duration::from_secs(10), async || {
        let online = "SELECT CAST(count(*) AS text) FROM users WHERE online_status <> 'offline'";
        let left = stage.sql.number(online).await;
        if left == 0 { Ok(()) } else { Err(left) }
    })
    .await;
    let histories = stage.histories().await;
    assert_alternates(&histories);
    assert_eq!(histories.len(), 2 * usize::try_from(USERS).unwrap(), "nothing lost, nothing doubled");
    let late = histories
        .iter()
        .filter(|row| row[3] == "expired")
        .map(|row| row[5].parse::<i64>().unwrap() - row[4].parse::<i64>().unwrap());
    let latest = late.max().unwrap();
    println!("deadline to SQL at most {latest} ms");
    assert!(latest <= 1_000, "{latest} ms");
    for primary in 0..3 {
        let port = cluster.nodes[primary].port().to_string();
        for instance in &stage.instances {
            let log = instance.stderr();
            let heard = log.lines().any(|line| line.contains("expiry events are on") && line.contains(&port));
            assert!(heard, "no word of {port}:\n{log}");
        }
        let flags = cluster.nodes[primary].cli(&["CONFIG", "GET", "notify-keyspace-events"]);
        assert!(flags.contains('E') && flags.contains('x'), "{flags}");
        let channels = cluster.nodes[primary].cli(&["PUBSUB", "NUMSUB", "__keyevent@0__:expired"]);
        assert!(channels.ends_with('2'), "both instances listen: {channels}");
    }

    // Login, logout and block, with what each leaves behind.
    one.register("hanna").await;
    let hanna = one.login("hanna").await;
    assert_eq!(other.get("me/", Some(&hanna.access)).await.1["user"]["online_status"], "online");
    let (code, ..) = other.post("logout/", Some(&hanna.access), &json!({"refresh": hanna.refresh})).await;
    assert_eq!(code, 200);
    assert_eq!(one.heartbeat(&hanna.access).await.0, 401);
    let again = one.login_with("hanna", PASSWORD).await;
    stage.sql.run(&format!("UPDATE users SET status = 'banned' WHERE id = {}", hanna.user_id())).await;
    eventually(Duration::from_secs(1), async || {
        let (code, body, _) = other.heartbeat(&again.access).await;
        if code == 403 { Ok(()) } else { Err((code, body)) }
    })
    .await;
    let path = format!("admin/users/{}/online-status/", hanna.user_id());
    let (_, body, _) = one.get(&path, Some(&admin)).await;
    assert_eq!(body["online_status"], "offline", "{body}");

    stage.recorded().await;
    let (code, said) = stage.doctor().await;
    assert_eq!(code, 0, "{said}");
    assert_alternates(&stage.histories().await);
    for instance in &stage.instances {
        assert_eq!(instance.terminate().await, 0);
    }
}
