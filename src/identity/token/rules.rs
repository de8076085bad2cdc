//! What the claims of a token must hold, whoever signed it: its kind, its time, its audience, an account id and a session.
//!
//! Needs no signature, so it is asked before a signature that is expensive to check.

use std::time::Duration;

use super::TokenError;
use super::claims::{Claims, Names, Scalar};
use crate::model::{Millis, SessionId, SessionKey};

/// By how much the clock of the machine that made a token may differ from ours, in whole seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leeway {
    /// For `nbf`: a token is taken so much before that.
    pub before: Duration,
    /// For `exp`: a token is taken so much after that.
    pub after: Duration,
}

impl Leeway {
    /// None at all.
    pub const NONE: Self = Self { before: Duration::ZERO, after: Duration::ZERO };

    /// The same on both sides.
    pub const fn both(span: Duration) -> Self {
        Self { before: span, after: span }
    }
}

/// See the module.
pub(super) struct Rules<'r> {
    pub(super) names: Names<'r>,
    /// What the claim that says what a token is for must hold, where one is named.
    pub(super) kind: &'r str,
    /// One of these must be in `aud`; empty where it is not looked at.
    pub(super) audience: &'r [String],
    pub(super) leeway: Leeway,
}

impl Rules<'_> {
    /// Who the token speaks for, and until when, if its signature is right.
    pub(super) fn read(&self, claims: &[u8], now: Millis) -> Result<(SessionKey, Millis), TokenError> {
        let claims = self.names.read(claims)?;
        self.check_audience(&claims)?;
        let until = self.check_time(&claims, now)?;
        if self.names.kind.is_some() {
            match &claims.kind {
                None => return Err(TokenError::Claims),
                Some(kind) if kind.0 != self.kind => return Err(TokenError::Kind),
                Some(_) => {}
            }
        }
        let sid = match &claims.session {
            None | Some(Scalar::Null) => None,
            Some(Scalar::Text(sid)) => Some(SessionId::parse(sid).ok_or(TokenError::SessionId)?),
            Some(_) => return Err(TokenError::SessionId),
        };
        let user = claims.user.as_ref().and_then(Scalar::user_id).ok_or(TokenError::UserId)?;
        Ok((SessionKey { user, sid }, until))
    }

    fn check_audience(&self, claims: &Claims<'_>) -> Result<(), TokenError> {
        let audience = claims.audience.as_ref().map_or(&[][..], |audience| &audience.0);
        let is_meant = self.audience.is_empty() || audience.iter().any(|one| self.audience.contains(one));
        if is_meant { Ok(()) } else { Err(TokenError::Audience) }
    }

    fn check_time(&self, claims: &Claims<'_>, now: Millis) -> Result<Millis, TokenError> {
        let seconds = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
        let now_s = now.0.div_euclid(1000);
        let end_s = claims.exp.ok_or(TokenError::Claims)?.0.saturating_add(seconds(self.leeway.after));
        if end_s <= now_s {
            return Err(TokenError::Expired);
        }
        let latest_s = now_s.saturating_add(seconds(self.leeway.before));
        if claims.nbf.is_some_and(|nbf| nbf.0 > latest_s) {
            return Err(TokenError::Immature);
        }
        Ok(Millis(end_s.saturating_mul(1000)))
    }
}
