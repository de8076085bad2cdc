//! The loop that asks and listens.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::ensure;
use hdrhistogram::Histogram;
use mio::{Events, Poll};

use super::connection::Connection;
use super::requests::Prebuilt;
use super::{Latency, Load, Outcome, Pace, count};
use crate::process::{self, Cpu, Watched};

/// Answers up to this size are read in one go.
const SCRATCH: usize = 256 * 1_024;
/// How long the last answers may take after the end.
const PATIENCE: Duration = Duration::from_secs(10);
/// What takes longer than this is counted as this, µs.
const LONGEST: u64 = 600_000_000;
/// The system's own polling knows whole milliseconds; what is due sooner is waited for in steps of this.
const STEP: Duration = Duration::from_micros(50);
const COARSE: Duration = Duration::from_millis(2);

/// Runs the load.
pub fn run(load: &Load) -> anyhow::Result<Outcome> {
    let requests = Prebuilt::new(&load.requests)?;
    let poll = Poll::new()?;
    let connections = (0..load.connections)
        .map(|number| Connection::open(load.address, poll.registry(), number, &requests))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let watch =
        [load.watch.clone(), vec![Watched { name: "generator".into(), pid: std::process::id() }]].concat();
    let begin = Instant::now();
    let from = begin + load.warm_up;
    let mut engine = Engine {
        load,
        requests,
        poll,
        free: (0..connections.len()).collect(),
        connections,
        watch,
        begin,
        from,
        until: from + load.window,
        next: 0,
        overdue: VecDeque::new(),
        asked: 0,
        answered: 0,
        counted: 0,
        in_time: 0,
        unsent: 0,
        latency: Histogram::new_with_bounds(1, LONGEST, 3)?,
        lateness: Histogram::new_with_bounds(1, LONGEST, 3)?,
        cpu_from: None,
        cpu_until: None,
    };
    engine.run()?;
    engine.outcome()
}

struct Engine<'a> {
    load: &'a Load,
    requests: Prebuilt,
    poll: Poll,
    connections: Vec<Connection>,
    /// Connections without a request, in the order in which they became so: all have their turn.
    free: VecDeque<usize>,
    watch: Vec<Watched>,
    begin: Instant,
    from: Instant,
    until: Instant,
    /// The number of the next request; in the open loop, of the next that comes due.
    next: usize,
    /// When those were due for which there was no connection.
    overdue: VecDeque<(usize, Instant)>,
    asked: u64,
    answered: u64,
    counted: u64,
    /// Of those, answered before the window closed.
    in_time: u64,
    unsent: u64,
    /// µs.
    latency: Histogram<u64>,
    /// µs.
    lateness: Histogram<u64>,
    cpu_from: Option<(Instant, Cpu)>,
    cpu_until: Option<(Instant, Cpu)>,
}

