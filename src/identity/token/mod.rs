//! Tokens: JSON Web Tokens, minted and verified without asking anybody.
//!
//! Those signed with a shared secret (HS256, HS384, HS512) are minted here or by a service that shares it ([`keyring`]).
//! Those of an identity provider are signed with a secret shared with it, or with its private key and verified with its
//! public ones ([`issuer`]), which are read from a file or fetched in the background ([`keeper`]). What stands in a set of
//! keys is read in [`jwk`], what stands in a token in `claims`: once and borrowed, because every heartbeat passes through and
//! `jsonwebtoken::decode` parses header and claims twice for each key. What the claims must hold is in `rules`.
//!
//! An algorithm is pinned to each key, and a token chooses among the pairs that there are: none, or a public key taken
//! for a secret, is no pair.
//!
//! A shared secret costs one or two microseconds and is checked at once. A public key costs up to some hundred, so its check
//! comes after everything that needs no signature, tries a bounded number of keys ([`MAX_KEYS_TRIED`]), and is handed to
//! the caller ([`SignatureCheck`]) to be run off the threads that serve.

mod claims;
pub mod issuer;
pub mod jwk;
pub mod keeper;
pub mod keyring;
mod rules;
mod signature;
#[cfg(test)]
mod test_keys;
mod verified;

pub use jsonwebtoken::Algorithm;

pub use issuer::{IssuerSettings, KeySource, MAX_KEYS_TRIED};
pub use keyring::{Keyring, Step};
pub use rules::Leeway;
pub use signature::{SignatureCheck, Signed};

use crate::model::SessionId;

/// The longest token that is looked at, bytes.
const MAX_LEN: usize = 8 * 1024;

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
    /// Signed by an algorithm for which there is no key.
    #[error("the token is signed by an algorithm that is not taken here")]
    Algorithm,
    /// Signed with a key that is not trusted here, or altered.
    #[error("the token's signature is not valid")]
    Signature,
    /// It names a key that is not known; the keys are asked for again.
    #[error("the key that signed the token is not known here, or not yet")]
    UnknownKey,
    /// It does not name its key, and its issuer has more keys that fit than are tried.
    #[error(
        "the token does not name the key that signed it (kid), and its issuer has too many keys to try them all"
    )]
    Unnamed,
    /// Of an issuer that is not trusted here.
    #[error("the token's issuer is not trusted here")]
    Issuer,
    /// Meant for somebody else.
    #[error("the token is meant for another audience")]
    Audience,
    /// A claim is missing or does not hold what it must.
    #[error("the token's claims are not those of this service")]
    Claims,
    /// Its user id is missing, or no id.
    #[error(
        "the token's user id must be a whole number from 1 to 9223372036854775807, or its digits as a text"
    )]
    UserId,
    /// Its session id is none.
    #[error("the token's session id must be a text of 1 to {} visible ASCII characters", SessionId::MAX_LEN)]
    SessionId,
    /// Its time is over.
    #[error("the token has expired")]
    Expired,
    /// Its time has not come.
    #[error("the token is not valid yet")]
    Immature,
    /// An access token where a refresh token is due, or the other way round.
    #[error("this is the wrong kind of token")]
    Kind,
    /// A refresh token of another service, which alone can refresh it.
    #[error("this refresh token was not issued here; refresh it where it was")]
    Elsewhere,
}
