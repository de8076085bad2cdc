//! What is measured, how often and for how long: the arguments of `make bench`, which come as variables.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, ensure};

/// The parts of a run without `ONLY`, in their order.
const ALL: [&str; 7] = ["heartbeat", "latency", "crowd", "statements", "lists", "expiry", "million"];
/// Parts that run only where they are named.
const NAMED: [&str; 1] = ["cluster"];

/// The settings of a run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The parts, in their order.
    pub parts: Vec<String>,
    /// How often everything is measured in turn.
    pub rounds: usize,
    /// How long one measurement takes, after its warm-up.
    pub window: Duration,
    /// How many users there are in the part `million`.
    pub million: i64,
}

impl Plan {
    /// Reads `ONLY`, `ROUNDS`, `SECONDS` and `USERS`; what is empty keeps its default.
    pub fn from_environment() -> anyhow::Result<Self> {
        let only = std::env::var("ONLY").unwrap_or_default();
        let wanted: Vec<&str> = only.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
        for part in &wanted {
            ensure!(
                ALL.contains(part) || NAMED.contains(part),
                "ONLY may name, separated by commas: {}, {}; not '{part}'",
                ALL.join(", "),
                NAMED.join(", ")
            );
        }
        let parts = ALL
            .iter()
            .chain(&NAMED)
            .filter(|part| if wanted.is_empty() { ALL.contains(part) } else { wanted.contains(part) });
        let (rounds, seconds) = (number("ROUNDS", 3)?, number("SECONDS", 10.0)?);
        let million = number("USERS", 1_000_000)?;
        ensure!(rounds > 0, "ROUNDS must be 1 or more");
        ensure!((0.1..=3_600.0).contains(&seconds), "SECONDS must lie within 0.1 and 3600");
        ensure!(million > 0, "USERS must be 1 or more");
        Ok(Self {
            parts: parts.map(ToString::to_string).collect(),
            rounds,
            window: Duration::from_secs_f64(seconds),
            million,
        })
    }

    /// How long a server is loaded before it is measured.
    pub fn warm_up(&self) -> Duration {
        (self.window / 5).min(Duration::from_secs(2))
    }
}

fn number<N: FromStr>(name: &str, default: N) -> anyhow::Result<N>
where
    N::Err: std::error::Error + Send + Sync + 'static,
{
    match std::env::var(name) {
        Ok(text) if !text.trim().is_empty() => {
            text.trim().parse().with_context(|| format!("{name} must be a number, not '{text}'"))
        }
        _ => Ok(default),
    }
}
