//! The generator: one thread in a process of its own, so that its CPU can be told apart.
//!
//! Closed loop for throughput: each connection asks again as soon as it is answered. Open loop for latency: requests are
//! due at a given rate whatever the answers do, and are timed from when each was due, so that a server which stalls cannot
//! hide what it did not take meanwhile (coordinated omission).

mod answer;
mod connection;
mod engine;
mod requests;

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};

pub use requests::Requests;

use crate::process::{Cpu, Watched};

/// What to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Load {
    /// Whom to ask.
    pub address: SocketAddr,
    /// How many keep-alive connections.
    pub connections: usize,
    /// What to ask, in turn.
    pub requests: Requests,
    /// How fast.
    pub pace: Pace,
    /// What goes before and is not counted.
    pub warm_up: Duration,
    /// What is counted.
    pub window: Duration,
    /// Processes whose CPU within the window is told.
    pub watch: Vec<Watched>,
}

/// How fast requests follow each other.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Pace {
    /// Each connection asks again once it is answered.
    Closed,
    /// Requests are due at this rate, a second.
    Open(f64),
    /// As `Closed`, until each request was answered once, however long that takes.
    Once,
}

/// What came of it, within the window.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Outcome {
    /// Good answers; in the open loop, to all that was due within the window, however late.
    pub answers: u64,
    /// How long the window was, seconds.
    pub seconds: f64,
    /// Good answers a second; in the open loop, of those that came before the window closed.
    pub per_second: f64,
    /// Good answers outside the window too, the first of each connection included.
    pub in_all: u64,
    /// Requests that were due and never sent, because every connection still waited long after: the rate was too high.
    pub unsent: u64,
    /// How long answers took.
    pub latency: Latency,
    /// How late the generator itself was to send what was due, p99, ms.
    pub late_p99_ms: f64,
    /// CPU seconds by process; `generator` is this one.
    pub cpu: Cpu,
}

/// How long answers took, ms.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[expect(clippy::struct_field_names, reason = "units stand in names")]
pub struct Latency {
    /// Half took no longer.
    pub p50_ms: f64,
    /// 99 of 100 took no longer.
    pub p99_ms: f64,
    /// 999 of 1,000 took no longer.
    pub p999_ms: f64,
    /// None took longer.
    pub most_ms: f64,
}

impl Outcome {
    /// CPU of one process for an answer, µs.
    pub fn cpu_us(&self, process: &str) -> f64 {
        let seconds = self.cpu.get(process).copied().unwrap_or(0.0);
        if self.answers == 0 { 0.0 } else { seconds * 1e6 / count(self.answers) }
    }
}

/// A counter as a figure; beyond 2^53 it would lose digits.
#[expect(clippy::cast_precision_loss, reason = "no run counts that far")]
pub fn count(number: u64) -> f64 {
    number as f64
}

/// A generator at work.
pub struct Running(Child);

impl Load {
    /// Runs a generator and waits for its end.
    ///
    /// # Errors
    /// Where an answer was not 200, or none came.
    pub fn run(&self) -> anyhow::Result<Outcome> {
        self.begin()?.end()
    }

    /// Starts a generator.
    pub fn begin(&self) -> anyhow::Result<Running> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("load")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the generator does not start")?;
        let mut stdin = child.stdin.take().context("a pipe to the generator")?;
        let running = Running(child);
        stdin.write_all(&serde_json::to_vec(self)?)?;
        Ok(running)
    }
}

impl Running {
    /// Waits for what came of it.
    pub fn end(mut self) -> anyhow::Result<Outcome> {
        let mut told = String::new();
        self.0.stdout.take().context("a pipe from the generator")?.read_to_string(&mut told)?;
        let status = self.0.wait()?;
        ensure!(status.success(), "the generator found something broken; its message stands above");
        Ok(serde_json::from_str(&told)?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended by itself takes no harm.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The generator's whole life: reads a [`Load`] and prints an [`Outcome`], both as JSON.
pub fn child() -> anyhow::Result<()> {
    let mut order = String::new();
    std::io::stdin().read_to_string(&mut order)?;
    let load: Load = serde_json::from_str(&order)?;
    rlimit::increase_nofile_limit(u64::MAX)?;
    let outcome = engine::run(&load)?;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}
