//! Which keys of a set are taken, and for what.

use serde_json::{Value, json};

use super::*;
use crate::identity::token::test_keys::{ED25519, P256, P384, RSA};

fn read(keys: &[Value]) -> KeySet {
    KeySet::from_json(json!({"keys": keys}).to_string().as_bytes()).unwrap()
}

fn url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[test]
fn a_key_is_for_the_algorithms_of_its_kind_or_for_the_one_that_it_names() {
    let rsa = &ALGORITHMS[..6];
    let table: [(Value, &[Algorithm]); 8] = [
        (RSA.jwk(&json!({})), rsa),
        (
            RSA.jwk(&json!({"alg": "PS256", "use": "sig", "key_ops": ["verify"], "x5c": ["…"], "odd": 5})),
            &[Algorithm::PS256],
        ),
        (P256.jwk(&json!({})), &[Algorithm::ES256]),
        (P384.jwk(&json!({"alg": "ES384"})), &[Algorithm::ES384]),
        (ED25519.jwk(&json!({"alg": "EdDSA"})), &[Algorithm::EdDSA]),
        (ED25519.jwk(&json!({"alg": "Ed25519"})), &[Algorithm::EdDSA]),
        (RSA.jwk(&json!({"kid": "k"})), rsa),
        (RSA.jwk(&json!({"n": format!("AAAA{}", RSA.jwk(&json!({}))["n"].as_str().unwrap())})), rsa),
    ];
    for (jwk, algorithms) in table {
        let set = read(std::slice::from_ref(&jwk));
        assert_eq!(set.left_out, [""; 0], "{jwk}");
        assert_eq!(set.keys[0].algorithms, algorithms, "{jwk}");
        assert_eq!(set.keys[0].kid(), jwk["kid"].as_str());
    }
}

#[test]
fn a_key_that_cannot_be_used_safely_is_left_out_and_the_others_are_not() {
    let modulus = |bytes: usize, first: u8| {
        let mut modulus = vec![first; bytes];
        *modulus.last_mut().unwrap() = 1;
        url(&modulus)
    };
    let bad = [
        json!({"kty": "oct", "k": url(b"a shared secret that came over the network"), "alg": "HS256"}),
        RSA.jwk(&json!({"kty": "oct"})),
        RSA.jwk(&json!({"use": "enc"})),
        RSA.jwk(&json!({"key_ops": ["encrypt"]})),
        RSA.jwk(&json!({"key_ops": []})),
        RSA.jwk(&json!({"d": "AQAB"})),
        RSA.jwk(&json!({"alg": "HS256"})),
        RSA.jwk(&json!({"alg": "none"})),
        RSA.jwk(&json!({"alg": "ES256"})),
        RSA.jwk(&json!({"alg": "RSA-OAEP"})),
        RSA.jwk(&json!({"alg": 5})),
        RSA.jwk(&json!({"kid": 5})),
        RSA.jwk(&json!({"kid": "x".repeat(257)})),
        RSA.jwk(&json!({"n": null})),
        RSA.jwk(&json!({"n": ""})),
        RSA.jwk(&json!({"n": "not base64url!"})),
        RSA.jwk(&json!({"n": modulus(128, 0xff)})),
        RSA.jwk(&json!({"n": modulus(256, 0x7f)})),
        RSA.jwk(&json!({"n": modulus(513, 0xff)})),
        RSA.jwk(&json!({"e": url(&[1])})),
        RSA.jwk(&json!({"e": url(&[2])})),
        RSA.jwk(&json!({"e": url(&[0])})),
        RSA.jwk(&json!({"e": url(&[0xff; 5])})),
        P256.jwk(&json!({"crv": "P-384"})),
        P256.jwk(&json!({"crv": "secp256k1"})),
        P256.jwk(&json!({"crv": null})),
        P256.jwk(&json!({"alg": "ES384"})),
        P256.jwk(&json!({"x": url(&[7; 32])})),
        P256.jwk(&json!({"x": url(&[7; 31])})),
        P256.jwk(&json!({"x": url(&[0; 64]), "y": ""})),
        P384.jwk(&json!({"crv": "P-521"})),
        // The library would panic at the first token.
        ED25519.jwk(&json!({"x": url(&[7; 31])})),
        ED25519.jwk(&json!({"x": ""})),
        ED25519.jwk(&json!({"x": url(&[7; 33])})),
        ED25519.jwk(&json!({"crv": "X25519"})),
        ED25519.jwk(&json!({"crv": "Ed448"})),
        json!({}),
        json!(null),
        json!("key"),
        json!([[]]),
    ];
    for key in bad {
        let set = read(&[key.clone(), P256.jwk(&json!({"kid": "good"}))]);
        assert_eq!((set.left_out.len(), set.keys.len()), (1, 1), "{key}: {set:?}");
        assert_eq!(set.keys[0].kid(), Some("good"));
    }
}

