//! Figures, goals, and what is written of them: `target/bench/report.md`, with the raw figures as JSON beside it.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Value, json};

use crate::load::Outcome;
use crate::plan::Plan;
use crate::process;

/// For how long is looked whether the machine is busy.
const LOOK: Duration = Duration::from_secs(1);
/// The share of all cores that an idle machine may use.
const QUIET: f64 = 0.1;

/// What a figure should be.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Goal {
    fn is_reached_by(self, figure: f64) -> bool {
        match self {
            Self::AtLeast(least) => figure >= least,
            Self::AtMost(most) => figure <= most,
        }
    }

    fn shown(self) -> String {
        match self {
            Self::AtLeast(least) => format!("≥ {}", figure(least)),
            Self::AtMost(most) => format!("≤ {}", figure(most)),
        }
    }
}

/// What a run has found.
pub struct Report {
    head: String,
    goals: Vec<String>,
    parts: String,
    raw: Vec<Value>,
}

impl Report {
    /// An empty one; says what the machine is doing.
    pub fn new(plan: &Plan) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut head = format!(
            "# Benchmarks\n\npresenced {}, {}, {} {}, {cores} cores; {} rounds of {} s. A figure is a median, with the least \
             and the most of all rounds behind it. Servers, stores and generator share the cores.\n\n",
            env!("CARGO_PKG_VERSION"),
            chrono::Utc::now().format("%Y-%m-%d %H:%M UTC"),
            std::env::consts::OS,
            std::env::consts::ARCH,
            plan.rounds,
            plan.window.as_secs_f64(),
        );
        let load = process::load_average();
        match load {
            Some([one, five, quarter]) => {
                let _ = writeln!(head, "Load average before it began: {one} {five} {quarter}.");
            }
            None => head.push_str("The load average is not known here.\n"),
        }
        print!("{head}");
        let raw = json!({
            "version": env!("CARGO_PKG_VERSION"),
            "begun": chrono::Utc::now(),
            "cores": cores,
            "rounds": plan.rounds,
            "seconds": plan.window.as_secs_f64(),
            "load_average": load,
        });
        Self { head, goals: vec![], parts: String::new(), raw: vec![raw] }
    }

    /// Begins a part, of which nothing runs yet: what makes the machine busy now will disturb it.
    pub fn part(&mut self, title: &str, about: &str) {
        println!("\n== {title}");
        let _ = write!(self.parts, "\n## {title}\n\n{about}\n");
        // The load average of the last minute still counts the compiler that has made this program.
        let busy = match process::busy_for(LOOK) {
            Some(share) => (share > QUIET).then(|| format!("{:.0} % of its cores", share * 100.0)),
            None => process::load_average()
                .filter(|[one, ..]| *one > 1.0)
                .map(|[one, ..]| format!("load average {one}")),
        };
        if let Some(busy) = busy {
            self.say(&format!(
                "**The machine was busy with something else before this began ({busy}): trust ratios within a round more than \
                 figures, and measure again.**"
            ));
        }
    }

    /// A sentence of the part.
    pub fn say(&mut self, text: &str) {
        println!("{text}");
        let _ = write!(self.parts, "\n{text}\n");
    }

    /// A table of the part.
    pub fn table(&mut self, columns: &[&str], rows: &[Vec<String>]) {
        let mut table = format!("\n| {} |\n|{}\n", columns.join(" | "), "---|".repeat(columns.len()));
        for row in rows {
            let _ = writeln!(table, "| {} |", row.join(" | "));
        }
        print!("{table}");
        self.parts.push_str(&table);
    }

    /// Holds a figure of each round against a goal.
    pub fn goal(&mut self, what: &str, figures: &[f64], unit: &str, goal: Goal) {
        let reached = goal.is_reached_by(median(figures));
        let verdict = if reached { "reached" } else { "**missed**" };
        let row = format!("| {what} | {} {unit} | {} | {verdict} |", spread(figures), goal.shown());
        println!("{what}: {} {unit}, goal {}: {}", spread(figures), goal.shown(), verdict.trim_matches('*'));
        self.goals.push(row);
        self.raw.push(json!({"goal": what, "figures": figures, "unit": unit, "reached": reached}));
    }

    /// Keeps a raw figure.
    pub fn keep<F: Serialize>(&mut self, what: &str, round: usize, figures: &F) {
        self.raw.push(json!({"what": what, "round": round + 1, "figures": figures}));
    }

    /// Writes what there is so far.
    pub fn write(&self) -> anyhow::Result<PathBuf> {
        // Beside the folder that cargo gives benches for their files: `target/bench`.
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench");
        fs::create_dir_all(&folder)?;
        let mut text = self.head.clone();
        if !self.goals.is_empty() {
            text.push_str("\n## Goals\n\n| what | measured | goal | |\n|---|---|---|---|\n");
            for row in &self.goals {
                let _ = writeln!(text, "{row}");
            }
        }
        text.push_str(&self.parts);
        text.push_str("\nThe storm of expiries is a command of its own: `make storm`.\n");
        let report = folder.join("report.md");
        fs::write(&report, text)?;
        fs::write(folder.join("report.json"), serde_json::to_vec_pretty(&self.raw)?)?;
        Ok(report)
    }
}

/// Measurements of one thing, one a round.
#[derive(Debug, Default)]
pub struct Rounds(Vec<Outcome>);

impl Rounds {
    /// Notes a round.
    pub fn push(&mut self, outcome: Outcome) {
        self.0.push(outcome);
    }

    /// One figure of each round.
    pub fn each(&self, figure: impl Fn(&Outcome) -> f64) -> Vec<f64> {
        self.0.iter().map(figure).collect()
    }

    /// The figure of each round, divided by the other's of the same round.
    pub fn over(&self, other: &Self, figure: impl Fn(&Outcome) -> f64) -> Vec<f64> {
        let mine = self.each(&figure);
        mine.iter().zip(other.each(&figure)).map(|(mine, theirs)| mine / theirs).collect()
    }
}

/// The middle one; of an even number, the mean of both.
pub fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.get(sorted.len().wrapping_sub(1) / 2), sorted.get(sorted.len() / 2)) {
        (Some(lower), Some(upper)) => f64::midpoint(*lower, *upper),
        _ => f64::NAN,
    }
}

/// The median, with the least and the most.
pub fn spread(figures: &[f64]) -> String {
    let least = figures.iter().copied().fold(f64::INFINITY, f64::min);
    let most = figures.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if figures.len() < 2 {
        return figure(median(figures));
    }
    format!("{} ({} to {})", figure(median(figures)), figure(least), figure(most))
}

/// A number with the digits that mean something.
pub fn figure(number: f64) -> String {
    match number.abs() {
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{number:.2}"),
        size if size >= 0.01 => format!("{number:.3}"),
        _ => format!("{number:.5}"),
    }
}
