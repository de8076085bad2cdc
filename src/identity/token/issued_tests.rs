//! Tables of good and forged tokens of identity providers.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::identity::token::jwk::{ALGORITHMS, KeySet};
use crate::identity::token::test_keys::{ED25519, P256, P384, Pair, RSA};
use crate::identity::token::{KeySource, MAX_LEN};

const SECRET: &str = "a secret of more than thirty-two bytes!";
const NOW_S: i64 = 1_768_473_000;
const NOW: Millis = Millis(NOW_S * 1000 + 123);

/// A provider with one key of each kind, which looks at everything.
fn acme() -> IssuerSettings {
    let set = json!({"keys": [
        RSA.jwk(&json!({"kid": "rsa", "alg": "RS256", "use": "sig"})),
        RSA.jwk(&json!({"kid": "any-rsa"})),
        P256.jwk(&json!({"kid": "p256"})),
        P384.jwk(&json!({"kid": "p384"})),
        ED25519.jwk(&json!({"kid": "ed"})),
    ]});
    let set = KeySet::from_json(set.to_string().as_bytes()).unwrap();
    assert_eq!(set.left_out, [""; 0]);
    IssuerSettings {
        name: "acme".into(),
        keys: KeySource::Fixed(set.keys),
        iss: Some("https://acme.example".into()),
        audience: vec!["presence".into(), "presence-mobile".into()],
        user_claim: "uid".into(),
        session_claim: Some("session".into()),
        access_mark: Some(("typ".into(), "Bearer".into())),
        algorithms: ALGORITHMS.to_vec(),
        leeway: Leeway::NONE,
    }
}

fn ring(issuers: &[IssuerSettings]) -> Keyring {
    Keyring::new(SECRET, &[]).with_issuers(issuers)
}

fn good() -> Value {
    json!({
        "iss": "https://acme.example", "aud": "presence", "uid": "7", "session": "s1", "typ": "Bearer", "exp": NOW_S + 60,
    })
}

