//! The rules of refresh tokens that both databases share.

use crate::model::Millis;

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
