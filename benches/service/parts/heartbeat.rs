//! Heartbeats a second, and the CPU of each, beside the floor in the same minutes.

use super::rounds::{CONNECTIONS, Pairs, throughput};
use crate::bounds::{Floor, Floors};
use crate::floor::Door;
use crate::load::Requests;
use crate::plan::Plan;
use crate::report::{Goal, Report};
use crate::scene::Scene;

/// Who sends heartbeats, in turn; each has a token of their own.
const USERS: i64 = 4_096;
/// Heartbeats a second of the Django implementation as a fraction of the floor's, both at 64 connections. Recorded
/// figures, measured elsewhere: 0.64 k of 80 k.
const DJANGO: f64 = 0.64 / 80.0;

/// Measures the part.
pub async fn measure(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    report.part(
        "Heartbeats",
        "Closed loop: every connection asks again once it is answered. *Floor*: bare axum that verifies the token, the better \
         of one and two threads. *Bare*: the same without the token. CPU is user and system, of the whole process, for an \
         answer.",
    );
    let requests = Requests::heartbeats(1, USERS);
    let scene = Scene::start(USERS, &[]).await?;
    scene.bring_online(1, USERS).await?;
    let floors = Floors::start().await?;
    let bare = Floor::start(1, Door::Bare).await?;
    let pairs = throughput(plan, report, &scene, &floors, Some(&bare), &requests)?;
    goals(report, &pairs, "");
    scene.end().await
}

/// Holds throughput and CPU against their goals.
pub fn goals(report: &mut Report, pairs: &Pairs, among: &str) {
    for (index, connections) in CONNECTIONS.into_iter().enumerate() {
        let (floor, service) = (&pairs.floor[index], &pairs.service[index]);
        let ratio = service.over(floor, |outcome| outcome.per_second);
        let what = format!("heartbeats/s, {connections} connections{among}");
        report.goal(&what, &ratio, "of the floor", Goal::AtLeast(0.85));
        if index == 0 {
            let django: Vec<f64> = ratio.iter().map(|ratio| ratio / DJANGO).collect();
            report.goal(&what, &django, "× Django (recorded)", Goal::AtLeast(100.0));
        }
        let cpu = service.each(|outcome| outcome.cpu_us("presenced"));
        let of_floor = floor.each(|outcome| outcome.cpu_us("floor"));
        let ratio: Vec<f64> = cpu.iter().zip(of_floor).map(|(cpu, floor)| cpu / floor).collect();
        let what = format!("presenced's CPU per heartbeat, {connections} connections{among}");
        report.goal(&what, &ratio, "× the floor's", Goal::AtMost(1.3));
    }
}