fn with(changes: &Value) -> Value {
    let mut claims = good();
    for (name, value) in changes.as_object().unwrap() {
        if value.is_null() {
            claims.as_object_mut().unwrap().remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    claims
}

/// A token with this header, signed by any key.
fn signed_by(key: &EncodingKey, algorithm: Algorithm, header: &Value, claims: &Value) -> String {
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let signature = crypto::sign(message.as_bytes(), key, algorithm).unwrap();
    format!("{message}.{signature}")
}

fn signed(pair: &Pair, algorithm: Algorithm, header: &Value) -> String {
    signed_by(&pair.signing(), algorithm, header, &good())
}

fn token(claims: &Value) -> String {
    signed_by(&ED25519.signing(), Algorithm::EdDSA, &json!({"alg": "EdDSA", "kid": "ed"}), claims)
}

fn verify(token: &str) -> Result<SessionKey, TokenError> {
    ring(&[acme()]).verify(token, Kind::Access, NOW)
}

fn ada() -> SessionKey {
    SessionKey { user: 7, sid: SessionId::parse("s1") }
}

#[test]
fn each_key_verifies_by_its_own_algorithms() {
    let table = [
        (&RSA, Algorithm::RS256, json!({"alg": "RS256", "kid": "rsa"})),
        (&RSA, Algorithm::RS384, json!({"alg": "RS384", "kid": "any-rsa"})),
        (&RSA, Algorithm::RS512, json!({"alg": "RS512", "kid": "any-rsa"})),
        (&RSA, Algorithm::PS256, json!({"alg": "PS256", "kid": "any-rsa"})),
        (&RSA, Algorithm::PS384, json!({"alg": "PS384", "kid": "any-rsa"})),
        (&RSA, Algorithm::PS512, json!({"alg": "PS512", "kid": "any-rsa"})),
        (&P256, Algorithm::ES256, json!({"alg": "ES256", "kid": "p256"})),
        (&P384, Algorithm::ES384, json!({"alg": "ES384", "kid": "p384"})),
        (&ED25519, Algorithm::EdDSA, json!({"alg": "EdDSA", "kid": "ed"})),
        (&ED25519, Algorithm::EdDSA, json!({"alg": "Ed25519", "kid": "ed"})),
        (&P256, Algorithm::ES256, json!({"alg": "ES256"})),
        (&RSA, Algorithm::RS256, json!({"typ": "at+jwt", "alg": "RS256"})),
    ];
    for (pair, algorithm, header) in table {
        assert_eq!(verify(&signed(pair, algorithm, &header)), Ok(ada()), "{header}");
    }
}

#[test]
fn forged_tokens_are_refused_whatever_their_header_says() {
    let secret = |bytes: &str| EncodingKey::from_secret(bytes.as_bytes());
    let hs256 = |bytes: &str, kid: &str| {
        signed_by(&secret(bytes), Algorithm::HS256, &json!({"alg": "HS256", "kid": kid}), &good())
    };
    let real = token(&good());
    let (message, signature) = real.rsplit_once('.').unwrap();
    let (header, claims) = message.split_once('.').unwrap();
    let others = URL_SAFE_NO_PAD.encode(with(&json!({"uid": 1})).to_string());
    let none = |alg: &str| {
        let header = json!({"alg": alg, "kid": "ed"}).to_string();
        format!("{}.{claims}.", URL_SAFE_NO_PAD.encode(header))
    };
    let own_key = json!({"alg": "ES256", "kid": "ed", "jwk": P256.jwk(&json!({})), "jku": "http://127.0.0.1:1/keys", "x5u": "http://127.0.0.1:1/x"});
    let table = [
        // A public key taken for a secret.
        (hs256(RSA.pem, "rsa"), TokenError::Signature),
        (hs256(RSA.pem.trim_end(), "rsa"), TokenError::Signature),
        (hs256(P256.pem, "p256"), TokenError::Signature),
        (hs256(ED25519.pem, "ed"), TokenError::Signature),
        (hs256(RSA.jwk(&json!({}))["n"].as_str().unwrap(), "rsa"), TokenError::Signature),
        (hs256("", "rsa"), TokenError::Signature),
        (
            signed_by(&secret(RSA.pem), Algorithm::HS256, &json!({"alg": "RS256", "kid": "rsa"}), &good()),
            TokenError::Signature,
        ),
        // No signature at all.
        (none("none"), TokenError::Algorithm),
        (none("None"), TokenError::Algorithm),
        (none("EdDSA"), TokenError::Signature),
        (none("RS256"), TokenError::Signature),
        (none(""), TokenError::Algorithm),
        (none("HS512"), TokenError::Signature),
        (none("ES256K"), TokenError::Algorithm),
        // Another's key, or another key's name.
        (signed(&P256, Algorithm::ES256, &json!({"alg": "RS256", "kid": "rsa"})), TokenError::Signature),
        (signed(&P256, Algorithm::ES256, &json!({"alg": "ES256", "kid": "p384"})), TokenError::Signature),
        (signed(&P256, Algorithm::ES256, &json!({"alg": "ES256", "kid": "rsa"})), TokenError::Signature),
        (signed(&P384, Algorithm::ES384, &json!({"alg": "ES256", "kid": "p256"})), TokenError::Signature),
        (signed(&ED25519, Algorithm::EdDSA, &json!({"alg": "EdDSA", "kid": "p256"})), TokenError::Signature),
        (
            signed(&ED25519, Algorithm::EdDSA, &json!({"alg": "EdDSA", "kid": "nobody's"})),
            TokenError::Signature,
        ),
        // The key is pinned to RS256.
        (signed(&RSA, Algorithm::PS256, &json!({"alg": "PS256", "kid": "rsa"})), TokenError::Signature),
        (signed(&RSA, Algorithm::RS512, &json!({"alg": "RS512", "kid": "rsa"})), TokenError::Signature),
        // A key that the token brings along.
        (signed(&P256, Algorithm::ES256, &own_key), TokenError::Signature),
        // What is not understood, or is no header.
        (
            signed(
                &ED25519,
                Algorithm::EdDSA,
                &json!({"alg": "EdDSA", "kid": "ed", "crit": ["b64"], "b64": false}),
            ),
            TokenError::Algorithm,
        ),
        (signed(&ED25519, Algorithm::EdDSA, &json!({"alg": "EdDSA", "kid": 5})), TokenError::Malformed),
        (signed(&ED25519, Algorithm::EdDSA, &json!({"alg": ["EdDSA"]})), TokenError::Malformed),
        (signed(&ED25519, Algorithm::EdDSA, &json!({"kid": "ed"})), TokenError::Malformed),
        // Altered.
        (format!("{header}.{others}.{signature}"), TokenError::Signature),
        (format!("{message}."), TokenError::Signature),
        (real[..real.len() - 1].to_owned(), TokenError::Signature),
        (format!("{real}="), TokenError::Signature),
        (format!("{real}.x"), TokenError::Malformed),
        (token(&with(&json!({"padding": "x".repeat(MAX_LEN)}))), TokenError::Malformed),
    ];
    for (forged, error) in table {
        assert_eq!(verify(&forged), Err(error), "{forged}");
    }
}

#[test]
fn an_algorithm_that_is_not_allowed_is_refused_though_the_key_could() {
    let picky = IssuerSettings { algorithms: vec![Algorithm::ES256], ..acme() };
    let verify = |token: &str| ring(std::slice::from_ref(&picky)).verify(token, Kind::Access, NOW);
    assert_eq!(verify(&token(&good())), Err(TokenError::Algorithm));
    let es256 = signed(&P256, Algorithm::ES256, &json!({"alg": "ES256", "kid": "p256"}));
    assert_eq!(verify(&es256), Ok(ada()));
}

#[test]
fn claims_must_be_those_that_are_set() {
    let bare = SessionKey { user: 7, sid: None };
    let good = [
        (json!({"uid": 7}), ada()),
        (json!({"session": null}), bare.clone()),
        (json!({"aud": ["others", "presence-mobile"]}), ada()),
        (json!({"nbf": NOW_S, "iat": "never", "user_id": 1, "sub": "ada", "sid": 5, "token_type": 1}), ada()),
    ];
    for (changes, who) in good {
        assert_eq!(verify(&token(&with(&changes))), Ok(who), "{changes}");
    }
    let mut null_session = with(&json!({}));
    null_session["session"] = Value::Null;
    assert_eq!(verify(&token(&null_session)), Ok(bare));
    let bad = [
        (json!({"iss": null}), TokenError::Issuer),
        (json!({"iss": "https://acme.example/"}), TokenError::Issuer),
        (json!({"iss": ["https://acme.example"]}), TokenError::Claims),
        (json!({"aud": null}), TokenError::Audience),
        (json!({"aud": "others"}), TokenError::Audience),
        (json!({"aud": []}), TokenError::Audience),
        (json!({"aud": "presence,presence-mobile"}), TokenError::Audience),
        (json!({"aud": ["others", 5]}), TokenError::Claims),
        (json!({"aud": {"presence": true}}), TokenError::Claims),
        (json!({"exp": NOW_S}), TokenError::Expired),
        (json!({"exp": null}), TokenError::Claims),
        (json!({"exp": "tomorrow"}), TokenError::Claims),
        (json!({"nbf": NOW_S + 1}), TokenError::Immature),
        (json!({"typ": "ID"}), TokenError::Kind),
        (json!({"typ": null}), TokenError::Claims),
        (json!({"uid": null, "user_id": 7, "sub": "7"}), TokenError::UserId),
        (json!({"uid": "ada"}), TokenError::UserId),
        (json!({"uid": 0}), TokenError::UserId),
        (json!({"uid": "9223372036854775808"}), TokenError::UserId),
        (json!({"session": ""}), TokenError::SessionId),
        (json!({"session": 5}), TokenError::SessionId),
        (json!({"session": "x".repeat(129)}), TokenError::SessionId),
    ];
    for (changes, error) in bad {
        assert_eq!(verify(&token(&with(&changes))), Err(error), "{changes}");
    }
    for claims in [json!([]), json!("text"), json!(null), json!(5), json!({})] {
        assert!(verify(&token(&claims)).is_err(), "{claims}");
    }
}

#[test]
fn a_claim_given_twice_is_refused() {
    for twice in
        [r#""uid":7,"uid":1"#, r#""uid":7,"iss":"https://acme.example""#, r#""uid":7,"aud":"presence""#]
    {
        let claims = format!(
            r#"{{"iss":"https://acme.example","aud":"presence","typ":"Bearer","exp":{},{twice}}}"#,
            NOW_S + 60
        );
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"EdDSA"}"#);
        let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
        let signature = crypto::sign(message.as_bytes(), &ED25519.signing(), Algorithm::EdDSA).unwrap();
        assert_eq!(verify(&format!("{message}.{signature}")), Err(TokenError::Claims), "{twice}");
    }
}

#[test]
fn leeway_stretches_the_time_of_an_issuers_tokens_and_no_others() {
    let patient = ring(&[IssuerSettings { leeway: Leeway::both(Duration::from_secs(30)), ..acme() }]);
    let verify = |changes: Value| patient.verify_until(&token(&with(&changes)), Kind::Access, NOW);
    assert_eq!(verify(json!({"exp": NOW_S - 29})), Ok((ada(), Millis((NOW_S + 1) * 1000))));
    assert_eq!(verify(json!({"exp": NOW_S - 30})), Err(TokenError::Expired));
    assert!(verify(json!({"nbf": NOW_S + 30})).is_ok());
    assert_eq!(verify(json!({"nbf": NOW_S + 31})), Err(TokenError::Immature));
    let own = patient.mint(Kind::Access, 7, &SessionId::parse("s").unwrap(), "j", NOW, 1000).unwrap();
    assert_eq!(patient.verify(&own, Kind::Access, NOW.plus(1000)), Err(TokenError::Expired));
}

#[test]
fn a_provider_without_a_mark_or_sessions_is_read_without() {
    let plain = IssuerSettings {
        iss: None,
        audience: Vec::new(),
        user_claim: "sub".into(),
        session_claim: None,
        access_mark: None,
        ..acme()
    };
    let plain = ring(&[plain]);
    let verify = |claims: Value| plain.verify(&token(&claims), Kind::Access, NOW);
    let who = SessionKey { user: 7, sid: None };
    assert_eq!(verify(json!({"sub": "7", "exp": NOW_S + 1})), Ok(who.clone()));
    assert_eq!(verify(with(&json!({"sub": 7, "session": 5, "aud": "x", "iss": "y"}))), Ok(who));
}

#[test]
fn issuers_side_by_side_do_not_speak_for_one_another() {
    let of = |name: &str, pair: &Pair| {
        let set = json!({"keys": [pair.jwk(&json!({"kid": "1"}))]}).to_string();
        let keys = KeySource::Fixed(KeySet::from_json(set.as_bytes()).unwrap().keys);
        IssuerSettings { name: name.into(), keys, iss: Some(name.into()), ..acme() }
    };
    let other_audience = IssuerSettings { audience: vec!["else".into()], ..of("one", &P256) };
    let both = ring(&[other_audience, of("one", &P256), of("two", &ED25519)]);
    let token = |pair: &Pair, algorithm: Algorithm, iss: &str| {
        let header = json!({"alg": format!("{algorithm:?}"), "kid": "1"});
        let claims = with(&json!({"iss": iss}));
        both.verify(&signed_by(&pair.signing(), algorithm, &header, &claims), Kind::Access, NOW)
    };
    assert_eq!(token(&P256, Algorithm::ES256, "one"), Ok(ada()));
    assert_eq!(token(&ED25519, Algorithm::EdDSA, "two"), Ok(ada()));
    assert_eq!(token(&P256, Algorithm::ES256, "two"), Err(TokenError::Signature));
    assert_eq!(token(&ED25519, Algorithm::EdDSA, "one"), Err(TokenError::Signature));
    assert_eq!(token(&P256, Algorithm::ES256, "three"), Err(TokenError::Issuer));
    let sid = SessionId::parse("s").unwrap();
    let own = both.mint(Kind::Access, 7, &sid, "j", NOW, 60_000).unwrap();
    assert!(both.verify(&own, Kind::Access, NOW).is_ok());
}

#[test]
fn an_issuers_token_is_never_a_refresh_token() {
    let loose = IssuerSettings { access_mark: None, ..acme() };
    for issuer in [acme(), loose] {
        for typ in ["Bearer", "refresh", "Refresh"] {
            let token =
                token(&with(&json!({"typ": typ, "token_type": "refresh", "user_id": 7, "sid": "s1"})));
            let refused = ring(std::slice::from_ref(&issuer)).verify(&token, Kind::Refresh, NOW);
            assert_eq!(refused, Err(TokenError::Elsewhere), "{typ}");
        }
    }
}

#[test]
fn without_issuers_their_algorithms_are_none_of_ours() {
    assert_eq!(ring(&[]).verify(&token(&good()), Kind::Access, NOW), Err(TokenError::Algorithm));
}

proptest! {
    #[test]
    fn random_parts_behind_a_header_never_verify(
        alg in "RS256|PS256|ES256|ES384|EdDSA|HS256|none",
        parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..4),
    ) {
        let header = URL_SAFE_NO_PAD.encode(json!({"alg": alg}).to_string());
        let parts: Vec<_> = parts.iter().map(|part| URL_SAFE_NO_PAD.encode(part)).collect();
        let forged = [header, parts.join(".")].join(".");
        prop_assert!(verify(&forged).is_err());
    }

    #[test]
    fn a_token_with_one_character_changed_never_verifies(at in 0usize..400, to in "[A-Za-z0-9_.=-]") {
        let real = token(&good());
        let at = at % real.len();
        let mut forged = real.clone();
        forged.replace_range(at..=at, &to);
        prop_assert!(forged == real || verify(&forged).is_err());
    }
}

#[path = "choice_tests.rs"]
mod choice;
