//! CPU and memory of processes, as the system counts them.

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A process whose CPU is of interest, with its children (PostgreSQL is a family).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Watched {
    /// What the figures call it; those of one name are added up.
    pub name: String,
    /// Its id.
    pub pid: u32,
}

/// CPU seconds so far, by name.
pub type Cpu = BTreeMap<String, f64>;

/// What one process has had, in seconds, and whose child it is.
struct Usage {
    pid: u32,
    parent: u32,
    own: f64,
    /// Of children that have ended.
    ended: f64,
}

/// CPU (user and system) of these processes and of their children, in seconds.
pub fn cpu(watched: &[Watched]) -> Cpu {
    let table = table();
    let of = |root: u32| -> f64 {
        let family = table.iter().filter(|usage| usage.pid == root || usage.parent == root);
        family.map(|usage| usage.own + if usage.pid == root { usage.ended } else { 0.0 }).sum()
    };
    let mut sums = Cpu::new();
    for process in watched {
        *sums.entry(process.name.clone()).or_default() += of(process.pid);
    }
    sums
}

/// What was added between two looks.
pub fn between(before: &Cpu, after: &Cpu) -> Cpu {
    let before_of = |name: &str| before.get(name).copied().unwrap_or(0.0);
    after.iter().map(|(name, seconds)| (name.clone(), (seconds - before_of(name)).max(0.0))).collect()
}

/// All processes; by `ps` where there is no `/proc`.
fn table() -> Vec<Usage> {
    let Ok(folder) = fs::read_dir("/proc") else { return ps() };
    let pids = folder.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let found: Vec<Usage> = pids.filter_map(stat).collect();
    if found.is_empty() { ps() } else { found }
}

/// `/proc/<pid>/stat` counts in hundredths of a second. The name in it may hold spaces, and ends with the last bracket.
fn stat(pid: u32) -> Option<Usage> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let seconds = |index: usize| -> Option<f64> {
        let ticks: u32 = fields.get(index)?.parse().ok()?;
        Some(f64::from(ticks) / 100.0)
    };
    Some(Usage {
        pid,
        parent: fields.get(1)?.parse().ok()?,
        own: seconds(11)? + seconds(12)?,
        ended: seconds(13)? + seconds(14)?,
    })
}

fn ps() -> Vec<Usage> {
    let output = Command::new("ps").args(["-A", "-o", "pid=,ppid=,cputime="]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let usage = |line: &str| -> Option<Usage> {
        let mut words = line.split_whitespace();
        let (pid, parent) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        // [[dd-]hh:]mm:ss[.hh]
        let own = words
            .next()?
            .replace('-', ":")
            .split(':')
            .try_fold(0.0, |sum, part| Some(sum * 60.0 + part.parse::<f64>().ok()?))?;
        Some(Usage { pid, parent, own, ended: 0.0 })
    };
    text.lines().filter_map(usage).collect()
}

/// Resident memory, bytes.
pub fn resident(pid: u32) -> Option<f64> {
    let output = Command::new("ps").args(["-o", "rss=", "-p", &pid.to_string()]).output().ok()?;
    let kb: f64 = String::from_utf8_lossy(&output.stdout).trim().parse().ok()?;
    Some(kb * 1_024.0)
}

/// How busy the cores were meanwhile, from 0 to 1, what a host took from this machine included; `None` where there is no
/// `/proc/stat`.
pub fn busy_for(span: Duration) -> Option<f64> {
    let before = ticks()?;
    std::thread::sleep(span);
    let after = ticks()?;
    let (busy, all) = (after.0 - before.0, after.1 - before.1);
    (all > 0.0).then(|| busy / all)
}

/// Time of all cores since the start: spent on something, and in all.
fn ticks() -> Option<(f64, f64)> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let figures: Vec<f64> = text
        .lines()
        .next()?
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|word| word.parse().ok())
        .collect();
    let all: f64 = figures.iter().sum();
    // user nice system IDLE IOWAIT irq softirq steal
    Some((all - figures.get(3)? - figures.get(4)?, all))
}

/// The load averages of the last 1, 5 and 15 minutes.
pub fn load_average() -> Option<[f64; 3]> {
    let text = fs::read_to_string("/proc/loadavg").ok().or_else(|| {
        let output = Command::new("sysctl").args(["-n", "vm.loadavg"]).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    })?;
    let figures: Vec<f64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    figures.get(..3)?.try_into().ok()
}
