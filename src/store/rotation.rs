//! The rules of sessions and refresh tokens that both databases share.

use super::{UntoldEnd, UntoldEnds};
use crate::model::{Millis, UserId};

/// The presented token, as the session holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presented {
    /// The session holds no such token: it never did, or its use lies longer ago than the grace.
    Unknown,
    /// It was not used yet.
    Unused,
    /// It was first used then.
    Used(Millis),
}

/// Whether a presented token may be spent; where not, it is theft and the session ends.
///
/// The token's own expiry is not asked: it is signed into the token, and who presents it here has checked that. Without
/// a grace a second use is late even within the same millisecond, or after the clock was set back.
pub fn may_rotate(presented: Presented, now: Millis, grace_ms: i64) -> bool {
    match presented {
        Presented::Unknown => false,
        Presented::Unused => true,
        Presented::Used(at) => grace_ms > 0 && now.0.saturating_sub(at.0) <= grace_ms,
    }
}

/// For how long sessions are kept that have ended or run out, ms: far longer than any access token of them may live.
pub const KEEP_ENDED_SESSIONS_MS: i64 = 30 * 24 * 60 * 60 * 1000;
/// Old sessions of each kind that a login forgets: more than it adds, so that they become fewer, and a bounded number.
pub const FORGOTTEN_AT_ONCE: i64 = 100;
/// The most sessions that one transaction ends. An account may have more alive only from a version without a bound, or by
/// plain SQL.
pub const ENDED_AT_ONCE: i64 = 1_000;

/// Accounts on a page of untold ends.
pub const UNTOLD_ACCOUNTS: i64 = 256;
/// Untold ends of one account on a page, at least, where the account has them; more where there are few accounts.
pub const UNTOLD_EACH: i64 = 256;
/// Untold ends on a page.
pub const UNTOLD_PAGE: i64 = 2_048;
/// Untold ends of one account, where accounts are asked for by their ids.
pub const UNTOLD_OF_EACH: i64 = 64;
/// Untold ends of all of these: some 50 ms of Redis's time, for which a block may wait.
pub const UNTOLD_OF_ALL: i64 = 4_096;

/// A page of untold ends from its rows: user, sid, whether the account may not be present; and how many accounts it is of.
pub fn untold_page(rows: Vec<(UserId, String, bool)>, accounts: i64) -> UntoldEnds {
    let is_full = accounts >= UNTOLD_ACCOUNTS || rows.len() as u64 >= UNTOLD_PAGE.unsigned_abs();
    let next = rows.last().map(|(user, ..)| *user).filter(|_| is_full);
    UntoldEnds { ends: rows.into_iter().map(untold_end).collect(), next }
}

/// An untold end from its row.
pub fn untold_end((user, sid, blocked): (UserId, String, bool)) -> UntoldEnd {
    UntoldEnd { user, sid, blocked }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_grace_a_second_use_is_late_at_once() {
        for now in [999, 1_000, 1_001] {
            assert!(!may_rotate(Presented::Used(Millis(1_000)), Millis(now), 0));
        }
        assert!(may_rotate(Presented::Unused, Millis(1_000), 0));
    }

    #[test]
    fn within_the_grace_two_tabs_may_spend_a_token_together() {
        for now in [990, 1_000, 1_010] {
            assert!(may_rotate(Presented::Used(Millis(1_000)), Millis(now), 10));
        }
        assert!(!may_rotate(Presented::Used(Millis(1_000)), Millis(1_011), 10));
        assert!(!may_rotate(Presented::Unknown, Millis(1_000), 10));
    }
}
