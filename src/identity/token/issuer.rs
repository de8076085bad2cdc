//! An issuer: an identity provider whose access tokens are taken, by its public keys or by a secret shared with it.
//!
//! Whoever holds one of its private keys speaks for every account here, administrators included: that is what trusting
//! an issuer means. It never gets further than the access token: refresh tokens are ours alone.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};

use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use tokio::sync::Notify;

use super::claims::{Names, Parts};
use super::jwk::PublicKey;
use super::keeper::KeysUrl;
use super::rules::Rules;
use super::verified::Changes;
use super::{Leeway, TokenError};
use crate::model::{Millis, SessionKey};

/// How many keys of an issuer a token is tried against at most. A token that names its key needs one. For one that names none
/// this is room for the key in use, those before and after it, and one more of the same algorithm.
pub const MAX_KEYS_TRIED: usize = 4;

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
    /// By how much its clock may be off.
    pub leeway: Leeway,
}

impl IssuerSettings {
    /// Whether this secret is one that it shares.
    pub fn is_verified_with(&self, secret: &str) -> bool {
        matches!(&self.keys, KeySource::Shared(shared) if shared.iter().any(|one| one == secret))
    }
}

/// What the tokens of an issuer are verified with.
#[derive(Clone)]
pub enum KeySource {
    /// Public keys at a URL of its own, as a JWK set.
    Url(KeysUrl),
    /// Public keys that are here, for good.
    Fixed(Vec<PublicKey>),
    /// Secrets shared with it.
    Shared(Vec<String>),
}

impl fmt::Debug for KeySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url(_) => f.write_str("Url(…)"),
            Self::Fixed(keys) => write!(f, "Fixed({} keys)", keys.len()),
            Self::Shared(secrets) => write!(f, "Shared({} secrets)", secrets.len()),
        }
    }
}

/// An issuer with the keys that are known of it at this moment.
pub(in crate::identity) struct Issuer {
    pub(super) settings: IssuerSettings,
    keys: RwLock<Arc<[PublicKey]>>,
    secrets: Vec<DecodingKey>,
    /// Told when a token names a key that is not known.
    pub(super) wanted: Notify,
    /// Counts the changes of keys: what was verified by former ones is not known again.
    changes: Changes,
}

/// The keys of an issuer that a token is tried against, and why those.
pub(super) struct KeyChoice {
    keys: Arc<[PublicKey]>,
    /// Which of them, at most [`MAX_KEYS_TRIED`].
    chosen: Vec<usize>,
    /// The token names a key, and the issuer has one of that name.
    is_named: bool,
    /// More of them fit than are tried.
    is_cut: bool,
}

impl KeyChoice {
    pub(super) fn len(&self) -> usize {
        self.chosen.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chosen.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &DecodingKey> {
        self.chosen.iter().filter_map(|index| self.keys.get(*index)).map(PublicKey::decoding)
    }
}

impl Issuer {
    pub(super) fn new(settings: IssuerSettings, changes: Changes) -> Self {
        let (mut keys, mut secrets) = (Arc::default(), Vec::new());
        match &settings.keys {
            KeySource::Fixed(fixed) => keys = fixed.as_slice().into(),
            KeySource::Url(_) => {}
            KeySource::Shared(shared) => {
                secrets = shared.iter().map(|secret| DecodingKey::from_secret(secret.as_bytes())).collect();
            }
        }
        Self { settings, keys: RwLock::new(keys), secrets, wanted: Notify::new(), changes }
    }

    /// The keys from now on; what is not among them is no longer trusted. The same keys as before are no change: tokens that
    /// they have verified stay known.
    pub(super) fn replace_keys(&self, keys: Vec<PublicKey>) {
        let mut current = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if **current == *keys {
            return;
        }
        *current = keys.into();
        drop(current);
        // After the keys: what is verified from here on is verified by these.
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn keys(&self) -> Arc<[PublicKey]> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether its tokens are verified with public keys.
    pub(in crate::identity) fn has_public_keys(&self) -> bool {
        !matches!(self.settings.keys, KeySource::Shared(_))
    }

    /// Whether a token that names this issuer, or none, can be its.
    pub(super) fn may_have_issued(&self, iss: Option<&str>) -> bool {
        self.settings.iss.as_deref().is_none_or(|own| iss == Some(own))
    }

    /// Whether a secret shared with it signed the token, by an algorithm that it may sign by.
    pub(super) fn signed_by_secret(&self, parts: &Parts<'_>, algorithm: Algorithm) -> bool {
        let signed_by = |key: &DecodingKey| {
            crypto::verify(parts.signature, parts.message.as_bytes(), key, algorithm).unwrap_or(false)
        };
        self.settings.algorithms.contains(&algorithm) && self.secrets.iter().any(signed_by)
    }

    /// The public keys that may have signed a token: the one that it names, else those that have no name, else (where it
    /// names none) each that is for the algorithm, up to the bound.
    pub(super) fn choose_keys(&self, algorithm: Algorithm, kid: Option<&str>) -> KeyChoice {
        let keys = self.keys();
        let is_named = kid.is_some() && keys.iter().any(|key| key.kid() == kid);
        let may_be = |key: &PublicKey| match (kid, key.kid()) {
            (None, _) => true,
            (Some(_), None) => !is_named,
            (Some(wanted), Some(kid)) => wanted == kid,
        };
        let mut chosen: Vec<usize> = keys
            .iter()
            .enumerate()
            .filter_map(|(index, key)| (key.is_for(algorithm) && may_be(key)).then_some(index))
            .collect();
        let is_cut = chosen.len() > MAX_KEYS_TRIED;
        chosen.truncate(MAX_KEYS_TRIED);
        KeyChoice { keys, chosen, is_named, is_cut }
    }

    /// Why a token is refused that none of these keys has signed. Where another key may have, the keys are wanted again.
    pub(super) fn refusal(&self, tried: &KeyChoice) -> TokenError {
        let may_be_new = !tried.is_named && matches!(self.settings.keys, KeySource::Url(_));
        if may_be_new {
            self.wanted.notify_one();
        }
        match (tried.is_cut, may_be_new) {
            (true, _) => TokenError::Unnamed,
            (false, true) => TokenError::UnknownKey,
            (false, false) => TokenError::Signature,
        }
    }

    /// Who a token with these claims speaks for, and until when, if it is this issuer's.
    pub(super) fn read_claims(&self, claims: &[u8], now: Millis) -> Result<(SessionKey, Millis), TokenError> {
        let settings = &self.settings;
        let mark = settings.access_mark.as_ref();
        let rules = Rules {
            names: Names {
                user: &settings.user_claim,
                session: settings.session_claim.as_deref(),
                kind: mark.map(|(claim, _)| claim.as_str()),
                audience: !settings.audience.is_empty(),
            },
            kind: mark.map_or("", |(_, value)| value),
            audience: &settings.audience,
            leeway: settings.leeway,
        };
        rules.read(claims, now)
    }
}
