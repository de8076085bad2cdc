//! A failure that lasts is worth one line when it begins and one when it ends.

use std::fmt::Display;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Logs the beginning and the end of a trouble, and nothing between.
#[derive(Debug)]
pub struct Trouble {
    what: &'static str,
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
        Self { what, sufferers: AtomicUsize::new(0) }
    }

    /// It failed (again).
    pub fn note(&self, error: &dyn Display) {
        if self.sufferers.swap(1, Ordering::Relaxed) == 0 {
            self.begun(error);
        }
    }

    /// It worked (again).
    pub fn over(&self) {
        if self.sufferers.load(Ordering::Relaxed) > 0 && self.sufferers.swap(0, Ordering::Relaxed) > 0 {
            self.ended();
        }
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
