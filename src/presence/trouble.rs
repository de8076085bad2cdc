//! A failure that lasts is worth one line when it begins and one when it ends.

use std::fmt::Display;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

/// A trouble is over when nothing of it was noted for so long: where some calls fail and some do not, a line for each
/// change would bury what they say.
const QUIET_MS: u64 = 1_000;

static BEGINNING: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Logs the beginning and the end of a trouble, and nothing between.
#[derive(Debug)]
pub struct Trouble {
    what: &'static str,
    /// When it was last noted, ms of this process.
    noted: AtomicU64,
    /// How many are in it: one at most, unless they [`share`](Self::share) it.
    sufferers: AtomicUsize,
}

/// The part that one of several has in a trouble, which is over when it is over for all.
#[derive(Debug)]
pub struct Share<'a> {
    trouble: &'a Trouble,
    under_way: bool,
}

impl Trouble {
    /// `what` is the line's text: what does not work, and what follows from it.
    pub const fn new(what: &'static str) -> Self {
        Self { what, noted: AtomicU64::new(0), sufferers: AtomicUsize::new(0) }
    }

    /// It failed (again).
    pub fn note(&self, error: &dyn Display) {
        self.noted.store(now_ms(), Ordering::Relaxed);
        if self.sufferers.swap(1, Ordering::Relaxed) == 0 {
            self.begun(error);
        }
    }

    /// It worked (again): the end, if it has been quiet for a while. Asked often, this costs a load while all is well.
    pub fn over(&self) {
        if self.sufferers.load(Ordering::Relaxed) > 0 && self.is_over_at(now_ms()) {
            self.ended();
        }
    }

    fn is_over_at(&self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.noted.load(Ordering::Relaxed)) >= QUIET_MS
            && self.sufferers.swap(0, Ordering::Relaxed) > 0
    }

    /// For each of several who do the same thing, and may be in trouble one without the other.
    pub const fn share(&self) -> Share<'_> {
        Share { trouble: self, under_way: false }
    }

    fn begun(&self, error: &dyn Display) {
        tracing::warn!(%error, "{}", self.what);
    }

    fn ended(&self) {
        tracing::info!("over: {}", self.what);
    }
}

fn now_ms() -> u64 {
    u64::try_from(BEGINNING.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Share<'_> {
    /// It failed here (again).
    pub fn note(&mut self, error: &dyn Display) {
        if !std::mem::replace(&mut self.under_way, true)
            && self.trouble.sufferers.fetch_add(1, Ordering::Relaxed) == 0
        {
            self.trouble.begun(error);
        }
    }

    /// It worked here (again).
    pub fn over(&mut self) {
        if std::mem::take(&mut self.under_way) && self.trouble.sufferers.fetch_sub(1, Ordering::Relaxed) == 1
        {
            self.trouble.ended();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trouble_that_comes_and_goes_is_one() {
        let trouble = Trouble::new("x");
        assert!(!trouble.is_over_at(5_000), "it never began");
        trouble.note(&"");
        let noted = trouble.noted.load(Ordering::Relaxed);
        assert!(!trouble.is_over_at(noted + 999));
        assert!(trouble.is_over_at(noted + 1_000));
        assert!(!trouble.is_over_at(noted + 2_000), "it ends once");
    }

    #[test]
    fn a_shared_trouble_is_over_when_it_is_over_for_all() {
        let trouble = Trouble::new("x");
        let (mut one, mut other) = (trouble.share(), trouble.share());
        one.note(&"");
        one.note(&"");
        other.note(&"");
        other.over();
        other.over();
        assert_eq!(trouble.sufferers.load(Ordering::Relaxed), 1);
        one.over();
        assert_eq!(trouble.sufferers.load(Ordering::Relaxed), 0);
    }
}
