//! A data centre loses its uplink: everyone behind it falls silent within the same second, while others go on.
//!
//! `make storm` is the storm of half a million on the release build, with what it cost; with the other tests a small one runs.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Database, Scene, assert_alternates};
use crate::support::dice::Dice;
use crate::support::http::Api;
use crate::support::mint::access_token;
use crate::support::poll::eventually;

/// Those who go on: ids from here, so many.
const OTHERS: i64 = 500;
const TTL: Duration = Duration::from_mins(2);

/// Fills Redis with presences as heartbeats leave them, the deadlines spread over one second from `ARGV[3]` on.
const FILL: &str = "for user = tonumber(ARGV[1]), tonumber(ARGV[2]) do
      local deadline = tonumber(ARGV[3]) + user % 1000
      local seen = deadline - tonumber(ARGV[4])
      local key = 'presence:{0}:user:' .. user
      redis.call('HSET', key, 'status', 'online', 'since', seen, 's:phone', seen)
      redis.call('PEXPIREAT', key, deadline)
      redis.call('ZADD', KEYS[1], deadline, user)
    end
    return 'filled'";

/// The figure after `name` in the process's `/proc/<pid>/status`, MB; `None` where there is no such thing.
fn memory_mb(pid: u32, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim_matches([':', ' ', '\t', 'k', 'B']).parse::<u64>().ok().map(|kb| kb / 1_024)
}

/// CPU that the process has had so far, seconds (user and system, from `/proc/<pid>/stat` in hundredths); zero where there
/// is no such thing.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or(vec![], |(_, rest)| rest.split(' ').collect());
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<u32>().ok()).unwrap_or(0);
    f64::from(ticks(11) + ticks(12)) / 100.0
}

