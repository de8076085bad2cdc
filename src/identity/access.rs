//! Access tokens as requests show them: verified at once where that is cheap, else on threads of their own.
//!
//! A token that was verified lately is known again, and one that a shared secret signed costs a microsecond or two: both are
//! answered on the thread that asks. A signature by an issuer's public key costs a hundred times as much, and strangers can
//! show as many forged ones as they like. So those are checked by a bounded number of threads behind a bounded queue, and
//! heartbeats with a token of the other two kinds do not notice them.

use std::future::ready;
use std::thread::available_parallelism;
use std::time::Duration;

use futures_util::future::Either;

use super::token::{Keyring, Kind, SignatureCheck, Step};
use super::workers::{Bounds, Refused, Workers};
use super::{Identity, IdentityError, Result, now};
use crate::metrics::{Counters, Registry};
use crate::model::{Millis, SessionKey};

/// How many signatures may wait for each thread that checks them: some 50 ms of work.
const QUEUE: usize = 128;
/// How long one may wait.
const PATIENCE: Duration = Duration::from_millis(500);

/// Checks the signatures of issuers.
pub(super) struct Signatures {
    /// None where no issuer has public keys: then there is nothing to check.
    workers: Option<Workers>,
    /// By what came of them: good, bad, refused.
    counts: Counters<3>,
}

impl Signatures {
    /// As many at once as half of the cores: the other half is for those who serve, and for Redis and SQL where they are on
    /// the same machine.
    pub(super) fn of(keyring: &Keyring) -> Self {
        let cores = available_parallelism().map_or(1, std::num::NonZero::get);
        let at_once = (cores / 2).max(1);
        let bounds = Bounds { at_once, queue: QUEUE * at_once, patience: PATIENCE };
        Self {
            workers: keyring.has_public_keys().then(|| Workers::start(bounds)),
            counts: Counters::new("outcome", ["good", "bad", "refused"]),
        }
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        let help =
            "Signatures by public keys of issuers that were checked, or refused because too many waited";
        registry.counters("token_signatures", help, &self.counts);
    }

    async fn check(&self, keyring: &Keyring, check: SignatureCheck) -> Result<(SessionKey, Millis)> {
        let outcome = match &self.workers {
            Some(workers) => workers.run(move || check.run()).await,
            None => Ok(check.run()),
        };
        let (index, answer) = match outcome {
            Ok(Ok(signed)) => (0, Ok(keyring.keep(signed))),
            Ok(Err(error)) => (1, Err(error.into())),
            Err(Refused::Overloaded) => (2, Err(IdentityError::TokensOverloaded)),
            Err(Refused::Lost) => (2, Err(IdentityError::Internal("a signature thread died".to_owned()))),
        };
        self.counts.at(index).inc();
        answer
    }
}

impl Identity {
    /// Who speaks by this access token, and the instant at which it expires. Asks neither SQL nor Redis nor an issuer. The
    /// future is small and done at once, but where a signature is checked elsewhere; it does not hold the token.
    ///
    /// # Errors
    /// [`IdentityError::Token`], whose text says what is wrong with it; [`IdentityError::TokensOverloaded`].
    pub fn authenticate<'s>(
        &'s self,
        token: &str,
    ) -> impl Future<Output = Result<(SessionKey, Millis)>> + Send + use<'s> {
        let inner = &*self.inner;
        match inner.keyring.begin(token, Kind::Access, now()) {
            Ok(Step::Done(who, until)) => Either::Left(ready(Ok((who, until)))),
            Ok(Step::Check(check)) => {
                Either::Right(Box::pin(async move { inner.signatures.check(&inner.keyring, check).await }))
            }
            Err(error) => Either::Left(ready(Err(error.into()))),
        }
    }
}

#[cfg(test)]
impl Identity {
    /// [`Self::authenticate`] for tests, whose tokens are our own.
    pub fn verify_access(&self, token: &str) -> std::result::Result<SessionKey, super::TokenError> {
        self.inner.keyring.verify(token, Kind::Access, now())
    }
}

#[cfg(test)]
mod tests {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    use serde_json::json;

    use super::super::token::jwk::{ALGORITHMS, PublicKey};
    use super::super::token::{IssuerSettings, KeySource, Leeway, TokenError};
    use super::*;

    const KEY: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAsvnThV5cWosgxCBm+ELkH//oKyI9e+M997H+oUBbH/4=\n\
        -----END PUBLIC KEY-----\n";

    fn keyring() -> Keyring {
        let issuer = IssuerSettings {
            name: "acme".into(),
            keys: KeySource::Fixed(PublicKey::from_pem(KEY).unwrap()),
            iss: None,
            audience: Vec::new(),
            user_claim: "sub".into(),
            session_claim: None,
            access_mark: None,
            algorithms: ALGORITHMS.to_vec(),
            leeway: Leeway::NONE,
        };
        Keyring::new("a secret of more than thirty-two bytes!", &[]).with_issuers(&[issuer])
    }

    /// The check of a forged token.
    fn forged(keyring: &Keyring) -> SignatureCheck {
        let part = |json: serde_json::Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let (header, claims) = (part(json!({"alg": "EdDSA"})), part(json!({"sub": 7, "exp": u32::MAX})));
        let token = format!("{header}.{claims}.{}", URL_SAFE_NO_PAD.encode([1; 64]));
        match keyring.begin(&token, Kind::Access, now()) {
            Ok(Step::Check(check)) => check,
            other => panic!("no signature to check: {other:?}"),
        }
    }

    #[tokio::test]
    async fn a_signature_is_checked_or_refused_where_too_many_wait_and_counted_either_way() {
        let keyring = keyring();
        let mut signatures = Signatures::of(&keyring);
        let checked = signatures.check(&keyring, forged(&keyring)).await;
        assert!(matches!(checked, Err(IdentityError::Token(TokenError::Signature))), "{checked:?}");
        let full = Bounds { at_once: 1, queue: 0, patience: PATIENCE };
        signatures.workers = Some(Workers::start(full));
        let refused = signatures.check(&keyring, forged(&keyring)).await;
        assert!(matches!(refused, Err(IdentityError::TokensOverloaded)), "{refused:?}");
        assert_eq!([0, 1, 2].map(|index| signatures.counts.at(index).get()), [0, 1, 1]);
    }

    #[test]
    fn without_issuers_there_is_no_thread_for_signatures() {
        let keyring = Keyring::new("a secret of more than thirty-two bytes!", &[]);
        assert!(Signatures::of(&keyring).workers.is_none());
    }
}
