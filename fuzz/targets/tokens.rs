//! The token parser: nothing that the secret has not signed is a token, and whatever it has signed is read without a panic.
#![no_main]

use std::sync::LazyLock;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use libfuzzer_sys::fuzz_target;
use presenced::identity::token::{Keyring, Kind};
use presenced::model::Millis;

const SECRET: &str = "a secret of more than thirty-two bytes!";
const NOW: Millis = Millis(1_768_473_000_123);

static RING: LazyLock<Keyring> = LazyLock::new(|| Keyring::new(SECRET, &[]));
static KEY: LazyLock<EncodingKey> = LazyLock::new(|| EncodingKey::from_secret(SECRET.as_bytes()));

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        for kind in [Kind::Access, Kind::Refresh] {
            assert!(RING.verify(text, kind, NOW).is_err(), "taken, though nobody signed it: {text}");
        }
    }
    // The same bytes as the header and the claims of a token that is rightly signed.
    let Some((at, rest)) = data.split_first() else { return };
    let (header, claims) = rest.split_at((*at as usize).min(rest.len()));
    let plain = br#"{"alg":"HS256","typ":"JWT"}"#;
    for header in [header, plain.as_slice()] {
        let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        let Ok(signature) = crypto::sign(message.as_bytes(), &KEY, Algorithm::HS256) else { return };
        if let Ok((who, until)) = RING.verify_until(&format!("{message}.{signature}"), Kind::Access, NOW) {
            assert!(who.user > 0 && until.0 > NOW.0 - 1000, "{who:?} {until:?}");
        }
    }
});
