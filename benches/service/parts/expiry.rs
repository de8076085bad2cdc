//! How late an expiry is: from the deadline to the transition in Redis, and to the commit in SQL.

use std::time::Duration;

use anyhow::ensure;

use crate::load::{Load, Pace, Requests};
use crate::plan::Plan;
use crate::report::{Goal, Report, spread};
use crate::scene::Scene;
use crate::support::poll::eventually;

/// Who falls silent after one heartbeat.
const WATCHED: i64 = 1_000;
/// Their heartbeats a second, and so their deadlines.
const PER_SECOND: f64 = 200.0;
const TTL: (&str, &str) = ("PRESENCE_TTL", "3s");
/// Users who stay, in turn: how many there are from then on.
const OTHERS: [i64; 3] = [0, 100_000, 1_000_000];
/// Their ids, of which SQL knows nothing, begin here.
const FIRST_OTHER: i64 = 10_000_000;
const CHUNK: i64 = 10_000;

/// Presences as heartbeats leave them, whose deadlines are an hour away.
const FILL: &str = "local time = redis.call('TIME')
    local now = time[1] * 1000 + math.floor(time[2] / 1000)
    for user = tonumber(ARGV[1]), tonumber(ARGV[2]) do
      local key = 'presence:{0}:user:' .. user
      redis.call('HSET', key, 'status', 'online', 'since', now, 's:phone', now)
      redis.call('PEXPIREAT', key, now + 3600000)
      redis.call('ZADD', KEYS[1], now + 3600000, user)
    end
    return 'filled'";

/// Measures the part.
pub async fn measure(plan: &Plan, report: &mut Report) -> anyhow::Result<()> {
    report.part(
        "Expiry lag",
        "1,000 users send one heartbeat each, 200 a second, and fall silent. *Transition*: from the deadline to the stream \
         entry, by Redis's clock. *SQL*: from the deadline to the commit, by PostgreSQL's (`pg_xact_commit_timestamp`). Redis has \
         its default settings.",
    );
    let scene = Scene::start(WATCHED, &[TTL]).await?;
    let mut rows = Vec::new();
    let mut there = 0;
    for others in OTHERS {
        fill(&scene, there, others)?;
        there = others;
        let (mut transition, mut sql) = (Lags::default(), Lags::default());
        for round in 0..plan.rounds {
            let (made, committed) = fall_silent(&scene).await?;
            println!(
                "round {}: among {others} others: transition p50 {} p99 {} ms, SQL p50 {} p99 {} ms",
                round + 1,
                at(&made, 50),
                at(&made, 99),
                at(&committed, 50),
                at(&committed, 99)
            );
            report.keep(&format!("lags to the transition among {others} others, ms"), round, &made);
            report.keep(&format!("lags to the commit among {others} others, ms"), round, &committed);
            transition.note(&made);
            sql.note(&committed);
        }
        rows.push(vec![
            others.to_string(),
            spread(&transition.p50),
            spread(&transition.p99),
            spread(&transition.most),
            spread(&sql.p50),
            spread(&sql.p99),
            spread(&sql.most),
        ]);
        let among = format!("among {others} others");
        report.goal(
            &format!("deadline to transition, p50, {among}"),
            &transition.p50,
            "ms",
            Goal::AtMost(100.0),
        );
        report.goal(
            &format!("deadline to transition, p99, {among}"),
            &transition.p99,
            "ms",
            Goal::AtMost(1_000.0),
        );
        report.goal(&format!("deadline to SQL, p99, {among}"), &sql.p99, "ms", Goal::AtMost(1_500.0));
    }
    report.table(
        &["others", "transition p50 ms", "p99 ms", "most ms", "SQL p50 ms", "p99 ms", "most ms"],
        &rows,
    );
    scene.end().await
}

/// One figure of each round.
#[derive(Default)]
struct Lags {
    p50: Vec<f64>,
    p99: Vec<f64>,
    most: Vec<f64>,
}

impl Lags {
    fn note(&mut self, sorted: &[f64]) {
        self.p50.push(at(sorted, 50));
        self.p99.push(at(sorted, 99));
        self.most.push(at(sorted, 100));
    }
}

/// The figure that so many percent do not exceed.
fn at(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

/// Adds live users, from as many as there are to as many as there should be.
fn fill(scene: &Scene, there: i64, others: i64) -> anyhow::Result<()> {
    let mut from = FIRST_OTHER + there;
    let end = FIRST_OTHER + others;
    while from < end {
        let until = (from + CHUNK).min(end) - 1;
        let call = ["EVAL", FILL, "1", "presence:{0}:live", &from.to_string(), &until.to_string()]
            .map(str::to_owned);
        let call: Vec<&str> = call.iter().map(String::as_str).collect();
        let said = scene.redis[0].cli(&call);
        ensure!(said == "filled", "Redis was not filled: {said}");
        from = until + 1;
    }
    Ok(())
}

/// Everyone sends one heartbeat and expires; how late that was noticed, and written, in ms, the least first.
async fn fall_silent(scene: &Scene) -> anyhow::Result<(Vec<f64>, Vec<f64>)> {
    let last = scene.sql.number("SELECT coalesce(max(id), 0)::text FROM presence_transitions").await;
    #[expect(clippy::cast_precision_loss, reason = "a thousand")]
    let window = Duration::from_secs_f64((WATCHED as f64 - 0.5) / PER_SECOND);
    let load = Load {
        address: scene.address()?,
        connections: 64,
        requests: Requests::heartbeats(1, WATCHED),
        pace: Pace::Open(PER_SECOND),
        warm_up: Duration::ZERO,
        window,
        watch: vec![],
    };
    load.run()?;
    let expired = format!("FROM presence_transitions WHERE id > {last} AND reason = 'expired'");
    let count = format!("SELECT count(*)::text {expired}");
    eventually(Duration::from_mins(5), async || {
        let seen = scene.sql.number(&count).await;
        if seen >= WATCHED { Ok(()) } else { Err(format!("{seen} of {WATCHED} have expired")) }
    })
    .await;
    let lags = "SELECT (split_part(split_part(stream_id, '/', 2), '-', 1)::float8 - extract(epoch FROM at) * 1000)::text, \
                (extract(epoch FROM pg_xact_commit_timestamp(xmin) - at) * 1000)::float8::text";
    let rows = scene.sql.rows(&format!("{lags} {expired}")).await;
    let column = |index: usize| -> anyhow::Result<Vec<f64>> {
        let mut lags =
            rows.iter().map(|row| Ok(row[index].parse()?)).collect::<anyhow::Result<Vec<f64>>>()?;
        lags.sort_by(f64::total_cmp);
        Ok(lags)
    };
    Ok((column(0)?, column(1)?))
}
