//! What the upkeep of SQL finds.

use crate::model::UserId;

/// What the upkeep found and did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Upkeep {
    /// Names the table of accounts as it is stored: another word after it was restored, truncated or rewritten.
    pub identity: String,
    /// Triggers that were disabled, or did not fire for replicated rows any more, and are enabled again.
    pub triggers_enabled: u64,
    /// Whether the sequence of account ids lay behind the accounts and was raised.
    pub ids_raised: bool,
    /// The largest id that was ever given to an account, as [`super::Store::max_user_id`] gives it.
    pub largest_id: UserId,
}

/// One page of the comparison of mirror and history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MirrorPage {
    /// The last account of the page; `None` at the end.
    pub last: Option<UserId>,
    /// Whether the page held as many accounts as were asked for.
    pub is_full: bool,
    /// How many mirrors differed from the history and were put right.
    pub mended: u64,
}

/// A row of a comparison of mirrors and histories: an account whose mirror differs and its version or, in the end, the last
/// account of the page and how many it holds.
pub type ComparedPageRow = (Option<UserId>, i64, bool);

/// A page of the comparison of mirrors and histories.
#[derive(Debug)]
pub struct ComparedPage {
    /// The last account; `None` where there is none.
    pub last: Option<UserId>,
    /// How many accounts it holds.
    pub accounts: i64,
    /// Those whose mirror differs, with their versions.
    pub differ: Vec<(UserId, i64)>,
}

impl ComparedPage {
    /// The page that the rows tell of.
    pub fn of(rows: Vec<ComparedPageRow>) -> Self {
        let (mut last, mut accounts, mut differ) = (None, 0, Vec::new());
        for (id, number, is_last) in rows {
            match id {
                _ if is_last => (last, accounts) = (id, number),
                Some(id) => differ.push((id, number)),
                None => {}
            }
        }
        Self { last, accounts, differ }
    }
}
