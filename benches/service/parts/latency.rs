//! How long a heartbeat takes: at half load, and when nobody else asks.

use super::rounds::{LATENCY_COLUMNS, at_half_load, latency_row, note};
use crate::bounds::Floors;
use crate::load::Requests;
use crate::plan::Plan;
use crate::report::{Report, Rounds, median};
use crate::scene::Scene;

const USERS: i64 = 4_096;

/// Measures the part.
pub async fn measure(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    report.part(
        "Latency",
        "Open loop at half of the service's own throughput, timed from when each heartbeat was due; *idle*: one connection, \
         one request at a time. The generator sleeps in steps of 50 µs, which all of them pay alike.",
    );
    let requests = Requests::heartbeats(1, USERS);
    let scene = Scene::start(USERS, &[]).await?;
    scene.bring_online(1, USERS).await?;
    let floors = Floors::start().await?;
    at_half_load(plan, report, &scene, &floors, &requests, "")?;

    let best = floors.best(plan, 1, &requests)?;
    let (mut floor, mut service) = (Rounds::default(), Rounds::default());
    for round in 0..plan.rounds {
        let outcome = best.load(plan, 1, &requests).run()?;
        note(report, "floor, idle", round, &outcome);
        floor.push(outcome);
        let outcome = scene.load(plan, 1, &requests)?.run()?;
        note(report, "service, idle", round, &outcome);
        service.push(outcome);
    }
    report.table(
        &LATENCY_COLUMNS,
        &[latency_row("floor, idle", &floor), latency_row("service, idle", &service)],
    );
    let p50 = |rounds: &Rounds| median(&rounds.each(|outcome| outcome.latency.p50_ms));
    report.say(&format!(
        "Idle, the service takes {:.0} µs longer than the floor, Redis included (goal: no added wait; a wait would be one of \
         milliseconds).",
        (p50(&service) - p50(&floor)) * 1e3
    ));
    scene.end().await
}
