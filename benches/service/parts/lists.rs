//! Lists: what dashboards ask for every ten seconds.

use super::rounds::{COLUMNS, note, row};
use crate::bounds::Floors;
use crate::load::{Load, Requests};
use crate::plan::Plan;
use crate::report::{Goal, Report, Rounds};
use crate::scene::Scene;

const ACCOUNTS: i64 = 10_000;
/// How many of them are online.
const ONLINE: i64 = 5_000;
/// Dashboards, each with a token and a connection of its own.
const DASHBOARDS: usize = 64;
/// Pages a second of the Django implementation as fractions of the floor's heartbeats, both at 64 connections. Recorded
/// figures, measured elsewhere: 270 (50 users) and 70 (1,000 users) of 80 k.
const DJANGO_50: f64 = 270.0 / 80_000.0;
const DJANGO_1000: f64 = 70.0 / 80_000.0;
/// Nobody expires while others are measured.
const TTL: (&str, &str) = ("PRESENCE_TTL", "1h");

/// Something that dashboards ask.
struct Case {
    what: &'static str,
    requests: Requests,
    /// The Django implementation's fraction of the floor, and how many times that is the goal.
    goal: Option<(f64, f64)>,
}

fn cases() -> anyhow::Result<Vec<Case>> {
    let all = |pages: std::ops::RangeInclusive<i64>, size: i64| -> anyhow::Result<Requests> {
        let paths = pages.map(|page| format!("all-users/?page={page}&per_page={size}")).collect();
        Ok(Requests::pages(paths, 2, i64::try_from(DASHBOARDS)?))
    };
    let (fifty, thousand) = (Some((DJANGO_50, 30.0)), Some((DJANGO_1000, 10.0)));
    let online = (1..=100).map(|page| format!("admin/users/online/?page={page}")).collect();
    Ok(vec![
        Case { what: "list of 50, the same first page", requests: all(1..=1, 50)?, goal: fifty },
        Case { what: "list of 50, the same deep page", requests: all(190..=190, 50)?, goal: None },
        Case { what: "list of 50, different pages", requests: all(1..=200, 50)?, goal: fifty },
        Case { what: "list of 1,000, the same first page", requests: all(1..=1, 1_000)?, goal: thousand },
        Case { what: "list of 1,000, the same deep page", requests: all(10..=10, 1_000)?, goal: None },
        Case { what: "list of 1,000, different pages", requests: all(1..=10, 1_000)?, goal: thousand },
        Case {
            what: "who is online, the first 50",
            requests: Requests::pages(vec!["admin/users/online/".into()], 1, 1),
            goal: None,
        },
        Case { what: "who is online, different 50", requests: Requests::pages(online, 1, 1), goal: None },
    ])
}

/// Measures the part.
pub async fn measure(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    report.part(
        "Lists",
        "10,000 accounts, 5,000 of them online; 64 dashboards, closed loop. The floor's figure is heartbeats, for the scale. The \
         Django figures are recorded, measured elsewhere: taken as fractions of the floor there and held against fractions \
         of the floor here.",
    );
    let scene = Scene::start(ACCOUNTS, &[TTL]).await?;
    scene.bring_online(1, ONLINE).await?;
    let floors = Floors::start().await?;
    let heartbeats = Requests::heartbeats(1, ONLINE);
    let best = floors.best(plan, DASHBOARDS, &heartbeats)?;
    let window = plan.window / 2;
    let cases = cases()?;
    let mut floor = Rounds::default();
    let mut found: Vec<Rounds> = cases.iter().map(|_| Rounds::default()).collect();
    for round in 0..plan.rounds {
        let outcome = Load { window, ..best.load(plan, DASHBOARDS, &heartbeats) }.run()?;
        note(report, "floor, heartbeats", round, &outcome);
        floor.push(outcome);
        for (case, rounds) in cases.iter().zip(&mut found) {
            let outcome = Load { window, ..scene.load(plan, DASHBOARDS, &case.requests)? }.run()?;
            note(report, case.what, round, &outcome);
            rounds.push(outcome);
        }
    }
    let mut rows = vec![row("floor, heartbeats", &floor, "floor")];
    rows.extend(cases.iter().zip(&found).map(|(case, rounds)| row(case.what, rounds, "presenced")));
    report.table(&COLUMNS, &rows);
    for (case, rounds) in cases.iter().zip(&found) {
        if let Some((django, goal)) = case.goal {
            let ratio = rounds.over(&floor, |outcome| outcome.per_second);
            let times: Vec<f64> = ratio.iter().map(|ratio| ratio / django).collect();
            report.goal(case.what, &times, "× Django (recorded)", Goal::AtLeast(goal));
        }
    }
    scene.end().await
}
