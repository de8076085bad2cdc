//! What a failover loses: a replica that had not followed takes over, or nobody does.

use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use super::Stage;
use super::crowd::refusals;
use super::failover::{assert_nobody_flapped, end, split, stage_with_crowd};
use crate::support::cluster::RedisCluster;
use crate::support::mint::access_token;
use crate::support::poll::eventually;

/// Waits until SQL says so of a user.
async fn in_sql(stage: &Stage, user: i64, status: &str) {
    eventually(Duration::from_secs(5), async || {
        let rows = stage.sql.rows(&format!("SELECT online_status FROM users WHERE id = {user}")).await;
        if rows[0][0] == status { Ok(()) } else { Err(rows) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn what_a_lagging_replica_has_not_got_is_put_right_from_sql_and_heartbeats() {
    let cluster = RedisCluster::start(&[]).await;
    let (stage, mut crowd) = stage_with_crowd(cluster.url()).await;
    let (theirs, others) = split(&cluster, 1, 0);
    let api = &stage.apis[0];
    // One who is there and changes words, one who signs out, and one who is banned: of the same server, in the lag.
    let say = async |user: i64, device: &str, word: &str| {
        api.post("heartbeat/", Some(&access_token(user, device)), &json!({"status": word})).await.0
    };
    let steady: Vec<i64> = theirs.iter().copied().filter(|user| !super::crowd::turns(*user)).collect();
    let banned = steady[1];
    // Whose tokens of one session, and the clocks of SQL and Redis, are as they are in life.
    let mut signed_out = (String::new(), 0);
    for name in ["ina", "ida", "ilse", "inge", "iris", "ines", "irma", "isa", "ivy", "ilka"] {
        let user = api.register(name).await["id"].as_i64().unwrap();
        let shard = u32::try_from(user % 64).unwrap();
        if cluster.of_shard_by(1, shard) == 0 {
            signed_out = (name.to_owned(), user);
            break;
        }
    }
    assert_ne!(signed_out.1, 0, "one of ten lies there");
    let tokens = api.login(&signed_out.0).await;
    let fickle = theirs.iter().map(|user| user + 64).find(|user| *user > 100 && *user <= 164).unwrap();
    stage.sql.seed(fickle, 1).await;
    assert_eq!(say(fickle, "phone", "online").await, 200);
    in_sql(&stage, fickle, "online").await;

    // From here on the replica hears nothing.
    let (primary, replica) = (&cluster.nodes[0], cluster.replica_of(0));
    assert_eq!(primary.cli(&["ACL", "SETUSER", "default", "-psync", "-sync"]), "OK");
    eventually(Duration::from_secs(5), async || {
        primary.cli(&["CLIENT", "KILL", "TYPE", "replica"]);
        let info = cluster.nodes[replica].cli(&["INFO", "replication"]);
        if info.contains("master_link_status:down") { Ok(()) } else { Err(info) }
    })
    .await;
    let lag = Instant::now();
    assert_eq!(say(fickle, "phone", "away").await, 200);
    in_sql(&stage, fickle, "away").await;
    let (code, body, _) =
        api.post("logout/", Some(&tokens.access), &json!({"refresh": tokens.refresh})).await;
    assert_eq!(code, 200, "{body}");
    stage.sql.run(&format!("UPDATE users SET status = 'banned' WHERE id = {banned}")).await;
    eventually(Duration::from_secs(2), async || {
        let code = say(banned, "other", "online").await;
        if code == 403 { Ok(()) } else { Err(code) }
    })
    .await;
    // Time itself is the subject.
    sleep(Duration::from_secs(2)).await;
    primary.kill().await;
    let lagged = lag.elapsed();
    let killed = Instant::now();
    let theirs: Vec<i64> = theirs.into_iter().filter(|user| *user != banned).collect();
    let again = crowd.heard_again(&theirs, killed, Duration::from_secs(20)).await;
    println!("lagged {lagged:?}, good again after {again:?}");
    let (refused, longest) = refusals(&crowd.told(), &others, lag, Instant::now());
    assert!(refused.is_empty() && longest < Duration::from_millis(500), "{longest:?}, {refused:?}");

    // What SQL knew holds.
    assert_eq!(api.heartbeat(&tokens.access).await.0, 401, "who has signed out stays out");
    assert_eq!(say(banned, "other", "online").await, 403);
    // The word that Redis has forgotten to have changed changes nothing in it, and SQL is told all the same.
    assert_eq!(say(fickle, "phone", "online").await, 200);
    in_sql(&stage, fickle, "online").await;
    let flapped: Vec<_> = stage.histories().await;
    let flapped: Vec<_> = flapped
        .into_iter()
        .filter(|row| row[0] != banned.to_string() && row[0] != signed_out.1.to_string())
        .collect();
    assert_nobody_flapped(&flapped);
    let lost = end(&stage, &mut crowd).await;
    println!("acknowledged transitions lost: {lost}");
    // SQL has what the persister took while the primary lived: all but the last moments.
    assert!(lost <= theirs.len() / 2, "{lost} were lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn shards_that_nobody_serves_harm_no_other_and_come_back_empty() {
    let mut cluster = RedisCluster::start(&[]).await;
    let (stage, mut crowd) = stage_with_crowd(cluster.url()).await;
    let (theirs, others) = split(&cluster, 1, 0);
    let (api, admin) = (&stage.apis[0], access_token(1, "admin"));
    let replica = cluster.replica_of(0);
    let killed = Instant::now();
    cluster.nodes[replica].kill().await;
    cluster.nodes[0].kill().await;
    let banned = *others.iter().find(|user| !super::crowd::turns(**user)).unwrap();
    stage.sql.run(&format!("UPDATE users SET status = 'banned' WHERE id = {banned}")).await;
    eventually(Duration::from_secs(1), async || {
        let code = api.heartbeat(&access_token(banned, "other")).await.0;
        if code == 403 { Ok(()) } else { Err(code) }
    })
    .await;
    // Lists are whole, and say that they are not all from Redis.
    if cluster_has(&cluster, 1) {
        let (code, body, _) = api.get("all-users/?per_page=1000", Some(&admin)).await;
        assert_eq!((code.as_u16(), &body["degraded"]), (200, &json!(true)), "{body}");
        let online = body["results"].as_array().unwrap();
        let online = online.iter().filter(|user| user["online_status"] != "offline").count();
        assert!(online >= 95, "{online} of a hundred, of whom nobody has left");
    }
    let (code, body, _) = api.get("/readyz", None).await;
    assert_eq!((code.as_u16(), &body["checks"]["redis"]), (503, &json!("unreachable")));
    let others: Vec<i64> = others.into_iter().filter(|user| *user != banned).collect();
    crowd.heard_again(&others, Instant::now() + Duration::from_secs(3), Duration::from_secs(10)).await;
    let (refused, longest) = refusals(&crowd.told(), &others, killed, Instant::now());
    assert!(refused.is_empty() && longest < Duration::from_millis(500), "{longest:?}, {refused:?}");
    let (refused, longest) =
        refusals(&crowd.told(), &theirs, killed + Duration::from_secs(1), Instant::now());
    assert!(longest < Duration::from_millis(500), "{longest:?}");
    assert!(!refused.is_empty() && refused.iter().all(|beat| beat.status == 503), "{refused:?}");

    // Nothing was kept on a disk. They are back within their TTL, so none of them was away.
    cluster.nodes[0].restart().await;
    cluster.nodes[replica].restart().await;
    let back = Instant::now();
    let again = crowd.heard_again(&theirs, back, Duration::from_secs(20)).await;
    println!("good again {again:?} after the restart");
    let histories: Vec<_> = stage.histories().await;
    let histories: Vec<_> = histories.into_iter().filter(|row| row[0] != banned.to_string()).collect();
    assert_nobody_flapped(&histories);
    let lost = end(&stage, &mut crowd).await;
    println!("acknowledged transitions lost: {lost}");
    assert!(lost <= theirs.len() / 4, "{lost} were lost");
}

/// Whether the shard of a user is served.
fn cluster_has(cluster: &RedisCluster, user: i64) -> bool {
    cluster.of_shard_by(1, u32::try_from(user % 64).unwrap()) != 0
}
