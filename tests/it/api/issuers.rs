//! Tokens from elsewhere: of an existing Django with `SimpleJWT`, and of identity providers with keys of their own. All
//! are minted by the real packages.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Engine, SOON, Stage, claims, problem, text};
use crate::support::http::Api;
use crate::support::mint::SECRET;
use crate::support::poll::eventually;
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::provider::{Answers, Provider, key_set};
use crate::support::python::python;
use crate::support::tether;

/// The account `admin`, which every service has.
const ADMIN: i64 = 1;

const DJANGO: &str = "django-insecure-the secret key of an existing product #1";

/// Tokens for [`ADMIN`], of each of these keys with its algorithm.
fn minted(kids: &[(&str, &str)], claims: &Value) -> Value {
    let kids: serde_json::Map<String, Value> =
        kids.iter().map(|(kid, algorithm)| ((*kid).to_owned(), json!(algorithm))).collect();
    let asked = json!({"user": ADMIN, "secret": DJANGO, "kids": kids, "claims": claims});
    python("mint_tokens.py", &[&asked.to_string()])
}

fn settings(env: &[(&str, &str)]) -> PresencedOptions {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    PresencedOptions { env, ..PresencedOptions::default() }
}

async fn stage(env: &[(&str, &str)]) -> Stage {
    Stage::with(Engine::Sqlite, settings(env)).await
}

#[track_caller]
fn token(minted: &Value, kid: &str) -> String {
    text(&minted[kid]["token"])
}

/// Waits until heartbeats by this token get this status.
async fn soon(api: &Api, token: &str, status: u16) {
    eventually(SOON, async || {
        let (found, body, _) = api.heartbeat(token).await;
        if found == status { Ok(()) } else { Err(body) }
    })
    .await;
}

async fn refused(api: &Api, token: &str) -> Value {
    problem(&api.heartbeat(token).await, 401).clone()
}

#[tokio::test]
async fn the_access_tokens_of_a_real_simplejwt_are_taken_and_its_refresh_tokens_are_not() {
    let minted = minted(&[], &json!({}));
    let shared = |name: &str| text(&minted["shared"][name]);
    assert_eq!(claims(&shared("access"))["user_id"], ADMIN.to_string(), "SimpleJWT 5.5 writes text");
    assert_eq!(claims(&shared("integer"))["user_id"], ADMIN, "and others write numbers");
    let stage = stage(&[("PRESENCE_TRUSTED_SECRETS", DJANGO)]).await;
    let api = &stage.api;
    for name in ["access", "access_of_refresh", "integer"] {
        assert_eq!(api.heartbeat(&shared(name)).await.0, 200, "{name}");
        assert_eq!(api.get("me/", Some(&shared(name))).await.1["user"]["id"], ADMIN, "{name}");
    }
    for name in ["expired", "refresh"] {
        refused(api, &shared(name)).await;
    }
    let (_other, strict) = stage.another(settings(&[])).await;
    refused(&strict, &shared("access")).await;

    // A session of ours beside it, of the same account: nothing of it ends.
    let ours = api.login("admin").await;
    let body = json!({"refresh": shared("refresh")});
    let answer = api.post("token/refresh/", None, &body).await;
    let detail = text(&problem(&answer, 401)["detail"]);
    assert!(detail.contains("was not issued here; refresh it where it was"), "{detail}");
    for bearer in [&ours.access, &shared("access")] {
        problem(&api.post("logout/", Some(bearer), &body).await, 403);
    }
    assert_eq!(api.heartbeat(&ours.access).await.0, 200);
    assert_eq!(api.heartbeat(&shared("access")).await.0, 200);
    assert_eq!(api.post("token/refresh/", None, &json!({"refresh": ours.refresh})).await.0, 200);
}

const EACH: [(&str, &str); 6] = [
    ("rs256", "RS256"),
    ("rs512", "RS512"),
    ("ps256", "PS256"),
    ("es256", "ES256"),
    ("es384", "ES384"),
    ("ed", "EdDSA"),
];

