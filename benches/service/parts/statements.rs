//! What a steady heartbeat costs SQL: nothing.

use std::time::Duration;

use super::rounds::note;
use crate::load::Requests;
use crate::load::count;
use crate::plan::Plan;
use crate::report::{Goal, Report, Rounds, figure};
use crate::scene::Scene;

const USERS: i64 = 1_000;
/// The write-behind of `last_seen` is one statement for many users, and no part of a heartbeat.
const FLUSH: (&str, &str) = ("PRESENCE_LAST_SEEN_FLUSH", "0");
/// How long PostgreSQL may take to count what a connection has done.
const COUNTED_WITHIN: Duration = Duration::from_secs(2);

/// Measures the part.
pub async fn measure(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    report.part(
        "SQL per steady heartbeat",
        "Transactions by `pg_stat_database`, less those of the same time without heartbeats. The write-behind of `last_seen` is \
         off.",
    );
    let requests = Requests::heartbeats(1, USERS);
    let scene = Scene::start(USERS, &[FLUSH]).await?;
    scene.bring_online(1, USERS).await?;
    // What brought them online is counted before anything else is.
    tokio::time::sleep(COUNTED_WITHIN).await;
    let all = plan.warm_up() + plan.window;
    let (mut rounds, mut rows, mut each) = (Rounds::default(), Vec::new(), Vec::new());
    for round in 0..plan.rounds {
        let quiet = transactions(&scene, || {
            std::thread::sleep(all);
            Ok(0.0)
        })
        .await?;
        let loaded = transactions(&scene, || {
            let outcome = scene.load(plan, 64, &requests)?.run()?;
            note(report, "steady heartbeats", round, &outcome);
            let beats = count(outcome.in_all);
            rounds.push(outcome);
            Ok(beats)
        })
        .await?;
        report.keep(
            "transactions without heartbeats, transactions with, heartbeats",
            round,
            &[quiet.0, loaded.0, loaded.1],
        );
        rows.push([quiet.0, loaded.0, loaded.1].map(figure).to_vec());
        each.push(((loaded.0 - quiet.0) / loaded.1).max(0.0));
    }
    report.table(&["transactions without heartbeats", "with", "heartbeats meanwhile"], &rows);
    // A pass of some loop more or less is none of a heartbeat.
    report.goal("SQL transactions per steady heartbeat", &each, "", Goal::AtMost(0.001));
    scene.end().await
}

/// How many transactions there were while something was done, and what that came to.
async fn transactions(
    scene: &Scene,
    act: impl FnOnce() -> anyhow::Result<f64>,
) -> anyhow::Result<(f64, f64)> {
    let counted = "SELECT (xact_commit + xact_rollback)::float8::text FROM pg_stat_database WHERE datname = current_database()";
    let before: f64 = scene.sql.rows(counted).await[0][0].parse()?;
    let done = act()?;
    // Not for something to become true: PostgreSQL says nowhere when it has counted all.
    tokio::time::sleep(COUNTED_WITHIN).await;
    let after: f64 = scene.sql.rows(counted).await[0][0].parse()?;
    Ok((after - before, done))
}
