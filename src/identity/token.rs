//! Tokens: HS256 JSON Web Tokens, minted and verified without asking anybody.
//!
//! Owns the secrets and the claims. The signature is `jsonwebtoken`'s; the claims are read here, once and borrowed,
//! because every heartbeat passes through and `jsonwebtoken::decode` parses header and claims twice for each key.

use std::borrow::Cow;
use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, crypto, encode};
use serde::de::{self, Deserializer, IgnoredAny, Visitor};
use serde::{Deserialize, Serialize};

use crate::model::{Millis, SessionId, SessionKey, UserId};

/// The longest token that is looked at, bytes.
const MAX_LEN: usize = 8 * 1024;

/// The encoded headers that nearly every token has, ours first: `{"typ":"JWT","alg":"HS256"}` in both orders. Others
/// are parsed.
const PLAIN_HEADERS: [&str; 2] =
    ["eyJ0eXAiOiJKV1QiLCJhbGciOiJIUzI1NiJ9", "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"];

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Opens requests.
    Access,
    /// Buys the next pair of tokens.
    Refresh,
}

impl Kind {
    /// The word in the claim `token_type`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Access => "access",
            Self::Refresh => "refresh",
        }
    }
}

/// Why a token is not taken. The texts are shown to clients and hold nothing of the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not three parts of base64url, or not JSON in them.
    #[error("this is no JSON Web Token")]
    Malformed,
    /// Signed by another algorithm than HS256.
    #[error("the token is not signed by HS256")]
    Algorithm,
    /// Signed with a secret that is not trusted here, or altered.
    #[error("the token's signature is not valid")]
    Signature,
    /// A claim is missing or does not hold what it must.
    #[error("the token's claims are not those of this service")]
    Claims,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    Immature,
    /// An access token where a refresh token is due, or the other way round.
    #[error("this is the wrong kind of token")]
    Kind,
}

/// The secrets: one that signs, and all whose tokens are taken. Its `Debug` shows none.
pub struct Keyring {
    signing: EncodingKey,
    trusted: Vec<DecodingKey>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("trusted", &self.trusted.len()).finish_non_exhaustive()
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
        }
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

    /// Who speaks by this token, if it is one of the given kind, well signed and in its time: no leeway.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn verify(&self, token: &str, kind: Kind, now: Millis) -> Result<SessionKey, TokenError> {
        self.verify_until(token, kind, now).map(|(who, _)| who)
    }

    /// As [`Self::verify`], with the instant at which the token expires.
    pub fn verify_until(
        &self,
        token: &str,
        kind: Kind,
        now: Millis,
    ) -> Result<(SessionKey, Millis), TokenError> {
        if token.len() > MAX_LEN {
            return Err(TokenError::Malformed);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(TokenError::Malformed)?;
        check_header(header)?;
        self.check_signature(message, signature)?;

        let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| TokenError::Malformed)?;
        let claims: Claims<'_> = serde_json::from_slice(&claims).map_err(|_| TokenError::Claims)?;
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
        Ok((SessionKey { user: claims.user_id, sid }, Millis(claims.exp.0.saturating_mul(1000))))
    }

    fn check_signature(&self, message: &str, signature: &str) -> Result<(), TokenError> {
        let signed_by = |key: &DecodingKey| {
            crypto::verify(signature, message.as_bytes(), key, Algorithm::HS256).unwrap_or(false)
        };
        if self.trusted.iter().any(signed_by) { Ok(()) } else { Err(TokenError::Signature) }
    }
}

/// Pins the algorithm. A `crit` header asks for what nobody here understands, and RFC 7515 wants such a token refused.
fn check_header(header: &str) -> Result<(), TokenError> {
    #[derive(Deserialize)]
    struct Head<'a> {
        #[serde(borrow)]
        alg: Text<'a>,
        crit: Option<IgnoredAny>,
    }
    if PLAIN_HEADERS.contains(&header) {
        return Ok(());
    }
    let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| TokenError::Malformed)?;
    let head: Head<'_> = serde_json::from_slice(&header).map_err(|_| TokenError::Malformed)?;
    if head.alg.0 == "HS256" && head.crit.is_none() { Ok(()) } else { Err(TokenError::Algorithm) }
}

/// The claims that are looked at; all others are left alone.
#[derive(Deserialize)]
struct Claims<'a> {
    #[serde(deserialize_with = "user_id")]
    user_id: UserId,
    #[serde(borrow)]
    sid: Option<Text<'a>>,
    #[serde(borrow)]
    token_type: Text<'a>,
    exp: NumericDate,
    nbf: Option<NumericDate>,
}

/// Text borrowed where JSON lets it be: serde does so for a bare `Cow` only, not for one in an `Option`.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

/// Seconds since the epoch; RFC 7519 allows fractions, which are dropped.
#[derive(Clone, Copy)]
struct NumericDate(i64);

impl<'de> Deserialize<'de> for NumericDate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Seconds;
        impl Visitor<'_> for Seconds {
            type Value = NumericDate;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("seconds since 1970")
            }
            fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<NumericDate, E> {
                Ok(NumericDate(seconds))
            }
            fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<NumericDate, E> {
                Ok(NumericDate(i64::try_from(seconds).unwrap_or(i64::MAX)))
            }
            #[allow(clippy::cast_possible_truncation)] // a float saturates, and JSON has no NaN
            fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<NumericDate, E> {
                Ok(NumericDate(seconds.floor() as i64))
            }
        }
        deserializer.deserialize_any(Seconds)
    }
}

/// A positive integer, or the same as a string of digits.
fn user_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<UserId, D::Error> {
    struct Id;
    impl Visitor<'_> for Id {
        type Value = UserId;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a positive integer")
        }
        fn visit_i64<E: de::Error>(self, id: i64) -> Result<UserId, E> {
            if id > 0 { Ok(id) } else { Err(E::custom("not positive")) }
        }
        fn visit_u64<E: de::Error>(self, id: u64) -> Result<UserId, E> {
            i64::try_from(id).map_err(E::custom).and_then(|id| self.visit_i64(id))
        }
        fn visit_str<E: de::Error>(self, id: &str) -> Result<UserId, E> {
            if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(E::custom("not digits"));
            }
            id.parse::<i64>().map_err(E::custom).and_then(|id| self.visit_i64(id))
        }
    }
    deserializer.deserialize_any(Id)
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;