#[test]
fn what_is_no_set_of_keys_is_refused() {
    for bad in ["", "<html>", "[]", "{}", "null", r#"{"keys": {}}"#, r#"{"keys": []} x"#, "\u{0}"] {
        assert!(KeySet::from_json(bad.as_bytes()).unwrap_err().contains("no JWK set"), "{bad}");
    }
    assert!(KeySet::from_json(&b"[".repeat(100_000)).is_err(), "and no stack is overrun");
    assert!(KeySet::from_json(&[0xff, 0xfe]).is_err());
    let many = json!({"keys": vec![P256.jwk(&json!({})); MOST_KEYS + 1]}).to_string();
    assert!(KeySet::from_json(many.as_bytes()).unwrap_err().contains("64 at most"));
    assert!(read(&[]).keys.is_empty());
}

#[test]
fn a_pem_file_holds_public_keys_each_for_its_algorithms() {
    let all = [RSA.pem, P256.pem, P384.pem, ED25519.pem].join("\n");
    let keys = PublicKey::from_pem(&format!("the keys of acme\n{all}")).unwrap();
    let algorithms: Vec<_> = keys.iter().map(|key| key.algorithms.clone()).collect();
    assert_eq!(
        algorithms,
        [ALGORITHMS[..6].to_vec(), vec![Algorithm::ES256], vec![Algorithm::ES384], vec![Algorithm::EdDSA]]
    );
    for (pair, key) in [RSA, P256, P384, ED25519].iter().zip(&keys) {
        let signature = crypto::sign(b"text", &pair.signing(), key.algorithms[0]).unwrap();
        assert!(crypto::verify(&signature, b"text", &key.decoding, key.algorithms[0]).unwrap());
    }
}

#[test]
fn a_pem_file_of_anything_else_is_refused_with_what_to_do() {
    let cut = &RSA.pem[..RSA.pem.len() - 60];
    let garbled = RSA.pem.replace("MIIB", "AAAA");
    let table = [
        ("", "BEGIN PUBLIC KEY"),
        ("ssh-ed25519 AAAA", "BEGIN PUBLIC KEY"),
        ("-----BEGIN PRIVATE KEY-----\nMC4=\n-----END PRIVATE KEY-----", "openssl pkey -pubout"),
        ("-----BEGIN RSA PRIVATE KEY-----\n-----END RSA PRIVATE KEY-----", "openssl pkey -pubout"),
        ("-----BEGIN CERTIFICATE-----\nMC4=\n-----END CERTIFICATE-----", "openssl x509 -pubkey"),
        ("-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----", "no readable key"),
        ("-----BEGIN PUBLIC KEY-----\nMC4=\n-----END PUBLIC KEY-----", "no readable key"),
        (cut, "no readable key"),
        (&garbled, "no readable key"),
    ];
    for (text, why) in table {
        let error = PublicKey::from_pem(text).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
}
