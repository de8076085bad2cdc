//! Heartbeats a second, and the CPU of each, beside the floor in the same minutes.

use crate::floor::Door;
use crate::load::{Outcome, Requests};
use crate::plan::Plan;
use crate::report::{Goal, Report, Rounds, figure, median, spread};
use crate::scene::{Floor, Floors, Scene};

/// Who sends heartbeats, in turn; each has a token of their own.
const USERS: i64 = 4_096;
/// Connections: few busy ones, and many.
const CONNECTIONS: [usize; 2] = [64, 2_000];
/// Heartbeats a second of the Django implementation as a fraction of the floor's, both at 64 connections. Recorded
/// figures, measured elsewhere: 0.64 k of 80 k.
const DJANGO: f64 = 0.64 / 80.0;

/// Measures the part.
pub async fn measure(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    report.part(
        "Heartbeats",
        "Closed loop: every connection asks again once it is answered. *Floor*: bare axum that verifies the token, the better \
         of one and two threads. *Bare*: the same without the token. CPU is user and system, of the whole process.",
    );
    let requests = Requests::heartbeats(1, USERS);
    let scene = Scene::start(USERS, &[]).await?;
    scene.bring_online(1, USERS).await?;
    let floors = Floors::start().await?;
    let bare = Floor::start(1, Door::Bare).await?;
    let best = [floors.best(plan, CONNECTIONS[0], &requests)?, floors.best(plan, CONNECTIONS[1], &requests)?];

    let (mut floor, mut service) =
        ([Rounds::default(), Rounds::default()], [Rounds::default(), Rounds::default()]);
    let mut unguarded = Rounds::default();
    for round in 0..plan.rounds {
        for (index, connections) in CONNECTIONS.into_iter().enumerate() {
            let outcome = best[index].load(plan, connections, &requests).run()?;
            shown(report, &format!("floor, {connections} connections"), round, &outcome);
            floor[index].push(outcome);
            let outcome = scene.load(plan, connections, &requests)?.run()?;
            shown(report, &format!("service, {connections} connections"), round, &outcome);
            service[index].push(outcome);
        }
        let outcome = bare.load(plan, CONNECTIONS[0], &requests).run()?;
        shown(report, "bare, 64 connections", round, &outcome);
        unguarded.push(outcome);
    }

    let mut rows = vec![row("bare, 64 connections", &unguarded, "floor")];
    for (index, connections) in CONNECTIONS.into_iter().enumerate() {
        let threads = best[index].threads;
        rows.push(row(
            &format!("floor, {connections} connections, threads: {threads}"),
            &floor[index],
            "floor",
        ));
        rows.push(row(&format!("service, {connections} connections"), &service[index], "presenced"));
    }
    report.table(&COLUMNS, &rows);
    for (index, connections) in CONNECTIONS.into_iter().enumerate() {
        let ratio = service[index].over(&floor[index], |outcome| outcome.per_second);
        let what = format!("heartbeats/s, {connections} connections");
        report.goal(&what, &ratio, "of the floor", Goal::AtLeast(0.85));
        if index == 0 {
            let django: Vec<f64> = ratio.iter().map(|ratio| ratio / DJANGO).collect();
            report.goal(&what, &django, "× Django (recorded)", Goal::AtLeast(100.0));
        }
        let cpu = service[index].each(|outcome| outcome.cpu_us("presenced"));
        let of_floor = floor[index].each(|outcome| outcome.cpu_us("floor"));
        let ratio: Vec<f64> = cpu.iter().zip(of_floor).map(|(cpu, floor)| cpu / floor).collect();
        let what = format!("presenced's CPU per heartbeat, {connections} connections");
        report.goal(&what, &ratio, "× the floor's", Goal::AtMost(1.3));
    }
    scene.end().await
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

/// Keeps the raw figures and shows that it goes on.
pub fn shown(report: &mut Report, what: &str, round: usize, outcome: &Outcome) {
    println!(
        "round {}: {what}: {:.0}/s, p50 {} ms, p99 {} ms, CPU s {:?}",
        round + 1,
        outcome.per_second,
        figure(outcome.latency.p50_ms),
        figure(outcome.latency.p99_ms),
        outcome.cpu
    );
    report.keep(what, round, outcome);
}
