//! What stands in a token: the header, and the claims that are looked at; all others are left alone.
//!
//! Borrowed where JSON lets it be, because every heartbeat passes through. A claim given twice is refused, for two
//! readers could disagree on which one counts.

use std::borrow::Cow;
use std::fmt;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{MAX_LEN, TokenError};
use crate::model::UserId;

/// A token in its parts, none of which has been looked at.
pub(super) struct Parts<'t> {
    /// What is signed: header and claims.
    pub(super) message: &'t str,
    pub(super) header: &'t str,
    claims: &'t str,
    pub(super) signature: &'t str,
}

impl<'t> Parts<'t> {
    pub(super) fn of(token: &'t str) -> Result<Self, TokenError> {
        if token.len() > MAX_LEN {
            return Err(TokenError::Malformed);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(TokenError::Malformed)?;
        Ok(Self { message, header, claims, signature })
    }

    /// The claims as JSON, not yet known to be any.
    pub(super) fn claims(&self) -> Result<Vec<u8>, TokenError> {
        URL_SAFE_NO_PAD.decode(self.claims).map_err(|_| TokenError::Malformed)
    }
}

/// The header. `jwk`, `jku` and `x5u`, by which a token names the key that it wants to be checked with, are not read.
#[derive(Deserialize)]
pub(super) struct Head {
    pub(super) alg: String,
    kid: Option<serde_json::Value>,
    crit: Option<IgnoredAny>,
}

impl Head {
    /// Reads a header. `crit` asks for what nobody here understands, and RFC 7515 wants such a token refused.
    pub(super) fn of(header: &str) -> Result<Self, TokenError> {
        let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| TokenError::Malformed)?;
        let head: Self = serde_json::from_slice(&header).map_err(|_| TokenError::Malformed)?;
        if head.crit.is_some() { Err(TokenError::Algorithm) } else { Ok(head) }
    }

    /// The name of the key that signed, where the token says one.
    pub(super) fn kid(&self) -> Result<Option<&str>, TokenError> {
        match &self.kid {
            None => Ok(None),
            Some(kid) => kid.as_str().map(Some).ok_or(TokenError::Malformed),
        }
    }
}

/// Who issued a token, by its own word.
#[derive(Deserialize)]
pub(super) struct Issued<'a> {
    #[serde(borrow)]
    pub(super) iss: Option<Text<'a>>,
}

/// Under which names a token holds what is read of it.
#[derive(Clone, Copy)]
pub(super) struct Names<'n> {
    pub(super) user: &'n str,
    pub(super) session: Option<&'n str>,
    pub(super) kind: Option<&'n str>,
    /// Whether `aud` is read.
    pub(super) audience: bool,
}

/// The claims of a token, as far as they are there.
#[derive(Default)]
pub(super) struct Claims<'a> {
    pub(super) user: Option<Scalar<'a>>,
    pub(super) session: Option<Scalar<'a>>,
    pub(super) kind: Option<Text<'a>>,
    pub(super) audience: Option<Words>,
    pub(super) exp: Option<NumericDate>,
    pub(super) nbf: Option<NumericDate>,
}

impl Names<'_> {
    /// Reads the claims that bear these names.
    pub(super) fn read<'a>(&self, claims: &'a [u8]) -> Result<Claims<'a>, TokenError> {
        let mut json = serde_json::Deserializer::from_slice(claims);
        let read = self.deserialize(&mut json).map_err(|_| TokenError::Claims)?;
        json.end().map_err(|_| TokenError::Claims)?;
        Ok(read)
    }
}

impl<'de> DeserializeSeed<'de> for &Names<'_> {
    type Value = Claims<'de>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Claims<'de>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &Names<'_> {
    type Value = Claims<'de>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("claims")
    }
    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Claims<'de>, M::Error> {
        let mut claims = Claims::default();
        while let Some(Text(name)) = map.next_key::<Text<'de>>()? {
            let name = Some(&*name);
            if name == Some(self.user) {
                once(&mut claims.user, map.next_value()?)?;
            } else if name == self.session {
                once(&mut claims.session, map.next_value()?)?;
            } else if name == self.kind {
                once(&mut claims.kind, map.next_value()?)?;
            } else if name == Some("aud") && self.audience {
                once(&mut claims.audience, map.next_value()?)?;
            } else if name == Some("exp") {
                once(&mut claims.exp, map.next_value()?)?;
            } else if name == Some("nbf") {
                if let Some(nbf) = map.next_value::<Option<NumericDate>>()? {
                    once(&mut claims.nbf, nbf)?;
                }
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(claims)
    }
}

fn once<T, E: de::Error>(slot: &mut Option<T>, value: T) -> Result<(), E> {
    if slot.replace(value).is_some() { Err(E::custom("a claim is given twice")) } else { Ok(()) }
}

/// Text borrowed where JSON lets it be: serde does so for a bare `Cow` only, not for one in an `Option`.
#[derive(Deserialize)]
pub(super) struct Text<'a>(#[serde(borrow)] pub(super) Cow<'a, str>);

/// One word, or a list of them: the form of `aud` (RFC 7519, section 4.1.3).
pub(super) struct Words(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for Words {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrMany;
        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Words;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<Words, E> {
                Ok(Words(vec![word.to_owned()]))
            }
            fn visit_seq<S: SeqAccess<'de>>(self, mut words: S) -> Result<Words, S::Error> {
                let mut found = Vec::new();
                while let Some(word) = words.next_element()? {
                    found.push(word);
                }
                Ok(Words(found))
            }
        }
        deserializer.deserialize_any(OneOrMany)
    }
}

/// Seconds since the epoch; RFC 7519 allows fractions, which are dropped.
#[derive(Clone, Copy)]
pub(super) struct NumericDate(pub(super) i64);

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

/// The value of a claim that holds an id or a name. Any JSON is read, so that a refusal can say which claim is wrong.
///
/// A whole number is kept exactly: `serde_json` reads one of up to 64 bits as an integer, and only what has a fraction, an
/// exponent or more bits as a floating-point number, which is [`Scalar::Other`].
#[derive(Debug, PartialEq)]
pub(super) enum Scalar<'a> {
    /// `null`.
    Null,
    /// A whole number from -2^63 to 2^63 - 1.
    Whole(i64),
    /// A text.
    Text(Cow<'a, str>),
    /// Anything else.
    Other,
}

impl Scalar<'_> {
    /// The account id: a whole number of 1 or more, or the same as a string of digits.
    pub(super) fn user_id(&self) -> Option<UserId> {
        let id = match self {
            Self::Whole(id) => Some(*id),
            Self::Text(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok(),
            _ => None,
        };
        id.filter(|id| *id > 0)
    }
}

impl<'de> Deserialize<'de> for Scalar<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar<'de>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }
    fn visit_unit<E: de::Error>(self) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Null)
    }
    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Whole(number))
    }
    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Scalar<'de>, E> {
        Ok(i64::try_from(number).map_or(Scalar::Other, Scalar::Whole))
    }
    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Text(Cow::Borrowed(text)))
    }
    fn visit_str<E: de::Error>(self, text: &str) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Text(Cow::Owned(text.to_owned())))
    }
    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Other)
    }
    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Other)
    }
    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Scalar<'de>, S::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }
    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Scalar<'de>, M::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Scalar::Other)
    }
}
