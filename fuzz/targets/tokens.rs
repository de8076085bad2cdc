//! The token parser: nothing that no secret has signed is a token; whatever one has signed is read without a panic, and an id
//! to its last digit.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use libfuzzer_sys::fuzz_target;
use presenced::identity::token::{IssuerSettings, KeySource, Keyring, Kind, Leeway};
use presenced::model::Millis;
use serde_json::Value;

const SECRET: &str = "a secret of more than thirty-two bytes!";
const SHARED: &str = "a secret that is shared with an issuer!";
const NOW: Millis = Millis(1_768_473_000_123);

/// A ring with an issuer that shares a secret and names its claims in its own way.
static RING: LazyLock<Keyring> = LazyLock::new(|| {
    let issuer = IssuerSettings {
        name: "django".into(),
        keys: KeySource::Shared(vec![SHARED.into()]),
        iss: None,
        audience: Vec::new(),
        user_claim: "uid".into(),
        session_claim: Some("session".into()),
        access_mark: None,
        algorithms: vec![Algorithm::HS512],
        leeway: Leeway::both(Duration::from_secs(5)),
    };
    Keyring::new(SECRET, &[]).with_issuers(&[issuer])
});

/// A secret, what it signs by, the header that says so, and the claim with the id.
const WAYS: [(&str, Algorithm, &str, &str); 2] = [
    (SECRET, Algorithm::HS256, r#"{"alg":"HS256","typ":"JWT"}"#, "user_id"),
    (SHARED, Algorithm::HS512, r#"{"alg":"HS512","typ":"JWT"}"#, "uid"),
];

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        for kind in [Kind::Access, Kind::Refresh] {
            assert!(RING.verify(text, kind, NOW).is_err(), "taken, though no secret signed it: {text}");
        }
    }
    // The same bytes as the header and the claims of a token that is rightly signed.
    let Some((at, rest)) = data.split_first() else { return };
    let (header, claims) = rest.split_at((*at as usize).min(rest.len()));
    for (secret, algorithm, plain, claim) in WAYS {
        for header in [header, plain.as_bytes()] {
            let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
            let key = EncodingKey::from_secret(secret.as_bytes());
            let Ok(signature) = crypto::sign(message.as_bytes(), &key, algorithm) else { return };
            let verified = RING.verify_until(&format!("{message}.{signature}"), Kind::Access, NOW);
            if let Ok((who, until)) = verified {
                assert!(who.user > 0 && until.0 > NOW.0 - 1000, "{who:?} {until:?}");
                assert_eq!(Some(who.user), written_id(claims, claim), "{who:?}");
            }
        }
    }
});

/// The id as the claims write it, by another reader.
fn written_id(claims: &[u8], claim: &str) -> Option<i64> {
    let claims: Value = serde_json::from_slice(claims).ok()?;
    match &claims[claim] {
        Value::Number(number) => number.as_i64(),
        Value::String(digits) => digits.parse().ok(),
        _ => None,
    }
}
