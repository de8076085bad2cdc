//! Hashes as they are stored: our own in PHC form, and those that Django made.
//!
//! Django's forms are those of its `django.contrib.auth.hashers` (5.2): fields behind dollar signs, the algorithm first.
//! What a hash asks for is bounded before any of it is computed: a row of the database, which somebody else may have
//! written, must not cost gigabytes or minutes.

use std::fmt;

use argon2::Params;
use argon2::password_hash::{PasswordVerifier, phc};
use base64::{Engine, engine::general_purpose::STANDARD};
use pbkdf2::{Algorithm, Pbkdf2, pbkdf2_hmac};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::argon::{PARAMS, argon2};
use crate::store::PasswordHash;

/// The most iterations of PBKDF2: some seconds of a core. Django 5.2 makes 1,000,000.
const MOST_ITERATIONS: u32 = 5_000_000;
/// The most memory of argon2 and scrypt, KiB. Django's argon2 asks for 100 MiB, its scrypt for 16.
const MOST_KIB: u64 = 256 * 1024;
/// The most work of argon2, KiB times passes: some seconds. Django's asks for 200 MiB.
const MOST_ARGON2_WORK: u64 = 2 * 1024 * 1024;
/// The most lanes of argon2. Django's asks for 8.
const MOST_LANES: u32 = 64;
/// The most work of scrypt, its `N` times `r` times `p`: some seconds. Django's asks for 655,360.
const MOST_SCRYPT_WORK: u64 = 8 * 1024 * 1024;
/// The highest cost of bcrypt, a power of two: some seconds. Django's asks for 12.
const MOST_BCRYPT_COST: u32 = 15;
/// The longest hash that is looked at, bytes; Django's column holds 128.
const MOST_BYTES: usize = 512;

/// Why a stored hash is none that a password can be checked against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unreadable {
    /// Empty, or marked by Django with a `!`: the account has no password.
    Unusable,
    /// Of a form that is not known here.
    Unknown,
    /// It asks for more than is granted; the text says what, and how much is.
    TooCostly(String),
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unusable => f.write_str("it is marked as unusable"),
            Self::Unknown => f.write_str(
                "it is of none of the forms that can be read: argon2, bcrypt, bcrypt_sha256, pbkdf2_sha1, pbkdf2_sha256, \
                 scrypt",
            ),
            Self::TooCostly(what) => write!(f, "it asks for {what}"),
        }
    }
}