/// The same of every backend of this database.
async fn postgres_cpu_seconds(scene: &Scene) -> f64 {
    let backends = "SELECT pid::text FROM pg_stat_activity WHERE datname = current_database()";
    let rows = scene.sql.rows(backends).await;
    rows.iter().map(|row| cpu_seconds(row[0].parse().unwrap())).sum()
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

/// Those who are not behind the uplink: 250 heartbeats a second.
struct Others {
    asking: JoinHandle<()>,
    answers: mpsc::UnboundedReceiver<(Instant, u16, Duration)>,
}

impl Others {
    fn begin(api: Api) -> Self {
        let tokens: Vec<_> = (1..=OTHERS).map(|user| access_token(user, "laptop")).collect();
        let (told, answers) = mpsc::unbounded_channel();
        let asking = tokio::spawn(async move {
            let mut dice = Dice::new(7);
            let mut pace = tokio::time::interval(Duration::from_millis(4));
            loop {
                // Timed from when it was due, so that waiting for one answer does not hide the next.
                let due = pace.tick().await;
                let token = tokens[usize::try_from(dice.roll(tokens.len() as u64)).unwrap()].clone();
                let (api, told) = (api.clone(), told.clone());
                tokio::spawn(async move {
                    let status = api.heartbeat(&token).await.0;
                    let _ = told.send((due, status.as_u16(), due.elapsed()));
                });
            }
        });
        Self { asking, answers }
    }

    /// How long the answers took of those that were due before the storm, and while it lasted, the quickest first. All
    /// were 200.
    async fn end(mut self, from: Instant, to: Instant) -> [Vec<Duration>; 2] {
        self.asking.abort();
        let (mut before, mut meanwhile) = (Vec::new(), Vec::new());
        while let Some((due, status, took)) = self.answers.recv().await {
            assert_eq!(status, 200, "no heartbeat fails");
            if due < from {
                before.push(took);
            } else if due <= to {
                meanwhile.push(took);
            }
        }
        before.sort_unstable();
        meanwhile.sort_unstable();
        [before, meanwhile]
    }
}

async fn storm(users: i64) {
    let scene = Scene::start(Database::Postgres, OTHERS + 1, TTL, &[]).await;
    let first = OTHERS + 2;
    let until = first + users - 1;
    // Their histories come first: a row without one begins offline.
    scene
        .sql
        .run(&format!(
            "INSERT INTO presence_transitions (user_id, stream_id, from_status, to_status, reason, at) \
             SELECT n, '0/1-' || n, 'offline', 'online', 'login', now() FROM generate_series({first}, {until}) n"
        ))
        .await;
    scene
        .sql
        .run(&format!(
            "INSERT INTO users (id, username, email, password_hash, role, online_status, presence_version) SELECT n, 'u' || n, \
             'u' || n || '@x.example', '-', 'user', 'online', 1 FROM generate_series({first}, {until}) n"
        ))
        .await;
    scene.sql.run("ANALYZE users").await;
    // The filling takes some seconds; the deadlines lie behind it.
    let lead_ms = 3_000 + users / 40;
    let deadline = chrono::Utc::now().timestamp_millis() + lead_ms;
    let ttl_ms = TTL.as_millis().to_string();
    for chunk in (first..=until).step_by(10_000) {
        let end = (chunk + 9_999).min(until);
        let arguments = [chunk.to_string(), end.to_string(), deadline.to_string(), ttl_ms.clone()];
        let mut call = vec!["EVAL", FILL, "1", "presence:{0}:live"];
        call.extend(arguments.iter().map(String::as_str));
        assert_eq!(scene.redis.cli(&call), "filled");
    }
    let (service, redis) = (scene.service.pid(), scene.redis.pid());
    let before_mb = memory_mb(service, "VmRSS");
    assert!(chrono::Utc::now().timestamp_millis() < deadline, "filled in time");

    let before = (cpu_seconds(service), cpu_seconds(redis), postgres_cpu_seconds(&scene).await);
    let others = Others::begin(scene.api.clone());

    let ahead = u64::try_from(deadline - chrono::Utc::now().timestamp_millis()).unwrap_or(0);
    let begun = Instant::now() + Duration::from_millis(ahead);
    // All deadlines have passed one second later; then the stream runs dry.
    let mut looks = tokio::time::interval(Duration::from_millis(50));
    eventually(Duration::from_millis(ahead) + Duration::from_mins(5), async || {
        looks.tick().await; // each is a process of its own
        let left = scene.redis.cli(&["ZCOUNT", "presence:{0}:live", "(0", &(deadline + 1_000).to_string()]);
        let stream = scene.redis.cli(&["XLEN", "presence:{0}:transitions"]);
        if begun.elapsed() > Duration::from_secs(1) && left == "0" && stream == "0" {
            Ok(())
        } else {
            Err((left, stream))
        }
    })
    .await;
    let took = begun.elapsed();
    let [calm, meanwhile] = others.end(begun, begun + took).await;
    let cpu = (
        cpu_seconds(service) - before.0,
        cpu_seconds(redis) - before.1,
        postgres_cpu_seconds(&scene).await - before.2,
    );
    let recorded = format!(
        "SELECT count(*)::text FROM presence_transitions WHERE user_id >= {first} AND reason = 'expired' AND \
         at = to_timestamp(({deadline} + user_id % 1000) / 1000.0)"
    );
    assert_eq!(scene.sql.number(&recorded).await, users, "each exactly once, at its deadline");
    let rows = format!(
        "SELECT count(*)::text FROM presence_transitions WHERE user_id >= {first} AND reason <> 'login'"
    );
    assert_eq!(scene.sql.number(&rows).await, users);
    let stuck =
        format!("SELECT count(*)::text FROM users WHERE id >= {first} AND online_status <> 'offline'");
    assert_eq!(scene.sql.number(&stuck).await, 0);
    let histories: Vec<_> =
        scene.histories().await.into_iter().filter(|row| row[0].parse::<i64>().unwrap() < first).collect();
    assert_alternates(&histories);
    let redis_peak = scene.redis.cli(&["INFO", "memory"]);
    let redis_peak = redis_peak.lines().find_map(|line| line.strip_prefix("used_memory_peak_human:"));
    println!(
        "{users} deadlines within a second: all in PostgreSQL {:.1} s after the first; {} heartbeats of others meanwhile, \
         p50 {:?} p99 {:?} most {:?}, p99 before {:?}; CPU seconds presenced {:.1}, Redis {:.1}, PostgreSQL {:.1}; presenced {before_mb:?} MB before, {:?} MB at the most; Redis {} at the most",
        took.as_secs_f32(),
        meanwhile.len(),
        percentile(&meanwhile, 50),
        percentile(&meanwhile, 99),
        meanwhile.last().unwrap(),
        percentile(&calm, 99),
        cpu.0,
        cpu.1,
        cpu.2,
        memory_mb(service, "VmHWM"),
        redis_peak.unwrap_or("?").trim(),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_expiries_is_recorded_exactly_once_while_others_go_on() {
    storm(20_000).await;
}

/// `make storm`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "half a million, on the release build: make storm"]
async fn a_storm_of_half_a_million() {
    storm(std::env::var("USERS").ok().and_then(|users| users.parse().ok()).unwrap_or(500_000)).await;
}
