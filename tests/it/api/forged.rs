//! Floods of forged tokens: what a stranger shows costs the stranger, and no heartbeat of others.

use std::time::{Duration, Instant};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{Engine, SOON, Stage, problem, text};
use crate::support::metrics::Scrape;
use crate::support::poll::eventually;
use crate::support::process::PresencedOptions;
use crate::support::provider::{Provider, key_set};
use crate::support::python::python;

/// The account `admin`, which every service has.
const ADMIN: i64 = 1;

/// How many strangers show forged tokens at once.
const STRANGERS: usize = 16;
/// For how long.
const FLOOD: Duration = Duration::from_secs(4);
/// What the slowest of a hundred heartbeats may take meanwhile, whatever else the machine does.
const P99: Duration = Duration::from_millis(500);

/// Public keys of RSA-4096 without names, to which no private ones are known: any odd number of that size is a modulus.
fn nameless_keys(count: usize) -> Vec<Value> {
    let key = |number: usize| {
        let mut modulus = [0xa5; 512];
        modulus[1] = u8::try_from(number).unwrap();
        json!({"kty": "RSA", "n": URL_SAFE_NO_PAD.encode(modulus), "e": "AQAB", "alg": "RS256"})
    };
    (0..count).map(key).collect()
}

fn forged(header: &Value, claims: &Value) -> String {
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    format!("{}.{}.{}", part(header), part(claims), URL_SAFE_NO_PAD.encode([1; 512]))
}

#[tokio::test]
async fn a_flood_of_forged_tokens_that_name_no_key_holds_up_no_heartbeat() {
    let minted = python(
        "mint_tokens.py",
        &[&json!({"user": ADMIN, "secret": "x", "kids": {"real": "RS256"}, "claims": {"aud": "a"}})
            .to_string()],
    );
    let (real, jwk) = (text(&minted["real"]["token"]), minted["real"]["jwk"].clone());
    let mut keys = nameless_keys(63);
    keys.push(jwk);
    let provider = Provider::start(key_set(&keys)).await;
    let env = [
        ("PRESENCE_JWKS_URL", provider.url().as_str()),
        ("PRESENCE_JWT_AUDIENCE", "a"),
        ("PRESENCE_THREADS", "1"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let stage =
        Stage::with(Engine::Sqlite, PresencedOptions { env: env.into(), ..PresencedOptions::default() })
            .await;
    let api = &stage.api;
    // A token that names its key costs that key, wherever it lies in the set; from then on it is known.
    eventually(SOON, async || match api.heartbeat(&real).await.0.as_u16() {
        200 => Ok(()),
        other => Err(other),
    })
    .await;

    let now = chrono::Utc::now().timestamp();
    let good = json!({"user_id": ADMIN, "token_type": "access", "aud": "a", "exp": now + 900});
    let begun = Instant::now();
    let mut strangers = JoinSet::new();
    for number in 0..STRANGERS {
        let (api, mut claims) = (api.clone(), good.clone());
        claims["jti"] = number.into();
        strangers.spawn(async move {
            let forged = forged(&json!({"alg": "RS256"}), &claims);
            let mut shown = 0_u32;
            while begun.elapsed() < FLOOD {
                let answer = api.heartbeat(&forged).await;
                let status = answer.0.as_u16();
                assert!(matches!(status, 401 | 503), "{answer:?}");
                let detail = text(&problem(&answer, status)["detail"]);
                assert!(status != 401 || detail.contains("too many keys to try them all"), "{detail}");
                shown += 1;
            }
            shown
        });
    }
    let mut took = Vec::new();
    while begun.elapsed() < FLOOD {
        for token in [&stage.admin, &real] {
            let one = Instant::now();
            assert_eq!(api.heartbeat(token).await.0, 200, "one of a secret, one that is known again");
            took.push(one.elapsed());
        }
    }
    let shown: u32 = strangers.join_all().await.iter().sum();
    took.sort_unstable();
    let p99 = took[took.len() * 99 / 100];
    assert!(p99 < P99, "{p99:?} of {} heartbeats beside {shown} forged tokens", took.len());
    let scrape = Scrape::of(api).await;
    let counted =
        |outcome: &str| scrape.value(&format!("presence_token_signatures_total{{outcome=\"{outcome}\"}}"));
    assert!((counted("good") - 1.0).abs() < 0.1, "the real token was verified once: {}", counted("good"));
    assert!(counted("bad") + counted("refused") >= f64::from(shown), "{shown}");
}

#[tokio::test]
async fn a_forged_token_whose_claims_are_wrong_is_refused_before_its_signature() {
    let provider = Provider::start(key_set(&nameless_keys(4))).await;
    let env = [
        ("PRESENCE_JWKS_URL", provider.url().as_str()),
        ("PRESENCE_JWT_ISSUER", "acme"),
        ("PRESENCE_JWT_AUDIENCE", "a"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let stage =
        Stage::with(Engine::Sqlite, PresencedOptions { env: env.into(), ..PresencedOptions::default() })
            .await;
    let now = chrono::Utc::now().timestamp();
    let table = [
        (json!({"iss": "globex"}), "issuer is not trusted"),
        (json!({"iss": null}), "issuer is not trusted"),
        (json!({"aud": "b"}), "another audience"),
        (json!({"exp": now - 1}), "has expired"),
        (json!({"nbf": now + 600}), "not valid yet"),
        (json!({"token_type": "refresh"}), "wrong kind"),
        (json!({"user_id": "ada"}), "user id must"),
        (json!({"sid": "a b"}), "session id must"),
    ];
    for (change, why) in table {
        let mut claims =
            json!({"iss": "acme", "aud": "a", "user_id": ADMIN, "token_type": "access", "exp": now + 900});
        claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let forged = forged(&json!({"alg": "RS256"}), &claims);
        let detail = text(&problem(&stage.api.get("me/", Some(&forged)).await, 401)["detail"]);
        assert!(detail.contains(why), "{change}: {detail}");
    }
    let scrape = Scrape::of(&stage.api).await;
    for outcome in ["good", "bad", "refused"] {
        let checked = scrape.value(&format!("presence_token_signatures_total{{outcome=\"{outcome}\"}}"));
        assert!(checked < 0.1, "{outcome}: {checked}");
    }
}
