//! The keyring: every key whose tokens are taken.
//!
//! The service's own secret signs and verifies HS256; the further secrets verify HS256, HS384 and HS512. That is the short way.
//! Other tokens are shown to the issuers, and only where an access token is due: refresh tokens are good only where
//! they were minted.

use std::fmt;
use std::sync::Arc;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, crypto, encode};
use serde::Serialize;

use super::claims::{Head, Issued, Names, Parts};
use super::issuer::{Issuer, IssuerSettings};
use super::rules::{Leeway, Rules};
use super::signature::{Candidate, SignatureCheck, Signed};
use super::verified::{Verified, YOUNG_OF_ISSUERS, YOUNG_OF_SECRETS};
use super::{Kind, MAX_LEN, TokenError, jwk};
use crate::model::{Millis, SessionId, SessionKey, UserId};

/// The encoded headers that nearly every token has, ours first: `{"typ":"JWT","alg":"HS256"}` in both orders. Others
/// are parsed.
const PLAIN_HEADERS: [&str; 2] =
    ["eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9", "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"];

/// The claims of our own tokens, and of services that write the same.
const NAMES: Names<'static> =
    Names { user: "user_id", session: Some("sid"), kind: Some("token_type"), audience: false };

/// The secrets, one that signs and all whose tokens are taken, and the issuers. Its `Debug` shows no secret.
pub struct Keyring {
    signing: EncodingKey,
    own: DecodingKey,
    further: Vec<DecodingKey>,
    leeway: Leeway,
    issuers: Vec<Arc<Issuer>>,
    /// Access tokens with a plain header that were good when they were last shown.
    plain: Verified,
    /// As [`Self::plain`], of all other access tokens.
    others: Verified,
}

/// What became of a token.
#[derive(Debug)]
pub enum Step {
    /// It is good: who it speaks for, and from when on it is no longer taken.
    Done(SessionKey, Millis),
    /// It is good if its signature is: what [`SignatureCheck::run`] returns goes to [`Keyring::keep`].
    Check(SignatureCheck),
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring")
            .field("further", &self.further.len())
            .field("issuers", &self.issuers.len())
            .finish_non_exhaustive()
    }
}

/// The claims of a token to be minted.
#[derive(Serialize)]
struct Minted<'a> {
    user_id: UserId,
    sub: String,
    sid: &'a str,
    jti: &'a str,
    token_type: &'static str,
    iat: i64,
    exp: i64,
}

impl Keyring {
    /// A ring that signs with `secret`, and trusts it and `further` (empty ones apart), without leeway.
    pub fn new(secret: &str, further: &[String]) -> Self {
        let further = further.iter().map(String::as_str).filter(|further| !further.is_empty());
        Self {
            signing: EncodingKey::from_secret(secret.as_bytes()),
            own: DecodingKey::from_secret(secret.as_bytes()),
            further: further.map(|secret| DecodingKey::from_secret(secret.as_bytes())).collect(),
            leeway: Leeway::NONE,
            issuers: Vec::new(),
            plain: Verified::new(YOUNG_OF_SECRETS),
            others: Verified::new(YOUNG_OF_ISSUERS),
        }
    }

    /// The same ring, with this leeway for the tokens of its secrets; each issuer has its own.
    #[must_use]
    pub fn with_leeway(self, leeway: Leeway) -> Self {
        Self { leeway, ..self }
    }

    /// The same ring, which takes the access tokens of these issuers too.
    #[must_use]
    pub fn with_issuers(self, issuers: &[IssuerSettings]) -> Self {
        let issuer =
            |settings: &IssuerSettings| Arc::new(Issuer::new(settings.clone(), self.others.changes()));
        Self { issuers: issuers.iter().map(issuer).collect(), ..self }
    }

    /// The issuers, for whoever keeps their keys.
    pub(in crate::identity) fn issuers(&self) -> &[Arc<Issuer>] {
        &self.issuers
    }

