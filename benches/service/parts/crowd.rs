//! The same among 100,000 users who are online.

use super::heartbeat;
use super::rounds::{CONNECTIONS, at_half_load, throughput};
use crate::bounds::Floors;
use crate::load::{Requests, count};
use crate::plan::Plan;
use crate::report::{Goal, Report, figure};
use crate::scene::Scene;

const USERS: i64 = 100_000;
const AMONG: &str = ", 100,000 online";
/// Nobody expires while others are measured.
const TTL: (&str, &str) = ("PRESENCE_TTL", "1h");

/// Measures the part.
pub async fn measure(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    report.part(
        "A hundred thousand online",
        "As above, with 100,000 users in Redis, all of whom send heartbeats in turn; PostgreSQL, persister and metrics are on.",
    );
    let requests = Requests::heartbeats(1, USERS);
    let scene = Scene::start(USERS, &[TTL]).await?;
    scene.bring_online(1, USERS).await?;
    let floors = Floors::start().await?;
    let pairs = throughput(plan, report, &scene, &floors, None, &requests)?;
    heartbeat::goals(report, &pairs, AMONG);
    for (index, connections) in CONNECTIONS.into_iter().enumerate() {
        let redis = pairs.service[index].each(|outcome| outcome.cpu_us("redis"));
        let what = format!("Redis's CPU per heartbeat, {connections} connections{AMONG}");
        report.goal(&what, &redis, "µs", Goal::AtMost(6.0));
    }

    scene.forget_commands();
    let outcome = scene.load(plan, CONNECTIONS[0], &requests)?.run()?;
    let (calls, micros) = scene.command("evalsha");
    let beats = count(outcome.in_all);
    report.say(&format!(
        "By Redis's own account a heartbeat takes {} µs in scripts, and {} heartbeats share a call ({} connections).",
        figure(micros / beats),
        figure(beats / calls),
        CONNECTIONS[0]
    ));
    report.keep("Redis's own account: heartbeats, script calls, µs in scripts", 0, &[beats, calls, micros]);
    at_half_load(plan, report, &scene, &floors, &requests, AMONG)?;
    scene.end().await
}
