//! Tables of good and forged tokens that are signed with a shared secret.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::identity::token::MAX_LEN;

const SECRET: &str = "a secret of more than thirty-two bytes!";
const NOW_S: i64 = 1_768_473_000;
const NOW: Millis = Millis(NOW_S * 1000 + 123);

fn ring() -> Keyring {
    Keyring::new(SECRET, &["the secret of an older house, long enough".to_owned(), String::new()])
}

fn good() -> Value {
    json!({"user_id": 7, "sid": "s1", "token_type": "access", "exp": NOW_S + 60})
}

/// The good claims with some of them replaced; `null` takes one away.
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

fn signed(header: &Header, secret: &str, claims: &Value) -> String {
    encode(header, claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

fn token(claims: &Value) -> String {
    signed(&Header::new(Algorithm::HS256), SECRET, claims)
}

fn verify(token: &str) -> Result<SessionKey, TokenError> {
    ring().verify(token, Kind::Access, NOW)
}

/// A token with a header of our own writing, rightly signed all the same.
fn with_header(header: &str) -> String {
    let message =
        format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(good().to_string()));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

#[test]
fn a_minted_token_verifies_as_its_own_kind_only_and_until_its_end() {
    let (ring, sid) = (ring(), SessionId::parse("abc").unwrap());
    let token = ring.mint(Kind::Refresh, 7, &sid, "j", NOW, 60_000).unwrap();
    assert!(token.starts_with(PLAIN_HEADERS[0]), "our own header takes the short way");
    let who = SessionKey { user: 7, sid: Some(sid) };
    assert_eq!(ring.verify(&token, Kind::Refresh, NOW), Ok(who.clone()));
    assert_eq!(ring.verify(&token, Kind::Refresh, NOW.plus(59_000)), Ok(who));
    assert_eq!(ring.verify(&token, Kind::Refresh, NOW.plus(60_000)), Err(TokenError::Expired));
    assert_eq!(ring.verify(&token, Kind::Access, NOW), Err(TokenError::Kind));
}

#[test]
fn tokens_minted_elsewhere_are_taken() {
    let bare = SessionKey { user: 7, sid: None };
    let named = SessionKey { user: 7, sid: SessionId::parse("s1") };
    let table = [
        (with(&json!({"sid": null})), &bare),
        (with(&json!({"user_id": "7"})), &named),
        (with(&json!({"user_id": "007"})), &named),
        (with(&json!({"sub": 5, "aud": "elsewhere", "iss": "them", "iat": "never"})), &named),
        (with(&json!({"exp": 1.0e12})), &named),
        (with(&json!({"exp": u64::MAX})), &named),
        (with(&json!({"nbf": NOW_S})), &named),
    ];
    for (claims, who) in table {
        assert_eq!(verify(&token(&claims)).as_ref(), Ok(who), "{claims}");
    }
    let older = signed(&Header::new(Algorithm::HS256), "the secret of an older house, long enough", &good());
    assert_eq!(verify(&older).as_ref(), Ok(&named));
    assert_eq!(verify(&with_header(r#"{"alg":"HS256","kid":"9"}"#)).as_ref(), Ok(&named));
    assert_eq!(verify(&with_header(r#"{"alg":"HS256","typ":"JWT"}"#)).as_ref(), Ok(&named));
}

#[test]
fn claims_that_are_not_ours_are_refused() {
    let table = [
        (json!({"exp": NOW_S}), TokenError::Expired),
        (json!({"exp": -1}), TokenError::Expired),
        (json!({"exp": null}), TokenError::Claims),
        (json!({"exp": "tomorrow"}), TokenError::Claims),
        (json!({"nbf": NOW_S + 1}), TokenError::Immature),
        (json!({"token_type": "refresh"}), TokenError::Kind),
        (json!({"token_type": null}), TokenError::Claims),
        (json!({"user_id": null}), TokenError::UserId),
        (json!({"user_id": 0}), TokenError::UserId),
        (json!({"user_id": -7}), TokenError::UserId),
        (json!({"user_id": 7.0}), TokenError::UserId),
        (json!({"user_id": u64::MAX}), TokenError::UserId),
        (json!({"user_id": "9223372036854775808"}), TokenError::UserId),
        (json!({"user_id": "+7"}), TokenError::UserId),
        (json!({"user_id": ""}), TokenError::UserId),
        (json!({"user_id": "0"}), TokenError::UserId),
        (json!({"user_id": [7]}), TokenError::UserId),
        (json!({"sid": ""}), TokenError::SessionId),
        (json!({"sid": "a b"}), TokenError::SessionId),
        (json!({"sid": "é"}), TokenError::SessionId),
        (json!({"sid": 5}), TokenError::SessionId),
        (json!({"sid": "x".repeat(129)}), TokenError::SessionId),
    ];
    for (changes, error) in table {
        assert_eq!(verify(&token(&with(&changes))), Err(error), "{changes}");
    }
    for claims in [json!([]), json!("text"), json!(null), json!(5)] {
        assert_eq!(verify(&token(&claims)), Err(TokenError::Claims), "{claims}");
    }
}

#[test]
fn forged_tokens_are_refused() {
    let real = token(&good());
    let (message, signature) = real.rsplit_once('.').unwrap();
    let (header, claims) = message.split_once('.').unwrap();
    let others = URL_SAFE_NO_PAD.encode(with(&json!({"user_id": 1})).to_string());
    let table = [
        (String::new(), TokenError::Malformed),
        ("..".into(), TokenError::Malformed),
        (message.to_owned(), TokenError::Malformed),
        (format!("{real}.x"), TokenError::Signature),
        (format!("{message}."), TokenError::Signature),
        (real[..real.len() - 1].to_owned(), TokenError::Signature),
        (format!("{real}="), TokenError::Signature),
        (format!("{header}.{others}.{signature}"), TokenError::Signature),
        (
            signed(&Header::new(Algorithm::HS256), "another secret of thirty-two bytes", &good()),
            TokenError::Signature,
        ),
        (signed(&Header::new(Algorithm::HS256), "", &good()), TokenError::Signature),
        (signed(&Header::new(Algorithm::HS512), SECRET, &good()), TokenError::Signature),
        (format!("{}.{claims}.", URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#)), TokenError::Algorithm),
        (with_header(r#"{"alg":"none"}"#), TokenError::Algorithm),
        (with_header(r#"{"alg":"hs256"}"#), TokenError::Algorithm),
        (with_header(r#"{"alg":"HS256","crit":["exp"]}"#), TokenError::Algorithm),
        (with_header("{}"), TokenError::Malformed),
        (with_header("[]"), TokenError::Malformed),
        ("x".repeat(MAX_LEN + 1), TokenError::Malformed),
    ];
    for (forged, error) in table {
        assert_eq!(verify(&forged), Err(error), "{forged}");
    }
}

#[test]
fn claims_given_twice_are_refused() {
    let twice = format!(r#"{{"user_id":7,"user_id":1,"token_type":"access","exp":{}}}"#, NOW_S + 60);
    let message = format!("{}.{}", PLAIN_HEADERS[0], URL_SAFE_NO_PAD.encode(twice));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    assert_eq!(verify(&format!("{message}.{signature}")), Err(TokenError::Claims));
}

#[test]
fn further_secrets_verify_hs256_hs384_and_hs512_and_our_own_hs256_alone() {
    let who = SessionKey { user: 7, sid: SessionId::parse("s1") };
    let verify = |algorithm, secret: &str| verify(&signed(&Header::new(algorithm), secret, &good()));
    for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
        assert_eq!(
            verify(algorithm, "the secret of an older house, long enough").as_ref(),
            Ok(&who),
            "{algorithm:?}"
        );
        let own = verify(algorithm, SECRET);
        assert_eq!(own.is_ok(), algorithm == Algorithm::HS256, "{algorithm:?}");
        assert_eq!(
            verify(algorithm, "another secret of thirty-two bytes"),
            Err(TokenError::Signature),
            "{algorithm:?}"
        );
    }
}

#[test]
fn leeway_lets_a_token_begin_sooner_and_never_end_later() {
    let leeway = Leeway { before: std::time::Duration::from_secs(5), after: std::time::Duration::ZERO };
    let patient = ring().with_leeway(leeway);
    let verify = |changes: Value| patient.verify(&token(&with(&changes)), Kind::Access, NOW).map(drop);
    assert_eq!(verify(json!({"nbf": NOW_S + 5})), Ok(()));
    assert_eq!(verify(json!({"nbf": NOW_S + 6})), Err(TokenError::Immature));
    assert_eq!(verify(json!({"nbf": null, "iat": NOW_S + 3600})), Ok(()), "iat is not looked at");
    assert_eq!(verify(json!({"exp": NOW_S})), Err(TokenError::Expired));
}

#[test]
fn a_number_that_is_no_id_is_refused_however_it_is_written() {
    let numbers = [
        "9223372036854775808",
        "18446744073709551616",
        "123456789012345678901234567890",
        "7.0",
        "7e0",
        "70e-1",
        "1e3",
        "-0",
        "-9223372036854775808",
        "true",
        "null",
        "{}",
        "[[7]]",
        "\"7.0\"",
        "\" 7\"",
        "\"7 \"",
        "\"0x7\"",
        "\"٧\"",
        "\"123456789012345678901234567890\"",
    ];
    for number in numbers {
        let claims = format!(r#"{{"user_id":{number},"token_type":"access","exp":{}}}"#, NOW_S + 60);
        assert_eq!(verify(&with_claims(&claims)), Err(TokenError::UserId), "{number}");
    }
}

/// A token with claims of our own writing, rightly signed.
fn with_claims(claims: &str) -> String {
    let message = format!("{}.{}", PLAIN_HEADERS[0], URL_SAFE_NO_PAD.encode(claims));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = crypto::sign(message.as_bytes(), &key, Algorithm::HS256).unwrap();
    format!("{message}.{signature}")
}

#[test]
fn a_ring_shows_no_secret() {
    let shown = format!("{:?}", ring());
    assert_eq!(shown, "Keyring { further: 1, issuers: 0, .. }");
}

proptest! {
    /// Also above 2^53, where a floating-point number would name a neighbour.
    #[test]
    fn an_id_of_64_bits_is_read_to_the_last_digit(
        id in prop_oneof![1..=i64::MAX, (1i64 << 53)..(1 << 53) + 100, (i64::MAX - 100)..=i64::MAX],
        is_text in any::<bool>(),
    ) {
        let written = if is_text { format!("\"{id}\"") } else { id.to_string() };
        let claims = format!(r#"{{"user_id":{written},"token_type":"access","exp":{}}}"#, NOW_S + 60);
        prop_assert_eq!(verify(&with_claims(&claims)).map(|who| who.user), Ok(id));
    }

    /// Whatever a token from elsewhere says, only a short name without spaces or control characters becomes part of a key.
    #[test]
    fn a_session_id_is_taken_as_it_is_or_refused(sid in prop_oneof![".*", "[!-~]{1,130}", "[\x00-\x7f]{0,20}", "\\PC{120,140}"]) {
        let is_name = (1..=128).contains(&sid.len()) && sid.bytes().all(|byte| byte.is_ascii_graphic());
        let taken = verify(&token(&with(&json!({"sid": sid}))));
        let expected = SessionKey { user: 7, sid: SessionId::parse(&sid) };
        prop_assert_eq!(taken, if is_name { Ok(expected) } else { Err(TokenError::SessionId) });
    }

    #[test]
    fn a_random_string_never_verifies(text in ".*") {
        prop_assert!(verify(&text).is_err());
    }

    #[test]
    fn random_parts_never_verify(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 1..5)) {
        let parts: Vec<_> = parts.iter().map(|part| URL_SAFE_NO_PAD.encode(part)).collect();
        prop_assert!(verify(&parts.join(".")).is_err());
        let behind_a_header = [PLAIN_HEADERS[1], &parts.join(".")].join(".");
        prop_assert!(verify(&behind_a_header).is_err());
    }

    #[test]
    fn a_token_with_one_character_changed_never_verifies(at in 0usize..200, to in "[A-Za-z0-9_.=-]") {
        let real = token(&good());
        let at = at % real.len();
        let mut forged = real.clone();
        forged.replace_range(at..=at, &to);
        prop_assert!(forged == real || verify(&forged).is_err());
    }
}
