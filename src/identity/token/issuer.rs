//! An issuer: an identity provider whose access tokens are taken, by its public keys.
//!
//! Whoever holds one of its private keys speaks for every account here, administrators included: that is what trusting
//! an issuer means. It never gets further than the access token: refresh tokens are ours alone.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jsonwebtoken::{Algorithm, crypto};
use tokio::sync::Notify;

use super::TokenError;
use super::claims::{Names, Parts};
use super::jwk::PublicKey;
use super::keeper::KeysUrl;
use super::verified::Changes;
use crate::model::{Millis, SessionId, SessionKey};

/// What is known of an issuer.
#[derive(Debug, Clone)]
pub struct IssuerSettings {
    /// Its name in logs.
    pub name: String,
    /// Where its public keys are.
    pub keys: KeySource,
    /// What the claim `iss` must be; `None` where it is not looked at.
    pub iss: Option<String>,
    /// One of these must be in the claim `aud`; empty where it is not looked at.
    pub audience: Vec<String>,
    /// The claim that holds the account's id: a positive integer, or digits.
    pub user_claim: String,
    /// The claim that names the login session; `None` where its tokens name none.
    pub session_claim: Option<String>,
    /// The claim that says what a token is for, and its value in an access token; `None` where there is none.
    pub access_mark: Option<(String, String)>,
    /// The algorithms that it may sign by.
    pub algorithms: Vec<Algorithm>,
    /// By how much its clock may be off: whole seconds.
    pub leeway: Duration,
}

/// Where the public keys of an issuer are.
#[derive(Clone)]
pub enum KeySource {
    /// At a URL of its own, as a JWK set.
    Url(KeysUrl),
    /// Here, for good.
    Fixed(Vec<PublicKey>),
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(_) => f.write_str("Url(…)"),
            Self::Fixed(keys) => write!(f, "Fixed({} keys)", keys.len()),
        }
    }
}

/// An issuer with the keys that are known of it at this moment.
pub(in crate::identity) struct Issuer {
    pub(super) settings: IssuerSettings,
    keys: RwLock<Arc<[PublicKey]>>,
    /// Told when a token names a key that is not known.
    pub(super) wanted: Notify,
    /// Counts the changes of keys: what was verified by former ones is not known again.
    changes: Changes,
}

impl Issuer {
    pub(super) fn new(settings: IssuerSettings, changes: Changes) -> Self {
        let keys = match &settings.keys {
            KeySource::Fixed(keys) => keys.as_slice().into(),
            KeySource::Url(_) => Arc::default(),
        };
        Self { settings, keys: RwLock::new(keys), wanted: Notify::new(), changes }
    }

    /// The keys from now on; what is not among them is no longer trusted.
    pub(super) fn replace_keys(&self, keys: Vec<PublicKey>) {
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys.into();
        // After the keys: what is verified from here on is verified by these.
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn keys(&self) -> Arc<[PublicKey]> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a token that names this issuer, or none, can be its.
    pub(super) fn may_have_issued(&self, iss: Option<&str>) -> bool {
        self.settings.iss.as_deref().is_none_or(|own| iss == Some(own))
    }

    /// Whether one of its keys signed the token, and is for that algorithm. Where the token names a key that is not
    /// known, or none, the keys are wanted again.
    pub(super) fn check_signature(
        &self,
        parts: &Parts<'_>,
        algorithm: Algorithm,
        kid: Option<&str>,
    ) -> Result<(), TokenError> {
        if !self.settings.algorithms.contains(&algorithm) {
            return Err(TokenError::Algorithm);
        }
        let keys = self.keys();
        let may_be = |key: &&PublicKey| match (kid, key.kid()) {
            (Some(wanted), Some(kid)) => wanted == kid,
            _ => true,
        };
        let signed_by = |key: &PublicKey| {
            key.is_for(algorithm)
                && crypto::verify(parts.signature, parts.message.as_bytes(), key.decoding(), algorithm)
                    .unwrap_or(false)
        };
        if keys.iter().filter(may_be).any(signed_by) {
            return Ok(());
        }
        let is_named = kid.is_some() && keys.iter().any(|key| key.kid() == kid);
        if is_named || matches!(self.settings.keys, KeySource::Fixed(_)) {
            return Err(TokenError::Signature);
        }
        self.wanted.notify_one();
        Err(TokenError::UnknownKey)
    }

    /// Who speaks by claims that it has signed, and until when.
    pub(super) fn read_claims(&self, claims: &[u8], now: Millis) -> Result<(SessionKey, Millis), TokenError> {
        let settings = &self.settings;
        let names = Names {
            user: &settings.user_claim,
            session: settings.session_claim.as_deref(),
            kind: settings.access_mark.as_ref().map(|(claim, _)| claim.as_str()),
        };
        let claims = names.read(claims)?;
        if !settings.audience.is_empty() {
            let audience = claims.audience.as_ref().map_or(&[][..], |audience| &audience.0);
            if !audience.iter().any(|one| settings.audience.contains(one)) {
                return Err(TokenError::Audience);
            }
        }
        let leeway_s = i64::try_from(settings.leeway.as_secs()).unwrap_or(i64::MAX);
        let now_s = now.0.div_euclid(1000);
        let end_s = claims.exp.ok_or(TokenError::Claims)?.0.saturating_add(leeway_s);
        if end_s <= now_s {
            return Err(TokenError::Expired);
        }
        if claims.nbf.is_some_and(|nbf| nbf.0 > now_s.saturating_add(leeway_s)) {
            return Err(TokenError::Immature);
        }
        if let Some((_, value)) = &settings.access_mark {
            match &claims.kind {
                None => return Err(TokenError::Claims),
                Some(kind) if kind.0 != *value => return Err(TokenError::Kind),
                Some(_) => {}
            }
        }
        let sid = match &claims.session {
            Some(sid) => Some(SessionId::parse(&sid.0).ok_or(TokenError::Claims)?),
            None => None,
        };
        let user = claims.user.ok_or(TokenError::Claims)?;
        Ok((SessionKey { user, sid }, Millis(end_s.saturating_mul(1000))))
    }
}
