//! Public keys: JWK sets (RFC 7517) and PEM files, read into keys that each know their algorithms.
//!
//! A key that cannot be used safely is left out with the reason: a shared secret (`oct`) that came over the network, a
//! private key, one that is for encryption, one on a curve or of a length that is not taken. Lengths are checked here
//! because `jsonwebtoken` trusts whoever gives it a key: it panics on a short Ed25519 one, and takes RSA of 512 bits.

use std::fmt;
use std::str::FromStr;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::crypto::rust_crypto;
use jsonwebtoken::{Algorithm, AlgorithmFamily, DecodingKey, crypto};
use serde::Deserialize;
use spki::der::DecodePem;
use spki::{ObjectIdentifier, SubjectPublicKeyInfoOwned};

/// Every algorithm that a secret may sign by.
pub const SHARED_ALGORITHMS: [Algorithm; 3] = [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];

/// Every algorithm that a private key of an issuer may sign by.
pub const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];

/// The most keys that a set may hold.
const MOST_KEYS: usize = 64;
/// The longest `kid` that is kept, bytes.
const MOST_KID: usize = 256;
/// RSA moduli, bytes: 2048 bits (RFC 7518, section 3.3) to what the `rsa` crate takes.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=512;

/// The algorithm of this name, if it is one of [`ALGORITHMS`]. `Ed25519` is what RFC 9864 calls `EdDSA`.
pub fn algorithm(name: &str) -> Option<Algorithm> {
    let name = if name == "Ed25519" { "EdDSA" } else { name };
    Algorithm::from_str(name).ok().filter(|algorithm| ALGORITHMS.contains(algorithm))
}

/// The algorithm of this name, if it is one of [`SHARED_ALGORITHMS`].
pub fn shared_algorithm(name: &str) -> Option<Algorithm> {
    Algorithm::from_str(name).ok().filter(|algorithm| SHARED_ALGORITHMS.contains(algorithm))
}

/// A public key, and what it may be used for.
#[derive(Clone)]
pub struct PublicKey {
    kid: Option<String>,
    algorithms: Vec<Algorithm>,
    decoding: DecodingKey,
    /// What the key consists of, by which two of them are compared.
    material: Vec<Vec<u8>>,
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        (&self.kid, &self.algorithms, &self.material) == (&other.kid, &other.algorithms, &other.material)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({:?}, {:?})", self.kid, self.algorithms)
    }
}

/// A set of keys as it was read.
#[derive(Debug)]
pub struct KeySet {
    /// Those that can be used.
    pub keys: Vec<PublicKey>,
    /// Why each of the others cannot.
    pub left_out: Vec<&'static str>,
}

impl PublicKey {
    /// The name by which tokens choose it.
    pub fn kid(&self) -> Option<&str> {
        self.kid.as_deref()
    }

    /// Whether tokens signed by this algorithm are its.
    pub fn is_for(&self, algorithm: Algorithm) -> bool {
        self.algorithms.contains(&algorithm)
    }

    pub(super) fn decoding(&self) -> &DecodingKey {
        &self.decoding
    }

    fn rsa(modulus: &[u8], exponent: &[u8]) -> Result<Self, &'static str> {
        let bare =
            |number: &[u8]| number.iter().position(|byte| *byte != 0).map(|from| number[from..].to_vec());
        let (Some(modulus), Some(exponent)) = (bare(modulus), bare(exponent)) else {
            return Err("an RSA key of nothing");
        };
        if !RSA_BYTES.contains(&modulus.len()) || (modulus.len() == 256 && modulus[0] < 0x80) {
            return Err("an RSA key of less than 2048 or more than 4096 bits");
        }
        // With 1 everything is its own signature; no larger one than 2^32 is in use.
        let is_odd = exponent.last().is_some_and(|last| last % 2 == 1);
        if !is_odd || exponent == [1] || exponent.len() > 4 {
            return Err("an RSA key with an unusual exponent");
        }
        let decoding = DecodingKey::from_rsa_raw_components(&modulus, &exponent);
        Ok(Self::of_family(AlgorithmFamily::Rsa, decoding, vec![modulus, exponent]))
    }

    /// A point on P-256 or P-384, as SEC 1 writes it.
    fn ec(point: &[u8], algorithm: Algorithm) -> Result<Self, &'static str> {
        let key = Self::of_algorithms(vec![algorithm], DecodingKey::from_ec_der(point), vec![point.to_vec()]);
        key.if_usable("a point that is not on its curve")
    }

    fn ed25519(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.len() != 32 {
            return Err("an Ed25519 key that is not of 32 bytes");
        }
        let key = Self::of_family(AlgorithmFamily::Ed, DecodingKey::from_ed_der(bytes), vec![bytes.to_vec()]);
        key.if_usable("a point that is not on its curve")
    }

    fn of_family(family: AlgorithmFamily, decoding: DecodingKey, material: Vec<Vec<u8>>) -> Self {
        let all = ALGORITHMS.into_iter().filter(|algorithm| algorithm.family() == family);
        Self::of_algorithms(all.collect(), decoding, material)
    }

    fn of_algorithms(algorithms: Vec<Algorithm>, decoding: DecodingKey, material: Vec<Vec<u8>>) -> Self {
        Self { kid: None, algorithms, decoding, material }
    }

    /// Tries the key once: that it verifies nothing is well, that it cannot be used is not.
    fn if_usable(self, why_not: &'static str) -> Result<Self, &'static str> {
        let tried = crypto::verify("", b"", &self.decoding, self.algorithms[0]);
        if tried.is_ok() { Ok(self) } else { Err(why_not) }
    }

    /// Reads every `PUBLIC KEY` of a PEM file.
    ///
    /// # Errors
    /// What is wrong with it, and how to make a right one.
    pub fn from_pem(text: &str) -> Result<Vec<Self>, String> {
        const HOW: &str =
            "a PEM file with -----BEGIN PUBLIC KEY-----, of RSA (2048 to 4096 bits), P-256, P-384 or Ed25519";
        if text.contains("PRIVATE KEY-----") {
            return Err(format!(
                "holds a private key, which must not leave its owner; it must be {HOW}: openssl pkey -pubout"
            ));
        }
        let end = "-----END PUBLIC KEY-----";
        let blocks: Vec<&str> = text
            .match_indices("-----BEGIN PUBLIC KEY-----")
            .map(|(at, _)| text[at..].find(end).map_or(&text[at..], |to| &text[at..at + to + end.len()]))
            .collect();
        if blocks.is_empty() || text.matches("-----BEGIN ").count() != blocks.len() {
            return Err(format!("must be {HOW} (of a certificate: openssl x509 -pubkey -noout)"));
        }
        if blocks.len() > MOST_KEYS {
            return Err(format!("holds {} keys; {MOST_KEYS} at most", blocks.len()));
        }
        blocks
            .into_iter()
            .map(|block| Self::from_pem_block(block).map_err(|why| format!("holds {why}; it must be {HOW}")))
            .collect()
    }

    fn from_pem_block(block: &str) -> Result<Self, &'static str> {
        const RSA: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.1");
        const EC: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
        const P256: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.3.1.7");
        const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");
        const ED25519: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.101.112");
        let info = SubjectPublicKeyInfoOwned::from_pem(block).map_err(|_| "no readable key")?;
        let key = info.subject_public_key.raw_bytes();
        match info.algorithm.oid {
            RSA => {
                let parts = rust_crypto::DEFAULT_PROVIDER.key_utils.rsa_pub_components_from_public_key;
                let (modulus, exponent) = parts(key).map_err(|_| "no readable RSA key")?;
                Self::rsa(&modulus, &exponent)
            }
            EC => {
                let curve = info.algorithm.parameters.and_then(|curve| curve.decode_as().ok());
                match curve {
                    Some(P256) => Self::ec(key, Algorithm::ES256),
                    Some(P384) => Self::ec(key, Algorithm::ES384),
                    _ => Err("a key on another curve"),
                }
            }
            ED25519 => Self::ed25519(key),
            _ => Err("a key of another kind"),
        }
    }
}

