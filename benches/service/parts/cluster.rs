//! Redis Cluster: three primaries beside one, the work of a heartbeat and how many there are. Runs only where it is named.

use std::time::Duration;

use anyhow::ensure;

use super::rounds::{COLUMNS, CONNECTIONS, note, row};
use crate::load::{Outcome, Requests};
use crate::plan::Plan;
use crate::report::{Goal, Report, Rounds};
use crate::scene::Scene;
use crate::support::poll::eventually;
use crate::support::redis::RedisServer;

const USERS: i64 = 20_000;
const SLOTS: u32 = 16_384;
/// Nobody expires while others are measured.
const TTL: (&str, &str) = ("PRESENCE_TTL", "1h");

/// Measures the part.
pub async fn measure(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    report.part(
        "Redis Cluster",
        "The service on a cluster of one primary and on one of three, in turn, with 64 shards both times. CPU of Redis is that of all \
         primaries. With as few connections as shards a batch is one heartbeat.",
    );
    let requests = Requests::heartbeats(1, USERS);
    let (one, three) = (start(1).await?, start(3).await?);
    let mut rows = Vec::new();
    for connections in CONNECTIONS {
        let (mut alone, mut shared) = (Rounds::default(), Rounds::default());
        for round in 0..plan.rounds {
            for (what, scene, rounds) in
                [("one primary", &one, &mut alone), ("three primaries", &three, &mut shared)]
            {
                let outcome = scene.load(plan, connections, &requests)?.run()?;
                note(report, &format!("{what}, {connections} connections"), round, &outcome);
                rounds.push(outcome);
            }
        }
        rows.push(row(&format!("one primary, {connections} connections"), &alone, "presenced"));
        rows.push(row(&format!("three primaries, {connections} connections"), &shared, "presenced"));
        let work = |outcome: &Outcome| outcome.cpu_us("presenced") + outcome.cpu_us("redis");
        // Both are of one machine: what is within a tenth is noise.
        let ratio = shared.over(&alone, |outcome| outcome.per_second);
        let what = format!("heartbeats/s, three primaries, {connections} connections");
        report.goal(&what, &ratio, "of one's", Goal::AtLeast(0.9));
        let what =
            format!("presenced's and Redis's CPU per heartbeat, three primaries, {connections} connections");
        report.goal(&what, &shared.over(&alone, work), "× one's", Goal::AtMost(1.1));
    }
    report.table(&COLUMNS, &rows);
    one.end().await?;
    three.end().await
}

/// A service on a cluster of so many primaries, with everybody online.
async fn start(primaries: u32) -> anyhow::Result<Scene> {
    let mut nodes = Vec::new();
    for _ in 0..primaries {
        // A failover is none of this: nobody may be declared dead for being slow.
        nodes
            .push(RedisServer::start(&["--cluster-enabled", "yes", "--cluster-node-timeout", "60000"]).await);
    }
    let share = SLOTS.div_ceil(primaries);
    for (node, first) in nodes.iter().zip((0..SLOTS).step_by(share as usize)) {
        let last = (first + share).min(SLOTS) - 1;
        said_ok(&node.cli(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]))?;
        said_ok(&nodes[0].cli(&["CLUSTER", "MEET", "127.0.0.1", &node.port().to_string()]))?;
    }
    eventually(Duration::from_mins(1), async || {
        let states: Vec<String> = nodes.iter().map(|node| node.cli(&["CLUSTER", "INFO"])).collect();
        let whole = format!("cluster_known_nodes:{primaries}");
        let is_up = |state: &String| {
            state.lines().any(|line| line.trim() == "cluster_state:ok")
                && state.lines().any(|line| line.trim() == whole)
        };
        if states.iter().all(is_up) { Ok(()) } else { Err(states) }
    })
    .await;
    let url = format!("redis-cluster://127.0.0.1:{}", nodes[0].port());
    let scene = Scene::start_on(nodes, url, USERS, &[TTL]).await?;
    scene.bring_online(1, USERS).await?;
    Ok(scene)
}

fn said_ok(said: &str) -> anyhow::Result<()> {
    ensure!(said == "OK", "the cluster was not formed: {said}");
    Ok(())
}