/// A stored hash, taken apart.
pub(super) enum Stored<'a> {
    Argon2(Box<phc::PasswordHash>),
    Pbkdf2Sha256 { iterations: u32, salt: &'a str, output: Vec<u8> },
    Pbkdf2Sha1 { iterations: u32, salt: &'a str, output: Vec<u8> },
    Bcrypt { sha256: bool, cost: u32, hash: &'a str },
    Scrypt { params: scrypt::Params, salt: &'a str, output: Vec<u8> },
}

impl<'a> Stored<'a> {
    /// Reads a hash, and refuses one that asks for too much.
    pub(super) fn read(hash: &'a PasswordHash) -> Result<Self, Unreadable> {
        let text = hash.0.as_str();
        if text.is_empty() || text.starts_with('!') {
            return Err(Unreadable::Unusable);
        }
        if text.contains('\0') {
            return Err(Unreadable::Unknown);
        }
        if text.len() > MOST_BYTES {
            return Err(Unreadable::TooCostly(format!("{} bytes, {MOST_BYTES} at most", text.len())));
        }
        let (algorithm, rest) = text.split_once('$').ok_or(Unreadable::Unknown)?;
        match algorithm {
            "" => read_argon2(text),
            // Django's name before the hash as argon2's own library writes it.
            "argon2" => read_argon2(&text["argon2".len()..]),
            "pbkdf2_sha256" => {
                let (iterations, salt, output) = read_pbkdf2(rest, 32)?;
                Ok(Self::Pbkdf2Sha256 { iterations, salt, output })
            }
            "pbkdf2_sha1" => {
                let (iterations, salt, output) = read_pbkdf2(rest, 20)?;
                Ok(Self::Pbkdf2Sha1 { iterations, salt, output })
            }
            "bcrypt" => read_bcrypt(rest, false),
            "bcrypt_sha256" => read_bcrypt(rest, true),
            "scrypt" => read_scrypt(rest),
            _ => Err(Unreadable::Unknown),
        }
    }

    /// Whether the hash is of `password`. Takes as long as the hash asks for.
    pub(super) fn is_of(&self, password: &str) -> bool {
        let password = password.as_bytes();
        match self {
            Self::Argon2(hash) => argon2().verify_password(password, hash.as_ref()).is_ok(),
            Self::Pbkdf2Sha256 { iterations, salt, output } => {
                let mut computed = [0; 32];
                match pbkdf2::Params::new(*iterations) {
                    Ok(params) => Pbkdf2::new(Algorithm::Pbkdf2Sha256, params).hash_password_into(
                        password,
                        salt.as_bytes(),
                        &mut computed,
                    ),
                    // The library wants a thousand at least; what is stored is what it is.
                    Err(_) => {
                        pbkdf2_hmac::<Sha256>(password, salt.as_bytes(), *iterations, &mut computed);
                    }
                }
                computed[..].ct_eq(output).into()
            }
            Self::Pbkdf2Sha1 { iterations, salt, output } => {
                let mut computed = [0; 20];
                pbkdf2_hmac::<Sha1>(password, salt.as_bytes(), *iterations, &mut computed);
                computed[..].ct_eq(output).into()
            }
            // Hashed before, because bcrypt looks at 72 bytes only. Without, it does so here too.
            Self::Bcrypt { sha256: true, hash, .. } => {
                bcrypt::verify(hex(&Sha256::digest(password)), hash).unwrap_or(false)
            }
            Self::Bcrypt { sha256: false, hash, .. } => bcrypt::verify(password, hash).unwrap_or(false),
            Self::Scrypt { params, salt, output } => {
                let mut computed = [0; 64];
                scrypt::scrypt(password, salt.as_bytes(), params, &mut computed).is_ok()
                    && computed[..].ct_eq(output).into()
            }
        }
    }

    /// Whether it is another than a new one would be: to be replaced when the password is known.
    pub(super) fn is_outdated(&self) -> bool {
        match self {
            Self::Argon2(hash) => {
                hash.algorithm != argon2::ARGON2ID_IDENT
                    || hash.version != Some(argon2::Version::V0x13.into())
                    || Params::try_from(hash.as_ref()).map_or(true, |params| {
                        (params.m_cost(), params.t_cost(), params.p_cost())
                            != (PARAMS.m_cost(), PARAMS.t_cost(), PARAMS.p_cost())
                    })
            }
            _ => true,
        }
    }

    /// About how long a verification takes, microseconds on a usual core: only good to find the costliest of several.
    pub(super) fn cost_us(&self) -> u64 {
        match self {
            Self::Argon2(hash) => Params::try_from(hash.as_ref())
                .map_or(0, |params| u64::from(params.m_cost()) * u64::from(params.t_cost()) / 2),
            Self::Pbkdf2Sha256 { iterations, .. } | Self::Pbkdf2Sha1 { iterations, .. } => {
                u64::from(*iterations) / 3
            }
            Self::Bcrypt { cost, .. } => 60 << cost,
            Self::Scrypt { params, .. } => {
                (params.n() * u64::from(params.r()) * u64::from(params.p())) * 2 / 5
            }
        }
    }
}

/// Lower-case hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Refuses more than is granted.
fn at_most(what: &str, asked: impl Into<u64>, most: impl Into<u64>) -> Result<(), Unreadable> {
    let (asked, most) = (asked.into(), most.into());
    if asked <= most { Ok(()) } else { Err(Unreadable::TooCostly(format!("{asked} {what}, {most} at most"))) }
}

/// A whole number, which one that is too large for its type is too.
fn number<T: TryFrom<u64>>(what: &str, text: &str) -> Result<T, Unreadable> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Unreadable::Unknown);
    }
    let number = text.parse::<u64>().ok().and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| Unreadable::TooCostly(format!("{text} {what}")))
}

/// What the hash must come to; Django writes it with its padding.
fn output(text: &str, bytes: usize) -> Result<Vec<u8>, Unreadable> {
    STANDARD.decode(text).ok().filter(|output| output.len() == bytes).ok_or(Unreadable::Unknown)
}

fn read_argon2<'a>(text: &str) -> Result<Stored<'a>, Unreadable> {
    let hash = phc::PasswordHash::new(text).map_err(|_| Unreadable::Unknown)?;
    let params = Params::try_from(&hash).map_err(|_| Unreadable::Unknown)?;
    if argon2::Algorithm::try_from(hash.algorithm.as_str()).is_err()
        || hash.salt.is_none()
        || hash.hash.is_none()
    {
        return Err(Unreadable::Unknown);
    }
    at_most("KiB of memory", params.m_cost(), MOST_KIB)?;
    at_most("KiB times passes", u64::from(params.m_cost()) * u64::from(params.t_cost()), MOST_ARGON2_WORK)?;
    at_most("lanes", params.p_cost(), MOST_LANES)?;
    Ok(Stored::Argon2(Box::new(hash)))
}

/// `iterations$salt$hash`
fn read_pbkdf2(rest: &str, bytes: usize) -> Result<(u32, &str, Vec<u8>), Unreadable> {
    let mut fields = rest.splitn(3, '$');
    let (Some(iterations), Some(salt), Some(hash)) = (fields.next(), fields.next(), fields.next()) else {
        return Err(Unreadable::Unknown);
    };
    let iterations = number("iterations", iterations)?;
    at_most("iterations", iterations, MOST_ITERATIONS)?;
    if iterations == 0 {
        return Err(Unreadable::Unknown);
    }
    Ok((iterations, salt, output(hash, bytes)?))
}

