//! A token's signature, where checking it is expensive: everything else about the token is right, and this is left.
//!
//! Owns what it needs, so that it can run on another thread than the one that read the token.

use std::fmt;
use std::sync::Arc;

use jsonwebtoken::{Algorithm, crypto};

use super::TokenError;
use super::claims::Parts;
use super::issuer::{Issuer, KeyChoice};
use super::verified::Fingerprint;
use crate::model::{Millis, SessionKey};

/// A signature by an issuer's public key that is still to be checked.
pub struct SignatureCheck {
    token: Box<str>,
    algorithm: Algorithm,
    fingerprint: Option<Fingerprint>,
    /// At least one.
    candidates: Vec<Candidate>,
}

/// An issuer whose token this may be, and what it says then.
pub(super) struct Candidate {
    pub(super) issuer: Arc<Issuer>,
    pub(super) keys: KeyChoice,
    pub(super) who: SessionKey,
    pub(super) until: Millis,
}

/// A token whose signature is right.
#[derive(Debug)]
pub struct Signed {
    pub(super) who: SessionKey,
    pub(super) until: Millis,
    pub(super) fingerprint: Option<Fingerprint>,
}

impl fmt::Debug for SignatureCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SignatureCheck({:?}, {} issuers)", self.algorithm, self.candidates.len())
    }
}

impl SignatureCheck {
    pub(super) fn new(token: &str, algorithm: Algorithm, candidates: Vec<Candidate>) -> Self {
        Self { token: token.into(), algorithm, fingerprint: None, candidates }
    }

    /// The same, of a token that is known again by this once it is verified.
    pub(super) fn known_by(self, fingerprint: Fingerprint) -> Self {
        Self { fingerprint: Some(fingerprint), ..self }
    }

    /// How many keys are tried at most.
    pub fn keys(&self) -> usize {
        self.candidates.iter().map(|candidate| candidate.keys.len()).sum()
    }

    /// Checks it: microseconds to milliseconds of CPU, and no I/O.
    ///
    /// # Errors
    /// [`TokenError::Signature`], [`TokenError::UnknownKey`], [`TokenError::Unnamed`].
    pub fn run(self) -> Result<Signed, TokenError> {
        let parts = Parts::of(&self.token)?;
        for Candidate { keys, who, until, .. } in &self.candidates {
            let signed_by = |key: &_| {
                crypto::verify(parts.signature, parts.message.as_bytes(), key, self.algorithm)
                    .unwrap_or(false)
            };
            if keys.iter().any(signed_by) {
                return Ok(Signed { who: who.clone(), until: *until, fingerprint: self.fingerprint });
            }
        }
        // One token has one issuer as a rule; of several that may have issued it the first says why not.
        let refusal = self.candidates.first().map(|first| first.issuer.refusal(&first.keys));
        Err(refusal.unwrap_or(TokenError::Issuer))
    }
}