#[tokio::test]
async fn tokens_of_each_algorithm_open_requests_by_a_set_of_keys_or_by_a_file_and_buy_nothing() {
    let minted = minted(&EACH, &json!({"sid": "phone"}));
    let provider = Provider::start(key_set(EACH.iter().map(|(kid, _)| &minted[kid]["jwk"]))).await;
    let stage = stage(&[("PRESENCE_JWKS_URL", &provider.url())]).await;
    let folder = tether::folder("keys");
    let file = folder.path().join("keys.pem");
    let pem: String = EACH.iter().map(|(kid, _)| text(&minted[kid]["pem"])).collect();
    std::fs::write(&file, pem).unwrap();
    let (_another, by_file) =
        stage.another(settings(&[("PRESENCE_JWT_PUBLIC_KEY", file.to_str().unwrap())])).await;
    soon(&stage.api, &token(&minted, "ed"), 200).await;

    let ours = stage.api.login("admin").await;
    for api in [&stage.api, &by_file] {
        for (kid, _) in EACH {
            let [token, unnamed, refresh] =
                ["token", "unnamed", "refresh"].map(|name| text(&minted[kid][name]));
            for token in [&token, &unnamed] {
                let (status, body, _) = api.heartbeat(token).await;
                assert_eq!(
                    (status.as_u16(), &body["online_status"]),
                    (200, &json!("online")),
                    "{kid}: {body}"
                );
            }
            refused(api, &refresh).await;
            for body in [&token, &unnamed, &refresh].map(|token| json!({"refresh": token})) {
                let detail = text(&problem(&api.post("token/refresh/", None, &body).await, 401)["detail"]);
                assert!(detail.contains("was not issued here"), "{detail}");
                problem(&api.post("logout/", Some(&token), &body).await, 400);
                problem(&api.post("logout/", Some(&ours.access), &body).await, 400);
            }
        }
    }
    assert_eq!(stage.api.heartbeat(&ours.access).await.0, 200, "and nothing has ended");
    assert_eq!(stage.api.heartbeat(&token(&minted, "ed")).await.0, 200);

    // The session of a token is one here: it can be ended, and its tokens with it.
    assert_eq!(stage.api.delete("me/sessions/", Some(&token(&minted, "ed"))).await.0, 204);
    refused(&by_file, &token(&minted, "es256")).await;
    let until = stage.redis.cli(&["ZSCORE", "presence:{0}:ended", &format!("{ADMIN}:phone")]);
    let left_ms = until.parse::<i64>().unwrap() - chrono::Utc::now().timestamp_millis();
    assert!(left_ms > 3_500_000, "as long as the token of an hour, not as one of ours: {left_ms} ms");
    assert_eq!(by_file.heartbeat(&text(&minted["ed"]["unnamed"])).await.0, 200, "which names no session");
}

#[tokio::test]
async fn a_rotated_key_is_picked_up_and_one_that_vanished_is_trusted_no_more() {
    let minted = minted(&[("old", "ES256"), ("new", "ES256"), ("newest", "EdDSA")], &json!({}));
    let jwk = |kid: &str| &minted[kid]["jwk"];
    let provider = Provider::start(key_set([jwk("old")])).await;
    // Nothing but an unknown key brings about a fetch.
    let stage = stage(&[("PRESENCE_JWKS_URL", &provider.url()), ("PRESENCE_JWKS_REFRESH", "1d")]).await;
    soon(&stage.api, &token(&minted, "old"), 200).await;
    provider.answer(key_set([jwk("old"), jwk("new")]));
    let told = refused(&stage.api, &token(&minted, "new")).await;
    assert!(text(&told["detail"]).contains("not known here, or not yet"), "{told}");
    soon(&stage.api, &token(&minted, "new"), 200).await;
    assert_eq!(stage.api.heartbeat(&token(&minted, "old")).await.0, 200, "both are in the set");

    provider.answer(key_set([jwk("new"), jwk("newest")]));
    soon(&stage.api, &token(&minted, "newest"), 200).await;
    refused(&stage.api, &token(&minted, "old")).await;
    assert_eq!(stage.api.heartbeat(&token(&minted, "new")).await.0, 200);

    // A key that is taken back is so at the next fetch in turn, without any token's help.
    let (_another, hourly) = stage
        .another(settings(&[("PRESENCE_JWKS_URL", &provider.url()), ("PRESENCE_JWKS_REFRESH", "1s")]))
        .await;
    soon(&hourly, &token(&minted, "new"), 200).await;
    provider.answer(key_set([]));
    soon(&hourly, &token(&minted, "new"), 401).await;
}