impl KeySet {
    /// Reads a JWK set, as a provider answers it.
    ///
    /// # Errors
    /// Where it is none, or holds more keys than anybody has.
    pub fn from_json(json: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set {
            keys: Vec<serde_json::Value>,
        }
        // What serde says of it may quote it.
        let set: Set = serde_json::from_slice(json)
            .map_err(|_| "the answer is no JWK set: JSON with a list named 'keys'".to_owned())?;
        if set.keys.len() > MOST_KEYS {
            return Err(format!("the set holds {} keys; {MOST_KEYS} at most", set.keys.len()));
        }
        let mut read = Self { keys: Vec::new(), left_out: Vec::new() };
        for key in set.keys {
            let key = serde_json::from_value(key).map_err(|_| "no readable key").and_then(Jwk::read);
            match key {
                Ok(key) => read.keys.push(key),
                Err(why) => read.left_out.push(why),
            }
        }
        Ok(read)
    }
}

/// One key of a set. Members that are not read say nothing about whether it may be used.
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    r#use: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    kid: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
    d: Option<serde::de::IgnoredAny>,
}

impl Jwk {
    fn read(self) -> Result<PublicKey, &'static str> {
        if self.kty == "oct" {
            return Err("a shared secret, which is none once it was sent");
        }
        if self.d.is_some() {
            return Err("a private key");
        }
        if self.r#use.as_deref().is_some_and(|purpose| purpose != "sig") {
            return Err("a key that is not for signatures");
        }
        if self.key_ops.as_ref().is_some_and(|ops| !ops.iter().any(|op| op == "verify")) {
            return Err("a key that is not for verifying");
        }
        if self.kid.as_ref().is_some_and(|kid| kid.len() > MOST_KID) {
            return Err("a key with an overlong name");
        }
        let mut key = match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => PublicKey::rsa(&bytes(self.n.as_ref())?, &bytes(self.e.as_ref())?)?,
            ("EC", Some("P-256")) => PublicKey::ec(&self.point(32)?, Algorithm::ES256)?,
            ("EC", Some("P-384")) => PublicKey::ec(&self.point(48)?, Algorithm::ES384)?,
            ("OKP", Some("Ed25519")) => PublicKey::ed25519(&bytes(self.x.as_ref())?)?,
            _ => return Err("a key of another kind or on another curve"),
        };
        if let Some(alg) = &self.alg {
            let pinned = algorithm(alg).filter(|pinned| key.is_for(*pinned));
            key.algorithms = vec![pinned.ok_or("a key for an algorithm that is not its own or not taken")?];
        }
        key.kid = self.kid;
        Ok(key)
    }

    /// The point of a curve whose coordinates have this length in bytes.
    fn point(&self, length: usize) -> Result<Vec<u8>, &'static str> {
        let (x, y) = (bytes(self.x.as_ref())?, bytes(self.y.as_ref())?);
        if x.len() != length || y.len() != length {
            return Err("a point of another length than its curve's");
        }
        Ok([&[4][..], &x, &y].concat())
    }
}

fn bytes(member: Option<&String>) -> Result<Vec<u8>, &'static str> {
    let member = member.ok_or("a key without all of its members")?;
    URL_SAFE_NO_PAD.decode(member).map_err(|_| "a key that is not base64url")
}

#[cfg(test)]
#[path = "jwk_tests.rs"]
mod tests;
