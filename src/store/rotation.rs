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
/// The token's own expiry is not asked: it is signed into the token, and who presents it here has checked that.
pub fn may_rotate(presented: Presented, now: Millis, grace_ms: i64) -> bool {
    match presented {
        Presented::Unknown => false,
        Presented::Unused => true,
        Presented::Used(at) => now.0.saturating_sub(at.0) <= grace_ms,
    }
}

/// For how long sessions are kept that have ended or run out, ms: far longer than any access token of them may live.
pub const KEEP_ENDED_SESSIONS_MS: i64 = 30 * 24 * 60 * 60 * 1000;
