//! A million users online at once: memory, a heartbeat of each every thirty seconds, and how many they are.

use anyhow::Context as _;

use super::rounds::{COLUMNS, LATENCY_COLUMNS, latency_row, note, row};
use crate::load::{Load, Pace, Requests};
use crate::plan::Plan;
use crate::process;
use crate::report::{Goal, Report, Rounds, figure};
use crate::scene::Scene;

/// How often clients send a heartbeat, seconds.
const EVERY_S: f64 = 30.0;
/// Connections that carry them all.
const CONNECTIONS: usize = 2_000;
/// How often the number of those online is asked for meanwhile, a second.
const COUNTS: f64 = 20.0;

/// Longer than a slow machine takes to bring them all: fewer would be online than are said to be. It changes no cost.
const TTL: (&str, &str) = ("PRESENCE_TTL", "15m");

const MB: f64 = 1_048_576.0;

/// Measures the part.
pub async fn measure(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    #[expect(clippy::cast_precision_loss, reason = "no more than users there are")]
    let rate = plan.million as f64 / EVERY_S;
    let window = plan.window * 6;
    report.part(
        "A million online",
        &format!(
            "{} users online, one session each, brought so by their own heartbeats; then a heartbeat of each every 30 s, {rate:.0} \
             a second, open loop, for {} s, while an administrator asks who is online.",
            plan.million,
            window.as_secs_f64()
        ),
    );
    let scene = Scene::start(plan.million, &[TTL]).await?;
    let (before, resident_before) = (scene.redis_memory()?, resident(&scene)?);
    scene.bring_online(1, plan.million).await?;
    let (after, present) = (scene.redis_memory()?, scene.present().await);
    report.say(&format!(
        "{present:.0} are online; Redis has {} MB, {} MB before; presenced {} MB resident, {} MB before.",
        figure(after / MB),
        figure(before / MB),
        figure(resident(&scene)? / MB),
        figure(resident_before / MB)
    ));
    report.goal("Redis memory per online user", &[(after - before) / present], "bytes", Goal::AtMost(300.0));

    scene.forget_commands();
    let heartbeats = Requests::heartbeats(1, plan.million);
    let beats =
        Load { pace: Pace::Open(rate), window, ..scene.load(plan, CONNECTIONS, &heartbeats)? }.begin()?;
    let count = Requests::pages(vec!["admin/users/online/?per_page=1".into()], 1, 1);
    let counts = Load { pace: Pace::Open(COUNTS), window, ..scene.load(plan, 1, &count)? }.begin()?;
    let (mut beating, mut counting) = (Rounds::default(), Rounds::default());
    let outcome = counts.end()?;
    note(report, "who is online, one of them and the count", 0, &outcome);
    counting.push(outcome);
    let outcome = beats.end()?;
    note(report, "heartbeats among a million", 0, &outcome);
    let sustained = outcome.per_second / rate;
    beating.push(outcome);
    let (calls, micros) = scene.command("zcount");
    report.table(&COLUMNS, &[row("heartbeats", &beating, "presenced")]);
    report.table(
        &LATENCY_COLUMNS,
        &[latency_row("heartbeats", &beating), latency_row("who is online, with the count", &counting)],
    );
    let present = scene.present().await;
    report.say(&format!("{present:.0} are online at the end."));
    report.goal("heartbeats sustained among a million", &[sustained], "of those due", Goal::AtLeast(0.999));
    report.goal("the online count in Redis (ZCOUNT)", &[micros / calls / 1e3], "ms", Goal::AtMost(1.0));
    report.goal("presenced's resident memory", &[resident(&scene)? / MB], "MB", Goal::AtMost(100.0));
    scene.end().await
}

fn resident(scene: &Scene) -> anyhow::Result<f64> {
    process::resident(scene.pid()).context("ps does not tell the memory of presenced")
}