#[tokio::test]
async fn forged_names_of_keys_do_not_hammer_the_provider() {
    let minted = minted(&[("real", "EdDSA")], &json!({}));
    let provider = Provider::start(key_set([&minted["real"]["jwk"]])).await;
    let stage = stage(&[("PRESENCE_JWKS_URL", &provider.url())]).await;
    let real = token(&minted, "real");
    soon(&stage.api, &real, 200).await;
    let begun = Instant::now();
    let (_, rest) = real.split_once('.').unwrap();
    while begun.elapsed() < Duration::from_secs(7) {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        let header = json!({"alg": "EdDSA", "kid": format!("forged {:?}", begun.elapsed())}).to_string();
        refused(&stage.api, &format!("{}.{rest}", URL_SAFE_NO_PAD.encode(header))).await;
    }
    let asked = provider.asked();
    assert!((2..=3).contains(&asked), "at the start, and every 5 s at most: {asked}");
    assert_eq!(stage.api.heartbeat(&real).await.0, 200);
}

#[tokio::test]
async fn while_the_provider_fails_in_whatever_way_the_known_keys_go_on_working() {
    let minted = minted(&[("known", "RS256"), ("next", "ES256")], &json!({}));
    let (known, next) = (&minted["known"]["jwk"], &minted["next"]["jwk"]);
    let mut provider = Provider::start(key_set([known])).await;
    let env = [("PRESENCE_JWKS_REFRESH", "1s")];
    let Answers::Text(set) = key_set([next]) else { unreachable!() };
    let many = vec![next; 65];
    let ways = [
        Answers::Status(500, set.clone()),
        Answers::Status(404, set.clone()),
        Answers::Status(302, set),
        Answers::Text("<html>we are moving</html>".into()),
        Answers::Text(r#"{"keys": "#.repeat(1000)),
        key_set(many),
        Answers::Never,
        Answers::Endless,
        Answers::Drip,
    ];
    // Each way has a service of its own, so that none waits for the pause after another's failures.
    let first = stage(&[("PRESENCE_JWKS_URL", &provider.url()), env[0]]).await;
    let mut services = Vec::new();
    for way in ways {
        let one = Provider::start(key_set([known])).await;
        let (service, api) = first.another(settings(&[("PRESENCE_JWKS_URL", &one.url()), env[0]])).await;
        soon(&api, &token(&minted, "known"), 200).await;
        one.answer(way.clone());
        services.push((way, one, service, api));
    }
    soon(&first.api, &token(&minted, "known"), 200).await;
    provider.down().await;
    for (way, one, service, api) in &services {
        eventually(SOON, async || match service.stderr().matches("cannot be fetched").count() {
            1.. => Ok(()),
            _ => Err((way.clone(), one.asked(), service.stderr())),
        })
        .await;
        let begun = Instant::now();
        assert_eq!(api.heartbeat(&token(&minted, "known")).await.0, 200, "{way:?}");
        refused(api, &token(&minted, "next")).await;
        assert!(begun.elapsed() < Duration::from_secs(1), "and nobody waits: {way:?}");
        // What is read is bounded; the rest lies in buffers of the network.
        assert!(one.sent() < 16 << 20, "{}", one.sent());
        assert_eq!(one.strays(), [""; 0], "a redirect is not followed");
    }
    for (way, one, service, api) in &services {
        one.answer(key_set([known, next]));
        soon(api, &token(&minted, "next"), 200).await;
        assert_eq!(service.stderr().matches("cannot be fetched").count(), 1, "said once: {way:?}");
        assert_eq!(service.terminate().await, 0);
    }
    assert_eq!(first.api.heartbeat(&token(&minted, "known")).await.0, 200);
    provider.answer(key_set([known, next]));
    provider.up().await;
    soon(&first.api, &token(&minted, "next"), 200).await;
}

#[tokio::test]
async fn a_start_does_not_wait_for_the_provider_and_an_end_does_not_either() {
    let minted = minted(&[("key", "EdDSA")], &json!({}));
    let mut provider = Provider::start(key_set([&minted["key"]["jwk"]])).await;
    provider.down().await;
    let stage = stage(&[("PRESENCE_JWKS_URL", &provider.url())]).await;
    assert_eq!(stage.api.get("/readyz", None).await.0, 200, "the provider is no condition");
    assert_eq!(stage.api.heartbeat(&stage.admin).await.0, 200);
    refused(&stage.api, &token(&minted, "key")).await;
    provider.up().await;
    soon(&stage.api, &token(&minted, "key"), 200).await;

    provider.answer(Answers::Never);
    let asked = provider.asked();
    let (service, api) = stage.another(settings(&[("PRESENCE_JWKS_URL", &provider.url())])).await;
    eventually(SOON, async || if provider.asked() > asked { Ok(()) } else { Err(asked) }).await;
    refused(&api, &token(&minted, "key")).await;
    let begun = Instant::now();
    assert_eq!(service.terminate().await, 0);
    assert!(begun.elapsed() < Duration::from_secs(3), "a fetch under way is dropped: {:?}", begun.elapsed());
}

#[tokio::test]
async fn several_issuers_are_told_apart_and_none_speaks_for_another() {
    let acme = minted(
        &[("1", "RS256")],
        &json!({"iss": "https://acme.example", "aud": ["presence", "x"], "sub": "1", "user_id": null, "token_type": null}),
    );
    let globex = minted(&[("1", "ES256")], &json!({"iss": "globex", "typ": "Bearer", "session_state": "s9"}));
    let posing =
        minted(&[("1", "RS256")], &json!({"iss": "https://acme.example", "aud": "presence", "sub": "1"}));
    let provider = Provider::start(key_set([&acme["1"]["jwk"]])).await;
    let folder = tether::folder("issuers");
    std::fs::write(folder.path().join("globex.pem"), text(&globex["1"]["pem"])).unwrap();
    let file = folder.path().join("issuers.json");
    let issuers = json!([
        {
            "name": "acme", "jwks_url": provider.url(), "issuer": "https://acme.example", "audience": ["presence"],
            "user_claim": "sub", "session_claim": "off", "type_claim": "off", "algorithms": ["RS256"],
        },
        {
            "name": "globex", "public_key": "globex.pem", "issuer": "globex", "session_claim": "session_state",
            "type_claim": "typ", "type_value": "Bearer", "leeway": "30s",
        },
    ]);
    std::fs::write(&file, issuers.to_string()).unwrap();
    let stage =
        stage(&[("PRESENCE_ISSUERS", file.to_str().unwrap()), ("PRESENCE_TRUSTED_SECRETS", DJANGO)]).await;
    let api = &stage.api;
    soon(api, &token(&acme, "1"), 200).await;
    for good in [token(&globex, "1"), text(&acme["shared"]["access"]), stage.admin.clone()] {
        assert_eq!(api.heartbeat(&good).await.0, 200, "{good}");
    }
    let field = stage.redis.cli(&["HEXISTS", &super::presence_key(ADMIN), "s:s9"]);
    assert_eq!(field.trim(), "1", "the session goes by its own name");

    let other = minted(&[("1", "ES256")], &json!({"iss": "globex", "typ": "Bearer"}));
    let bad = [
        // Their own keys behind the name of an issuer, and an issuer's behind another's.
        token(&posing, "1"),
        token(&other, "1"),
        // No `iss` at all.
        text(&acme["1"]["unnamed"]),
        text(&globex["1"]["unnamed"]),
    ];
    for token in &bad {
        refused(api, token).await;
    }
    // The public key as a secret.
    let key = jsonwebtoken::EncodingKey::from_secret(text(&globex["1"]["pem"]).as_bytes());
    let mut header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
    header.kid = Some("1".into());
    let forged = jsonwebtoken::encode(&header, &claims(&token(&globex, "1")), &key).unwrap();
    refused(api, &forged).await;
}

#[tokio::test]
async fn keys_come_over_tls_from_a_provider_whose_certificate_is_trusted() {
    let minted = minted(&[("key", "EdDSA")], &json!({}));
    let tls = python("make_certificate.py", &[]);
    let set = key_set([&minted["key"]["jwk"]]);
    let provider = Provider::start_tls(set, &text(&tls["certificate"]), &text(&tls["key"])).await;
    let folder = tether::folder("authority");
    let authority = folder.path().join("authority.pem");
    std::fs::write(&authority, text(&tls["authority"])).unwrap();
    let url = provider.url();
    let stage = stage(&[("PRESENCE_JWKS_URL", &url), ("SSL_CERT_FILE", authority.to_str().unwrap())]).await;
    soon(&stage.api, &token(&minted, "key"), 200).await;

    let asked = provider.asked();
    let (service, api) = stage.another(settings(&[("PRESENCE_JWKS_URL", &url)])).await;
    let said = eventually(SOON, async || {
        let said = service.stderr();
        if said.contains("cannot be fetched") { Ok(said) } else { Err(said) }
    })
    .await;
    assert!(said.contains("certificate") && !said.contains(&url), "{said}");
    refused(&api, &token(&minted, "key")).await;
    assert_eq!(provider.asked(), asked, "nothing was said to a stranger");
}

#[tokio::test]
async fn no_log_shows_what_is_secret_in_the_url_of_the_keys() {
    let minted = minted(&[("key", "EdDSA")], &json!({}));
    let mut provider = Provider::start(key_set([&minted["key"]["jwk"]])).await;
    let url = provider.url().replace("http://", "http://ada:hunter2@") + "?key=hunter2";
    let options = settings(&[
        ("PRESENCE_JWKS_URL", &url),
        ("PRESENCE_JWKS_REFRESH", "1s"),
        ("PRESENCE_LOG", "trace"),
        ("PRESENCE_JWT_SECRET", SECRET),
    ]);
    let service = Presenced::start(options).await;
    let api = Api::new(service.base_url());
    soon(&api, &token(&minted, "key"), 200).await;
    provider.down().await;
    let said = eventually(SOON, async || {
        let said = service.stderr();
        if said.contains("cannot be fetched") { Ok(said) } else { Err(said.len()) }
    })
    .await;
    for secret in ["hunter2", "YWRhOmh1bnRlcjI", SECRET] {
        let line = said.lines().find(|line| line.contains(secret));
        assert_eq!(line, None, "{secret}");
    }
}

#[tokio::test]
async fn a_bad_setting_of_issuers_ends_the_start_and_is_named() {
    let folder = tether::folder("bad-issuers");
    let file = folder.path().join("issuers.json");
    std::fs::write(
        &file,
        r#"[{"name": "acme", "jwks_url": "https://id.example.org/", "client_secret": "hunter2"}]"#,
    )
    .unwrap();
    let path = file.to_str().unwrap();
    let table = [
        (("PRESENCE_ISSUERS", path), vec!["PRESENCE_ISSUERS", "client_secret", "jwks_url"]),
        (
            ("PRESENCE_JWKS_URL", "http://ada:hunter2@id.example.org/keys"),
            vec!["PRESENCE_JWKS_URL", "begins with https://", "allow http"],
        ),
        (("PRESENCE_JWT_PUBLIC_KEY", path), vec!["PRESENCE_JWT_PUBLIC_KEY", "BEGIN PUBLIC KEY"]),
        (("PRESENCE_JWT_AUDIENCE", "presence"), vec!["PRESENCE_JWT_AUDIENCE", "PRESENCE_JWKS_URL"]),
        (("PRESENCE_JWKS_REFRESH", "never"), vec!["--jwks-refresh", "from 1s to 1d"]),
    ];
    for (env, words) in table {
        let mut options = settings(&[env]);
        options.env.push(("PRESENCE_JWT_SECRET".into(), SECRET.into()));
        let (code, said) = Presenced::try_start(options).await.expect_err("a refusal");
        assert_ne!(code, 0, "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
        assert!(!said.contains("hunter2") && !said.contains(SECRET), "{said}");
    }
}