/// bcrypt's own form, `$2b$12$` and 53 characters.
fn read_bcrypt(hash: &str, sha256: bool) -> Result<Stored<'_>, Unreadable> {
    let fields: Vec<&str> = hash.split('$').collect();
    let ["", "2a" | "2b" | "2x" | "2y", cost, rest] = fields[..] else { return Err(Unreadable::Unknown) };
    let cost = number("as the cost of bcrypt", cost)?;
    at_most("as the cost of bcrypt", cost, MOST_BCRYPT_COST)?;
    let letters = rest.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'/'));
    if cost < 4 || hash.len() != 60 || !letters {
        return Err(Unreadable::Unknown);
    }
    Ok(Stored::Bcrypt { sha256, cost, hash })
}

/// `N$salt$r$p$hash`
fn read_scrypt(rest: &str) -> Result<Stored<'_>, Unreadable> {
    let fields: Vec<&str> = rest.split('$').collect();
    let [n, salt, r, p, hash] = fields[..] else { return Err(Unreadable::Unknown) };
    let n: u64 = number("as the N of scrypt", n)?;
    let r: u32 = number("as the r of scrypt", r)?;
    let p: u32 = number("as the p of scrypt", p)?;
    if !n.is_power_of_two() || n < 2 || r == 0 || p == 0 {
        return Err(Unreadable::Unknown);
    }
    let memory = n.saturating_mul(u64::from(r)) / 8;
    at_most("KiB of memory", memory, MOST_KIB)?;
    at_most("as N r p of scrypt", (memory * 8).saturating_mul(u64::from(p)), MOST_SCRYPT_WORK)?;
    let log_n = u8::try_from(n.trailing_zeros()).map_err(|_| Unreadable::Unknown)?;
    let params = scrypt::Params::new(log_n, r, p).map_err(|_| Unreadable::Unknown)?;
    Ok(Stored::Scrypt { params, salt, output: output(hash, 64)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> Unreadable {
        Stored::read(&PasswordHash(text.into())).err().unwrap_or_else(|| panic!("{text} was read"))
    }

    #[test]
    fn a_hash_that_asks_for_too_much_is_refused_before_it_is_computed() {
        let argon2 =
            |params: &str| format!("argon2$argon2id$v=19${params}$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA");
        let output = STANDARD.encode([0; 32]);
        let long = STANDARD.encode([0; 64]);
        let bcrypt = "x".repeat(53);
        for text in [
            argon2("m=4194304,t=1,p=1"),
            argon2("m=102400,t=100000,p=8"),
            argon2("m=102400,t=2,p=65"),
            format!("pbkdf2_sha256$5000001$salt${output}"),
            format!("pbkdf2_sha256$99999999999$salt${output}"),
            format!("pbkdf2_sha1$5000001$salt${}", STANDARD.encode([0; 20])),
            format!("bcrypt$$2b$31${bcrypt}"),
            format!("bcrypt_sha256$$2b$16${bcrypt}"),
            format!("scrypt$4194304$salt$8$1${long}"),
            format!("scrypt$16384$salt$8$4000000000${long}"),
            format!("scrypt$9223372036854775808$salt$4000000000$4000000000${long}"),
            format!("pbkdf2_sha256$1000$${}${output}", "x".repeat(500)),
        ] {
            assert!(matches!(refused(&text), Unreadable::TooCostly(_)), "{text}: {:?}", refused(&text));
        }
    }

    #[test]
    fn what_is_no_hash_is_told_from_what_marks_none() {
        for text in ["", "!", "!kqZ0bs8mQrM5", "!pbkdf2_sha256$1$s$x"] {
            assert_eq!(refused(text), Unreadable::Unusable, "{text}");
        }
        let bcrypt = "x".repeat(53);
        for text in [
            "no PHC string".to_owned(),
            "md5$salt$5f4dcc3b5aa765d61d8327deb882cf99".into(),
            "argon2$argon2id".into(),
            "argon2$argon2id$v=19$m=8,t=1,p=1".into(),
            "argon2$scrypt$v=19$m=8,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA".into(),
            "pbkdf2_sha256$600000$salt$hash".into(),
            format!("pbkdf2_sha256$0$salt${}", STANDARD.encode([0; 32])),
            format!("pbkdf2_sha256$-1$salt${}", STANDARD.encode([0; 32])),
            format!("pbkdf2_sha256$1$salt${}", STANDARD.encode([0; 31])),
            format!("pbkdf2_sha1$1$salt${}", STANDARD.encode([0; 32])),
            format!("bcrypt$$2b$03${bcrypt}"),
            format!("bcrypt$$2b$12${bcrypt}x"),
            format!("bcrypt$$2b$12${}é", &bcrypt[2..]),
            format!("bcrypt$$3b$12${bcrypt}"),
            format!("scrypt$1000$salt$8$1${}", STANDARD.encode([0; 64])),
            format!("scrypt$1024$salt$0$1${}", STANDARD.encode([0; 64])),
            format!("scrypt$1024$salt$8$1${}", STANDARD.encode([0; 32])),
        ] {
            assert_eq!(refused(&text), Unreadable::Unknown, "{text}");
        }
    }
}
