//! What the crowd was told: the model that a round is checked against. Instants in ms, by the machine's one clock.

use std::collections::HashMap;

/// A span of time, ms, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub from: i64,
    pub to: i64,
}

impl Span {
    pub const fn meets(self, other: Self) -> bool {
        self.from <= other.to && other.from <= self.to
    }
}

/// A heartbeat that was acknowledged, at Redis's instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beat {
    pub at: i64,
    pub session: usize,
}

/// A request to end a session.
#[derive(Clone, Copy, Debug)]
pub struct End {
    pub session: usize,
    pub asked: Span,
    pub acknowledged: bool,
}

/// A block, which ends all sessions there are: those numbered below.
#[derive(Clone, Copy, Debug)]
pub struct Cut {
    pub below: usize,
    /// When it was asked for.
    pub from: i64,
    /// When it was known to be committed; `None` where that was never told.
    pub stands_from: Option<i64>,
}

impl Cut {
    /// Whether it had ended the session at that instant for sure.
    pub fn had_ended(&self, session: usize, at: i64) -> bool {
        session < self.below && self.stands_from.is_some_and(|stands| stands < at)
    }
}

/// A heartbeat that was refused for good.
#[derive(Clone, Copy, Debug)]
pub struct Refusal {
    pub asked: Span,
    pub session: usize,
    pub status: u16,
}

/// What one user's requests of a round came to.
#[derive(Clone, Debug, Default)]
pub struct Told {
    pub beats: Vec<Beat>,
    /// When each of them was sent, in their order.
    pub sent: Vec<i64>,
    /// When a request without a clear answer may have counted.
    pub doubts: Vec<Span>,
    pub ends: Vec<End>,
    pub cuts: Vec<Cut>,
    /// When an administrator's word, or SQL's, may have changed the presence.
    pub edits: Vec<Span>,
    /// When the account was blocked: from the commit until it was let in again.
    pub blocked: Vec<Span>,
    /// When it may have been blocked, at the most.
    pub perhaps_blocked: Vec<Span>,
    pub refusals: Vec<Refusal>,
    /// 503 or no answer.
    pub failures: Vec<Span>,
    /// 503 or no answer to the administrator.
    pub administration: Vec<Span>,
}

impl Told {
    /// Whether nothing but acknowledged heartbeats can have happened in the span.
    pub fn is_plain(&self, span: Span) -> bool {
        !self.doubts.iter().chain(&self.edits).chain(&self.perhaps_blocked).any(|doubt| doubt.meets(span))
            && !self.ends.iter().any(|end| end.asked.meets(span))
    }
}

/// Everybody's.
pub type Ledger = HashMap<i64, Told>;

/// A fault of a round.
#[derive(Clone, Debug)]
pub struct Fault {
    pub name: String,
    /// From the first moment to the one at which everything was in its place again.
    pub span: Span,
    /// What it leaves behind for a moment: connections that come back, a lease that runs out.
    pub aftermath_ms: i64,
    /// From when on Redis forgot what it was told: the instant of the copy that it came back with, or of its first life.
    pub forgot_since: Option<i64>,
    /// The only users whom it may concern; `None` for all.
    pub only: Option<std::collections::BTreeSet<i64>>,
}

impl Fault {
    /// Whether this user may notice it.
    pub fn concerns(&self, user: i64) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(&user))
    }

    /// What happened, in ms after `begin`.
    pub fn after(&self, begin: i64) -> String {
        format!("{} {} to {} ms", self.name, self.span.from - begin, self.span.to - begin)
    }
}

/// A row of `presence_transitions`.
#[derive(Clone, Debug)]
pub struct Row {
    pub to: String,
    pub from: String,
    pub reason: String,
    pub at: i64,
    pub recorded_at: i64,
    /// Redis's instant at which the transition was appended.
    pub appended: i64,
}
