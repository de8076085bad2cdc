//! The keyring: every key whose tokens are taken.
//!
//! The service's own secret signs; it and the further secrets verify HS256, which is the short way. A token signed by
//! anything else is shown to the issuers, and only where an access token is due: refresh tokens are good only where
//! they were minted.

use std::fmt;
use std::sync::Arc;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, crypto, encode};
use serde::Serialize;

use super::claims::{Head, Issued, OwnClaims, Parts};
use super::issuer::{Issuer, IssuerSettings};
use super::verified::Verified;
use super::{Kind, MAX_LEN, TokenError, jwk};
use crate::model::{Millis, SessionId, SessionKey, UserId};

/// The encoded headers that nearly every token has, ours first: `{"typ":"JWT","alg":"HS256"}` in both orders. Others
/// are parsed.
const PLAIN_HEADERS: [&str; 2] =
    ["eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9", "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"];

/// The secrets, one that signs and all whose tokens are taken, and the issuers. Its `Debug` shows no secret.
pub struct Keyring {
    signing: EncodingKey,
    trusted: Vec<DecodingKey>,
    issuers: Vec<Arc<Issuer>>,
    /// Access tokens that were good when they were last shown.
    verified: Verified,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring")
            .field("trusted", &self.trusted.len())
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
    /// A ring that signs with `secret`, and trusts it and `further` (empty ones apart).
    pub fn new(secret: &str, further: &[String]) -> Self {
        let further = further.iter().map(String::as_str).filter(|further| !further.is_empty());
        Self {
            signing: EncodingKey::from_secret(secret.as_bytes()),
            trusted: std::iter::once(secret)
                .chain(further)
                .map(|secret| DecodingKey::from_secret(secret.as_bytes()))
                .collect(),
            issuers: Vec::new(),
            verified: Verified::new(),
        }
    }

    /// The same ring, which takes the access tokens of these issuers too.
    #[must_use]
    pub fn with_issuers(self, issuers: &[IssuerSettings]) -> Self {
        let issuer =
            |settings: &IssuerSettings| Arc::new(Issuer::new(settings.clone(), self.verified.changes()));
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
    /// is, it ends, and does no I/O.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn verify(&self, token: &str, kind: Kind, now: Millis) -> Result<SessionKey, TokenError> {
        self.verify_until(token, kind, now).map(|(who, _)| who)
    }

    /// As [`Self::verify`], with the instant from which the token is no longer taken.
    pub fn verify_until(
        &self,
        token: &str,
        kind: Kind,
        now: Millis,
    ) -> Result<(SessionKey, Millis), TokenError> {
        if kind == Kind::Refresh || token.len() > MAX_LEN {
            return self.verify_anew(token, kind, now);
        }
        let fingerprint = self.verified.fingerprint(token);
        if let Some(found) = self.verified.find(fingerprint, now) {
            return Ok(found);
        }
        let (who, until) = self.verify_anew(token, kind, now)?;
        self.verified.note(fingerprint, &who, until);
        Ok((who, until))
    }

    /// As [`Self::verify_until`], whatever was verified before.
    pub fn verify_anew(
        &self,
        token: &str,
        kind: Kind,
        now: Millis,
    ) -> Result<(SessionKey, Millis), TokenError> {
        let parts = Parts::of(token)?;
        if PLAIN_HEADERS.contains(&parts.header) {
            return self.verify_own(&parts, kind, now);
        }
        let head = Head::of(parts.header)?;
        if head.alg == "HS256" {
            return self.verify_own(&parts, kind, now);
        }
        let algorithm = jwk::algorithm(&head.alg).ok_or(TokenError::Algorithm)?;
        match kind {
            Kind::Access => self.verify_issued(&parts, algorithm, head.kid()?, now),
            Kind::Refresh => Err(TokenError::Elsewhere),
        }
    }

    /// A token signed with a shared secret: no leeway.
    fn verify_own(
        &self,
        parts: &Parts<'_>,
        kind: Kind,
        now: Millis,
    ) -> Result<(SessionKey, Millis), TokenError> {
        let signed_by = |key: &DecodingKey| {
            crypto::verify(parts.signature, parts.message.as_bytes(), key, Algorithm::HS256).unwrap_or(false)
        };
        if !self.trusted.iter().any(signed_by) {
            return Err(TokenError::Signature);
        }
        let claims = parts.claims()?;
        let claims: OwnClaims<'_> = serde_json::from_slice(&claims).map_err(|_| TokenError::Claims)?;
        let now_s = now.0.div_euclid(1000);
        if claims.exp.0 <= now_s {
            return Err(TokenError::Expired);
        }
        if claims.nbf.is_some_and(|nbf| nbf.0 > now_s) {
            return Err(TokenError::Immature);
        }
        if claims.token_type.0 != kind.as_str() {
            return Err(TokenError::Kind);
        }
        let sid = match &claims.sid {
            Some(sid) => Some(SessionId::parse(&sid.0).ok_or(TokenError::Claims)?),
            None => None,
        };
        Ok((SessionKey { user: claims.user_id.0, sid }, Millis(claims.exp.0.saturating_mul(1000))))
    }

    /// A token of an issuer: of the one that it names, or of one that has no name.
    fn verify_issued(
        &self,
        parts: &Parts<'_>,
        algorithm: Algorithm,
        kid: Option<&str>,
        now: Millis,
    ) -> Result<(SessionKey, Millis), TokenError> {
        if self.issuers.is_empty() {
            return Err(TokenError::Algorithm);
        }
        let claims = parts.claims()?;
        let issued: Issued<'_> = serde_json::from_slice(&claims).map_err(|_| TokenError::Claims)?;
        let iss = issued.iss.as_ref().map(|iss| &*iss.0);
        let mut refusal = TokenError::Issuer;
        for issuer in self.issuers.iter().filter(|issuer| issuer.may_have_issued(iss)) {
            if let Err(error) = issuer.check_signature(parts, algorithm, kid) {
                // What an issuer said that did sign it is nearer to the cause.
                if matches!(refusal, TokenError::Issuer) {
                    refusal = error;
                }
                continue;
            }
            match issuer.read_claims(&claims, now) {
                Err(error) => refusal = error,
                good => return good,
            }
        }
        Err(refusal)
    }
}

#[cfg(test)]
#[path = "own_tests.rs"]
mod own_tests;

#[cfg(test)]
#[path = "issued_tests.rs"]
mod issued_tests;
