//! A failure that lasts is worth one line when it begins and one when it ends.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};

/// Logs the beginning and the end of a trouble, and nothing between.
#[derive(Debug)]
pub struct Trouble {
    what: &'static str,
    under_way: AtomicBool,
}

impl Trouble {
    /// `what` is the line's text: what does not work, and what follows from it.
    pub const fn new(what: &'static str) -> Self {
        Self { what, under_way: AtomicBool::new(false) }
    }

    /// It failed (again).
    pub fn note(&self, error: &dyn Display) {
        if !self.under_way.swap(true, Ordering::Relaxed) {
            tracing::warn!(%error, "{}", self.what);
        }
    }

    /// It worked (again).
    pub fn over(&self) {
        if self.under_way.load(Ordering::Relaxed) && self.under_way.swap(false, Ordering::Relaxed) {
            tracing::info!("over: {}", self.what);
        }
    }
}