    /// A token for `user` and `sid` named `jti`, good for `ttl_ms` from `now` (whole seconds; at least one).
    ///
    /// # Errors
    /// Only where the crypto library fails, which HMAC does not.
    pub fn mint(
        &self,
        kind: Kind,
        user: UserId,
        sid: &SessionId,
        jti: &str,
        now: Millis,
        ttl_ms: i64,
    ) -> Result<String, jsonwebtoken::errors::Error> {
        let iat = now.0 / 1000;
        let claims = Minted {
            user_id: user,
            sub: user.to_string(),
            sid: sid.as_str(),
            jti,
            token_type: kind.as_str(),
            iat,
            exp: iat.saturating_add((ttl_ms / 1000).max(1)),
        };
        encode(&Header::new(Algorithm::HS256), &claims, &self.signing)
    }

    /// Who speaks by this token, if it is one of the given kind, well signed and in its time. Total: whatever the text
    /// is, it ends, and does no I/O. Checks any signature at once, that of an issuer's access token too: on a thread that
    /// serves, use [`Self::begin`] for access tokens.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn verify(&self, token: &str, kind: Kind, now: Millis) -> Result<SessionKey, TokenError> {
        self.verify_until(token, kind, now).map(|(who, _)| who)
    }

    /// As [`Self::verify`], with the instant from which the token is no longer taken.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn verify_until(
        &self,
        token: &str,
        kind: Kind,
        now: Millis,
    ) -> Result<(SessionKey, Millis), TokenError> {
        match self.begin(token, kind, now)? {
            Step::Done(who, until) => Ok((who, until)),
            Step::Check(check) => Ok(self.keep(check.run()?)),
        }
    }

    /// As [`Self::verify_until`], up to a signature by a public key: checking one of those is left to the caller. Only an
    /// access token can have one.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn begin(&self, token: &str, kind: Kind, now: Millis) -> Result<Step, TokenError> {
        if kind == Kind::Refresh || token.len() > MAX_LEN {
            return self.begin_anew(token, kind, now);
        }
        let verified = if is_plain(token) { &self.plain } else { &self.others };
        let fingerprint = verified.fingerprint(token);
        if let Some((who, until)) = verified.find(fingerprint, now) {
            return Ok(Step::Done(who, until));
        }
        match self.begin_anew(token, kind, now)? {
            Step::Done(who, until) => {
                verified.note(fingerprint, &who, until);
                Ok(Step::Done(who, until))
            }
            Step::Check(check) => Ok(Step::Check(check.known_by(fingerprint))),
        }
    }

    /// Ends what [`Self::begin`] began: the token is known again from now on.
    pub fn keep(&self, signed: Signed) -> (SessionKey, Millis) {
        let Signed { who, until, fingerprint } = signed;
        if let Some(fingerprint) = fingerprint {
            self.others.note(fingerprint, &who, until);
        }
        (who, until)
    }

    /// As [`Self::begin`], whatever was verified before.
    fn begin_anew(&self, token: &str, kind: Kind, now: Millis) -> Result<Step, TokenError> {
        let parts = Parts::of(token)?;
        if PLAIN_HEADERS.contains(&parts.header) {
            return self.check_secrets(&parts, Algorithm::HS256, kind, now);
        }
        let head = Head::of(parts.header)?;
        if let Some(algorithm) = jwk::shared_algorithm(&head.alg) {
            return self.check_secrets(&parts, algorithm, kind, now);
        }
        let algorithm = jwk::algorithm(&head.alg).ok_or(TokenError::Algorithm)?;
        match kind {
            Kind::Access => self.choose_issuers(token, &parts, algorithm, head.kid()?, now),
            Kind::Refresh => Err(TokenError::Elsewhere),
        }
    }

    /// A token signed with a shared secret: by this service's own rules, or by those of the issuer that shares it.
    fn check_secrets(
        &self,
        parts: &Parts<'_>,
        algorithm: Algorithm,
        kind: Kind,
        now: Millis,
    ) -> Result<Step, TokenError> {
        let signed_by = |key: &DecodingKey| {
            crypto::verify(parts.signature, parts.message.as_bytes(), key, algorithm).unwrap_or(false)
        };
        let is_own = algorithm == Algorithm::HS256 && signed_by(&self.own);
        if is_own || self.further.iter().any(signed_by) {
            let rules = Rules { names: NAMES, kind: kind.as_str(), audience: &[], leeway: self.leeway };
            let (who, until) = rules.read(&parts.claims()?, now)?;
            return Ok(Step::Done(who, until));
        }
        // Several issuers may share one secret, as where one service signs for several audiences.
        let mut refusal = TokenError::Signature;
        for issuer in self.issuers.iter().filter(|issuer| issuer.signed_by_secret(parts, algorithm)) {
            if kind == Kind::Refresh {
                return Err(TokenError::Elsewhere);
            }
            let claims = parts.claims()?;
            let read = if issuer.may_have_issued(issued_by(&claims)?.as_deref()) {
                issuer.read_claims(&claims, now)
            } else {
                Err(TokenError::Issuer)
            };
            match read {
                Ok((who, until)) => return Ok(Step::Done(who, until)),
                Err(why) => refusal = why,
            }
        }
        Err(refusal)
    }

    /// A token signed with a private key: of the issuer that it names, or of one that has no name. Everything is looked at
    /// that needs no signature.
    fn choose_issuers(
        &self,
        token: &str,
        parts: &Parts<'_>,
        algorithm: Algorithm,
        kid: Option<&str>,
        now: Millis,
    ) -> Result<Step, TokenError> {
        if !self.has_public_keys() {
            return Err(TokenError::Algorithm);
        }
        let claims = parts.claims()?;
        let iss = issued_by(&claims)?;
        let may_be =
            |issuer: &&Arc<Issuer>| issuer.has_public_keys() && issuer.may_have_issued(iss.as_deref());
        // Where its claims are right for an issuer, what that says of its key is nearer to the cause than another's claims.
        let (mut candidates, mut key_refusal, mut refusal) = (Vec::new(), None, None);
        for issuer in self.issuers.iter().filter(may_be) {
            if !issuer.settings.algorithms.contains(&algorithm) {
                refusal.get_or_insert(TokenError::Algorithm);
                continue;
            }
            match issuer.read_claims(&claims, now) {
                Err(why) => {
                    refusal.get_or_insert(why);
                }
                Ok((who, until)) => {
                    let keys = issuer.choose_keys(algorithm, kid);
                    if keys.is_empty() {
                        key_refusal.get_or_insert(issuer.refusal(&keys));
                    } else {
                        candidates.push(Candidate { issuer: issuer.clone(), keys, who, until });
                    }
                }
            }
        }
        if candidates.is_empty() {
            return Err(key_refusal.or(refusal).unwrap_or(TokenError::Issuer));
        }
        Ok(Step::Check(SignatureCheck::new(token, algorithm, candidates)))
    }

    /// Whether any issuer's tokens are verified with public keys.
    pub(in crate::identity) fn has_public_keys(&self) -> bool {
        self.issuers.iter().any(|issuer| issuer.has_public_keys())
    }
}

/// Who issued a token, by its own word.
fn issued_by(claims: &[u8]) -> Result<Option<String>, TokenError> {
    let issued: Issued<'_> = serde_json::from_slice(claims).map_err(|_| TokenError::Claims)?;
    Ok(issued.iss.map(|iss| iss.0.into_owned()))
}

/// Whether a token has one of the headers that are not parsed.
fn is_plain(token: &str) -> bool {
    PLAIN_HEADERS.iter().any(|header| token.strip_prefix(header).is_some_and(|rest| rest.starts_with('.')))
}

#[cfg(test)]
#[path = "own_tests.rs"]
mod own_tests;

#[cfg(test)]
#[path = "issued_tests.rs"]
mod issued_tests;
