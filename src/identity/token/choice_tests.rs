//! What a token of an issuer costs before and while its signature is checked, and which keys it is tried against.

use super::*;
use crate::identity::token::MAX_KEYS_TRIED;

/// What is left to do for a token when all that needs no signature has been done.
fn begin(issuers: &[IssuerSettings], token: &str) -> Result<Step, TokenError> {
    ring(issuers).begin(token, Kind::Access, NOW)
}

/// An issuer with these keys.
fn with_keys(keys: &[Value]) -> IssuerSettings {
    let set = KeySet::from_json(json!({"keys": keys}).to_string().as_bytes()).unwrap();
    assert_eq!(set.left_out, [""; 0]);
    IssuerSettings { keys: KeySource::Fixed(set.keys), ..acme() }
}

#[test]
fn claims_that_are_wrong_cost_no_signature() {
    let forged = |changes: Value| {
        let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let header = json!({"alg": "RS256"});
        format!("{}.{}.{}", part(&header), part(&with(&changes)), URL_SAFE_NO_PAD.encode([1; 256]))
    };
    let Ok(Step::Check(check)) = begin(&[acme()], &forged(json!({}))) else { panic!("a signature to check") };
    assert_eq!(check.run().map(drop), Err(TokenError::Signature));
    let table = [
        (json!({"iss": "another"}), TokenError::Issuer),
        (json!({"aud": "another"}), TokenError::Audience),
        (json!({"exp": NOW_S}), TokenError::Expired),
        (json!({"nbf": NOW_S + 1}), TokenError::Immature),
        (json!({"typ": "ID"}), TokenError::Kind),
        (json!({"uid": null}), TokenError::UserId),
        (json!({"session": 5}), TokenError::SessionId),
    ];
    for (changes, error) in table {
        match begin(&[acme()], &forged(changes.clone())) {
            Err(refusal) => assert_eq!(refusal, error, "{changes}"),
            Ok(step) => panic!("{changes}: {step:?}"),
        }
    }
}

#[test]
fn a_token_is_tried_against_the_key_that_it_names_and_else_against_few() {
    let (unnamed, named) = (json!({"kid": null}), |name: &str| json!({"kid": name}));
    let many = |pair: &Pair, more: &Value| vec![pair.jwk(more); 60];
    let tried = |issuer: &IssuerSettings, kid: &Value| {
        let header = json!({"alg": "ES256", "kid": kid});
        let token = signed_by(&ED25519.signing(), Algorithm::EdDSA, &header, &good());
        match begin(std::slice::from_ref(issuer), &token) {
            Ok(Step::Check(check)) => check.keys(),
            Err(TokenError::Signature) => 0,
            other => panic!("{other:?}"),
        }
    };
    let nameless = with_keys(&many(&P256, &unnamed));
    assert_eq!(tried(&nameless, &Value::Null), MAX_KEYS_TRIED);
    assert_eq!(tried(&nameless, &json!("any")), MAX_KEYS_TRIED, "each could be meant");
    let mut keys = many(&P256, &unnamed);
    keys.extend([P256.jwk(&named("right")), P384.jwk(&named("right")), P256.jwk(&named("wrong"))]);
    let mixed = with_keys(&keys);
    assert_eq!(tried(&mixed, &json!("right")), 1, "that of its name, for its algorithm");
    assert_eq!(tried(&mixed, &json!("another")), MAX_KEYS_TRIED, "those without a name");
    let elsewhere = with_keys(&many(&P384, &unnamed));
    assert_eq!(tried(&elsewhere, &Value::Null), 0, "none is for its algorithm");
}

#[test]
fn a_token_without_a_key_id_is_taken_where_its_key_is_among_those_that_are_tried() {
    // The base point of the curve: a key that signed nothing.
    let base = URL_SAFE_NO_PAD.encode([&[0x58; 1][..], &[0x66; 31]].concat());
    let other = json!({"kty": "OKP", "crv": "Ed25519", "x": base});
    let right = ED25519.jwk(&json!({}));
    let unnamed = signed(&ED25519, Algorithm::EdDSA, &json!({"alg": "EdDSA"}));
    for (before, outcome) in [(3, Ok(ada())), (4, Err(TokenError::Unnamed))] {
        let mut keys = vec![other.clone(); before];
        keys.push(right.clone());
        assert_eq!(ring(&[with_keys(&keys)]).verify(&unnamed, Kind::Access, NOW), outcome, "{before}");
    }
}

