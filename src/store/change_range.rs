//! Reading the log of account changes in bounded pieces.

use std::collections::HashSet;

use super::ChangeCursor;
use crate::model::UserId;

/// A place in the log of account changes between two changes that transactions at the same time may have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ChangeKey {
    /// The transaction; 0 where ids alone are the order.
    pub(super) xid: i64,
    /// The change.
    pub(super) id: i64,
}

/// The changes of accounts from a cursor to the end of the log, as that is at the first read; read page by page from both
/// ends, the newest first. So neither what changed just before nor what changed just after a mass of changes waits for it.
#[derive(Debug, Clone)]
pub struct ChangeRange {
    pub(super) since: ChangeCursor,
    /// The end of the log; `None` before the first read.
    pub(super) upto: Option<ChangeCursor>,
    /// What is newer is read, and what is older.
    pub(super) below: Option<ChangeKey>,
    pub(super) above: Option<ChangeKey>,
    pub(super) from_oldest: bool,
    done: bool,
}

impl ChangeRange {
    /// Changes on a page.
    pub const PAGE: i64 = 1_000;

    /// All changes since `since`.
    pub const fn since(since: ChangeCursor) -> Self {
        Self { since, upto: None, below: None, above: None, from_oldest: false, done: false }
    }

    /// A cursor to go on from once all is read; before the first read, where this begins.
    pub fn end(&self) -> ChangeCursor {
        self.upto.as_ref().unwrap_or(&self.since).clone()
    }

    /// Whether all is read.
    pub const fn is_read(&self) -> bool {
        self.done
    }

    /// Notes from where to where the log is read, as the first read has found it. A cursor of another life of the database is
    /// none that could be passed later.
    pub(super) fn begin(&mut self, since: &str, upto: &str) {
        if self.upto.is_none() {
            self.since = ChangeCursor(since.to_owned());
            self.upto = Some(ChangeCursor(upto.to_owned()));
        }
    }

    /// Takes a page in the order in which it was asked for; returns its accounts, each once.
    pub(super) fn turn(&mut self, page: &[(UserId, ChangeKey)]) -> Vec<UserId> {
        let last = page.last().map(|(_, key)| *key);
        if self.from_oldest {
            self.above = last.or(self.above);
        } else {
            self.below = last.or(self.below);
        }
        self.from_oldest = !self.from_oldest;
        self.done = (page.len() as u64) < Self::PAGE.unsigned_abs();
        let mut seen = HashSet::new();
        page.iter().map(|(user, _)| *user).filter(|user| seen.insert(*user)).collect()
    }
}
