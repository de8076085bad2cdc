//! Floor and service in turn, round after round: throughput, and latency at half of it.

use crate::bounds::{Floor, Floors};
use crate::load::{Load, Outcome, Pace, Requests};
use crate::plan::Plan;
use crate::report::{Goal, Report, Rounds, figure, median, spread};
use crate::scene::Scene;

/// Connections: few busy ones, and many.
pub const CONNECTIONS: [usize; 2] = [64, 2_000];

/// A floor's rounds and the service's, for each number of connections.
#[derive(Default)]
pub struct Pairs {
    /// The floor's.
    pub floor: [Rounds; 2],
    /// The service's.
    pub service: [Rounds; 2],
}

/// How many heartbeats a second the floor and the service answer, closed loop.
pub fn throughput(
    plan: &Plan,
    report: &mut Report,
    scene: &Scene,
    floors: &Floors,
    bare: Option<&Floor>,
    requests: &Requests,
) -> anyhow::Result<Pairs> {
    let best = floors.best_of_each(plan, CONNECTIONS, requests)?;
    let mut pairs = Pairs::default();
    let mut unguarded = Rounds::default();
    for round in 0..plan.rounds {
        for (index, connections) in CONNECTIONS.into_iter().enumerate() {
            let outcome = best[index].load(plan, connections, requests).run()?;
            note(report, &format!("floor, {connections} connections"), round, &outcome);
            pairs.floor[index].push(outcome);
            let outcome = scene.load(plan, connections, requests)?.run()?;
            note(report, &format!("service, {connections} connections"), round, &outcome);
            pairs.service[index].push(outcome);
        }
        if let Some(bare) = bare {
            let outcome = bare.load(plan, CONNECTIONS[0], requests).run()?;
            note(report, "bare, 64 connections", round, &outcome);
            unguarded.push(outcome);
        }
    }
    let mut rows = Vec::new();
    if bare.is_some() {
        rows.push(row("bare, 64 connections", &unguarded, "floor"));
    }
    for (index, connections) in CONNECTIONS.into_iter().enumerate() {
        let what = format!("floor, {connections} connections, threads: {}", best[index].threads);
        rows.push(row(&what, &pairs.floor[index], "floor"));
        rows.push(row(&format!("service, {connections} connections"), &pairs.service[index], "presenced"));
    }
    report.table(&COLUMNS, &rows);
    Ok(pairs)
}

/// How long heartbeats take at half of what the service can answer, open loop, on the floor and on the service.
pub fn at_half_load(
    plan: &Plan,
    report: &mut Report,
    scene: &Scene,
    floors: &Floors,
    requests: &Requests,
    among: &str,
) -> anyhow::Result<()> {
    let best = floors.best_of_each(plan, CONNECTIONS, requests)?;
    let mut rows = Vec::new();
    for (index, connections) in CONNECTIONS.into_iter().enumerate() {
        let half = scene.load(plan, connections, requests)?.run()?.per_second / 2.0;
        let (mut floor, mut service) = (Rounds::default(), Rounds::default());
        for round in 0..plan.rounds {
            let pace = Pace::Open(half);
            let outcome = Load { pace, ..best[index].load(plan, connections, requests) }.run()?;
            note(report, &format!("floor at {half:.0}/s, {connections} connections"), round, &outcome);
            floor.push(outcome);
            let outcome = Load { pace, ..scene.load(plan, connections, requests)? }.run()?;
            note(report, &format!("service at {half:.0}/s, {connections} connections"), round, &outcome);
            service.push(outcome);
        }
        rows.push(latency_row(&format!("floor at {half:.0}/s, {connections} connections"), &floor));
        rows.push(latency_row(&format!("service at {half:.0}/s, {connections} connections"), &service));
        let p99 = |outcome: &Outcome| outcome.latency.p99_ms;
        let beyond: Vec<f64> =
            service.each(p99).iter().zip(floor.each(p99)).map(|(service, floor)| service - floor).collect();
        let what = format!("heartbeat p99 at half load beyond the floor's, {connections} connections{among}");
        report.goal(&what, &beyond, "ms", Goal::AtMost(2.0));
    }
    report.table(&LATENCY_COLUMNS, &rows);
    Ok(())
}

/// The columns of [`row`].
pub const COLUMNS: [&str; 9] = [
    "what",
    "answers/s",
    "p50 ms",
    "p99 ms",
    "server's CPU µs",
    "Redis µs",
    "PostgreSQL µs",
    "all of them µs",
    "generator µs",
];

/// What the rounds of one thing came to; CPU is per answer.
pub fn row(what: &str, rounds: &Rounds, server: &str) -> Vec<String> {
    let cpu = |name: &str| median(&rounds.each(|outcome| outcome.cpu_us(name)));
    let all = [server, "redis", "postgres"].map(cpu).iter().sum();
    vec![
        what.to_owned(),
        spread(&rounds.each(|outcome| outcome.per_second)),
        figure(median(&rounds.each(|outcome| outcome.latency.p50_ms))),
        figure(median(&rounds.each(|outcome| outcome.latency.p99_ms))),
        figure(cpu(server)),
        figure(cpu("redis")),
        figure(cpu("postgres")),
        figure(all),
        figure(cpu("generator")),
    ]
}

/// The columns of [`latency_row`].
pub const LATENCY_COLUMNS: [&str; 6] =
    ["what", "p50 ms", "p99 ms", "p99.9 ms", "most ms", "generator late, p99 ms"];

/// How long the answers of some rounds took.
pub fn latency_row(what: &str, rounds: &Rounds) -> Vec<String> {
    let unsent: f64 = rounds.each(|outcome| crate::load::count(outcome.unsent)).iter().sum();
    let what = if unsent > 0.0 {
        format!("{what} (**not sustained**, {unsent} never sent)")
    } else {
        what.to_owned()
    };
    vec![
        what,
        spread(&rounds.each(|outcome| outcome.latency.p50_ms)),
        spread(&rounds.each(|outcome| outcome.latency.p99_ms)),
        spread(&rounds.each(|outcome| outcome.latency.p999_ms)),
        spread(&rounds.each(|outcome| outcome.latency.most_ms)),
        figure(median(&rounds.each(|outcome| outcome.late_p99_ms))),
    ]
}

/// Keeps the raw figures and shows that it goes on.
pub fn note(report: &mut Report, what: &str, round: usize, outcome: &Outcome) {
    let cpu: Vec<String> =
        outcome.cpu.keys().map(|name| format!("{name} {}", figure(outcome.cpu_us(name)))).collect();
    println!(
        "round {}: {what}: {:.0}/s, p50 {} ms, p99 {} ms; CPU µs {}",
        round + 1,
        outcome.per_second,
        figure(outcome.latency.p50_ms),
        figure(outcome.latency.p99_ms),
        cpu.join(", ")
    );
    report.keep(what, round, outcome);
}