#[test]
fn a_verified_token_is_known_again_until_the_keys_change_and_not_when_they_are_fetched_anew() {
    let ring = ring(&[acme()]);
    let token = token(&good());
    let is_known = || matches!(ring.begin(&token, Kind::Access, NOW), Ok(Step::Done(..)));
    assert!(!is_known());
    let Ok(Step::Check(check)) = ring.begin(&token, Kind::Access, NOW) else {
        panic!("a signature to check")
    };
    let until = Millis((NOW_S + 60) * 1000);
    assert_eq!(check.run().map(|signed| ring.keep(signed)), Ok((ada(), until)));
    assert!(is_known());
    let issuer = &ring.issuers()[0];
    issuer.replace_keys(issuer.keys().to_vec());
    assert!(is_known(), "the same keys");
    issuer.replace_keys(issuer.keys()[..4].to_vec());
    assert!(!is_known(), "the one that signed is gone");
    assert_eq!(ring.verify(&token, Kind::Access, NOW), Err(TokenError::Signature));
}

#[test]
fn an_issuer_may_share_a_secret_and_is_read_by_its_own_claims_all_the_same() {
    const SHARED: &str = "a secret that acme shares with this service";
    let shared = IssuerSettings {
        keys: KeySource::Shared(vec!["an older one, which is long enough too".into(), SHARED.into()]),
        algorithms: vec![Algorithm::HS384, Algorithm::HS512],
        ..acme()
    };
    let ring = ring(&[shared, acme()]);
    let token = |secret: &str, algorithm: Algorithm, claims: &Value| {
        let header = json!({"alg": format!("{algorithm:?}"), "typ": "JWT"});
        signed_by(&EncodingKey::from_secret(secret.as_bytes()), algorithm, &header, claims)
    };
    let verify = |token: &str, kind: Kind| ring.verify(token, kind, NOW);
    for algorithm in [Algorithm::HS384, Algorithm::HS512] {
        assert_eq!(verify(&token(SHARED, algorithm, &good()), Kind::Access), Ok(ada()), "{algorithm:?}");
    }
    let table = [
        (token(SHARED, Algorithm::HS256, &good()), TokenError::Signature),
        (token("another secret of thirty-two bytes", Algorithm::HS512, &good()), TokenError::Signature),
        (token(RSA.pem, Algorithm::HS512, &good()), TokenError::Signature),
        (token(SHARED, Algorithm::HS512, &with(&json!({"iss": "globex"}))), TokenError::Issuer),
        (token(SHARED, Algorithm::HS512, &with(&json!({"aud": "others"}))), TokenError::Audience),
        (token(SHARED, Algorithm::HS512, &with(&json!({"uid": null, "user_id": 7}))), TokenError::UserId),
        (token(SHARED, Algorithm::HS512, &with(&json!({"typ": "refresh"}))), TokenError::Kind),
    ];
    for (refused, error) in table {
        assert_eq!(verify(&refused, Kind::Access), Err(error), "{refused}");
    }
    // Neither a key of the other kind, nor a refresh token, nor what our own secret signs by its names.
    assert_eq!(verify(&token(SHARED, Algorithm::HS512, &good()), Kind::Refresh), Err(TokenError::Elsewhere));
    assert_eq!(verify(&token(SECRET, Algorithm::HS256, &good()), Kind::Access), Err(TokenError::Claims));
    // Two issuers that share one secret are told apart by their claims.
    let of = |iss: &str| IssuerSettings {
        keys: KeySource::Shared(vec![SHARED.into()]),
        algorithms: vec![Algorithm::HS512],
        iss: Some(iss.into()),
        ..acme()
    };
    let two = super::ring(&[of("one"), of("two")]);
    for (iss, outcome) in [("one", Ok(ada())), ("two", Ok(ada())), ("three", Err(TokenError::Issuer))] {
        let token = token(SHARED, Algorithm::HS512, &with(&json!({"iss": iss})));
        assert_eq!(two.verify(&token, Kind::Access, NOW), outcome, "{iss}");
    }
    let own = ring.mint(Kind::Access, 7, &SessionId::parse("s1").unwrap(), "j", NOW, 60_000).unwrap();
    assert_eq!(verify(&own, Kind::Access), Ok(ada()));
}