impl Engine<'_> {
    fn run(&mut self) -> anyhow::Result<()> {
        let mut events = Events::with_capacity(4_096);
        let mut scratch = vec![0; SCRATCH];
        loop {
            let now = Instant::now();
            self.look_at_cpu(now);
            self.send_what_is_due(now)?;
            let over = match self.load.pace {
                // What is under way counts for nobody.
                Pace::Closed => now >= self.until,
                Pace::Open(_) | Pace::Once => self.nothing_is_due(now) && self.answered == self.asked,
            };
            if over {
                break;
            }
            // What was due within the window is asked behind it too, or a slow server would hide what it kept waiting.
            if now >= self.until + PATIENCE / 2 {
                self.unsent += u64::try_from(self.overdue.len())?;
                self.overdue.clear();
            }
            if !matches!(self.load.pace, Pace::Once) {
                let missing = self.asked - self.answered;
                ensure!(now < self.until + PATIENCE, "{missing} answers have not come within {PATIENCE:?}");
            }
            self.wait(&mut events, now)?;
            for event in &events {
                let number = event.token().0;
                if event.is_writable() {
                    self.connections[number].send(&self.requests)?;
                }
                if event.is_readable()
                    && let Some(since) = self.connections[number].hear(&mut scratch)?
                {
                    self.note(number, since)?;
                }
            }
        }
        if self.cpu_until.is_none() {
            self.cpu_until = Some((Instant::now(), process::cpu(&self.watch)));
        }
        Ok(())
    }

    fn look_at_cpu(&mut self, now: Instant) {
        if self.cpu_from.is_none() && now >= self.from {
            self.cpu_from = Some((now, process::cpu(&self.watch)));
        }
        if self.cpu_until.is_none() && now >= self.until && !matches!(self.load.pace, Pace::Once) {
            self.cpu_until = Some((now, process::cpu(&self.watch)));
        }
    }

    fn nothing_is_due(&self, now: Instant) -> bool {
        match self.load.pace {
            Pace::Once => self.next >= self.requests.len(),
            Pace::Closed | Pace::Open(_) => now >= self.until && self.overdue.is_empty(),
        }
    }

    /// When the request of this number is due.
    fn due(&self, number: usize) -> Instant {
        match self.load.pace {
            Pace::Open(per_second) => self.begin + Duration::from_secs_f64(count(number as u64) / per_second),
            Pace::Closed | Pace::Once => self.begin,
        }
    }

    fn send_what_is_due(&mut self, now: Instant) -> anyhow::Result<()> {
        match self.load.pace {
            Pace::Open(_) => loop {
                let due = self.due(self.next);
                if due > now || due >= self.until {
                    return Ok(());
                }
                let number = self.next;
                self.next += 1;
                match self.free.pop_front() {
                    Some(connection) => {
                        // The generator's own fault; waiting for a free connection is the server's.
                        if due >= self.from {
                            self.lateness.saturating_record(micros(due.elapsed()));
                        }
                        self.ask(connection, number, due)?;
                    }
                    None => self.overdue.push_back((number, due)),
                }
            },
            Pace::Closed | Pace::Once => {
                while !self.nothing_is_due(now)
                    && let Some(connection) = self.free.pop_front()
                {
                    let number = self.next;
                    self.next += 1;
                    self.ask(connection, number, Instant::now())?;
                }
                Ok(())
            }
        }
    }

    fn ask(&mut self, connection: usize, number: usize, since: Instant) -> anyhow::Result<()> {
        self.asked += 1;
        self.connections[connection].ask(&self.requests, number, since)
    }

    /// Notes an answer, and lets the connection ask the next.
    fn note(&mut self, connection: usize, since: Instant) -> anyhow::Result<()> {
        let now = Instant::now();
        self.answered += 1;
        let counts = match self.load.pace {
            Pace::Closed => now >= self.from && now < self.until,
            // However late it came.
            Pace::Open(_) => since >= self.from,
            Pace::Once => true,
        };
        if counts {
            self.counted += 1;
            self.in_time += u64::from(now < self.until || matches!(self.load.pace, Pace::Once));
            self.latency.saturating_record(micros(now - since));
        }
        match self.load.pace {
            Pace::Closed => {
                let number = self.next;
                self.next += 1;
                self.ask(connection, number, now)
            }
            Pace::Once if !self.nothing_is_due(now) => {
                let number = self.next;
                self.next += 1;
                self.ask(connection, number, now)
            }
            Pace::Once | Pace::Open(_) => {
                match self.overdue.pop_front() {
                    Some((number, due)) => self.ask(connection, number, due)?,
                    None => self.free.push_back(connection),
                }
                Ok(())
            }
        }
    }

    /// Waits for events, but not past what is due next.
    fn wait(&mut self, events: &mut Events, now: Instant) -> anyhow::Result<()> {
        let ahead = match self.load.pace {
            Pace::Open(_) if now < self.until => self.due(self.next).saturating_duration_since(now),
            Pace::Open(_) | Pace::Closed | Pace::Once => Duration::from_millis(20),
        };
        let timeout = if ahead >= COARSE { ahead.saturating_sub(COARSE / 2) } else { Duration::ZERO };
        if let Err(error) = self.poll.poll(events, Some(timeout))
            && error.kind() != std::io::ErrorKind::Interrupted
        {
            return Err(error.into());
        }
        if timeout.is_zero() && events.is_empty() {
            std::thread::sleep(ahead.min(STEP));
        }
        Ok(())
    }

    fn outcome(self) -> anyhow::Result<Outcome> {
        let (Some((from, cpu_from)), Some((until, cpu_until))) = (self.cpu_from, self.cpu_until) else {
            anyhow::bail!("the window was never open");
        };
        ensure!(self.counted > 0, "no answer came within the window");
        let seconds = match self.load.pace {
            Pace::Closed | Pace::Open(_) => self.load.window.as_secs_f64(),
            Pace::Once => (until - from).as_secs_f64(),
        };
        let ms = |micros: u64| count(micros) / 1e3;
        let at = |quantile: f64| ms(self.latency.value_at_quantile(quantile));
        Ok(Outcome {
            answers: self.counted,
            seconds,
            in_all: self.answered + u64::try_from(self.connections.len())?,
            unsent: self.unsent,
            per_second: count(self.in_time) / seconds,
            latency: Latency {
                p50_ms: at(0.5),
                p99_ms: at(0.99),
                p999_ms: at(0.999),
                most_ms: ms(self.latency.max()),
            },
            late_p99_ms: ms(self.lateness.value_at_quantile(0.99)),
            cpu: process::between(&cpu_from, &cpu_until),
        })
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
