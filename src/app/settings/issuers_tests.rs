//! Which settings of issuers are taken, and what a refusal says.

use clap::Parser;
use serde_json::{Value, json};

use super::*;

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    issuers: IssuerFlags,
}

fn flags(words: &[&str]) -> anyhow::Result<Vec<IssuerSettings>> {
    Line::parse_from(std::iter::once(&"presenced").chain(words)).issuers.read()
}

/// What a file of this text says.
fn file(text: &str) -> anyhow::Result<Vec<IssuerSettings>> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("issuers.json");
    std::fs::write(&path, text).unwrap();
    flags(&["--issuers", path.to_str().unwrap()])
}

fn entry(more: &Value) -> Value {
    let mut entry = json!({"name": "acme", "jwks_url": "https://id.example.org/keys"});
    entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    entry
}

#[test]
fn without_a_place_of_keys_there_is_no_issuer() {
    assert!(flags(&[]).unwrap().is_empty());
    assert!(file("[]").unwrap().is_empty());
}

#[test]
fn flags_and_file_say_the_same_in_the_same_words() {
    let plain = &flags(&["--jwks-url", "https://id.example.org/keys"]).unwrap()[0];
    let same = &file(&json!([entry(&json!({}))]).to_string()).unwrap()[0];
    for issuer in [plain, same] {
        assert_eq!((issuer.iss.as_deref(), issuer.audience.len()), (None, 0));
        assert_eq!((issuer.user_claim.as_str(), issuer.session_claim.as_deref()), ("user_id", Some("sid")));
        assert_eq!(issuer.access_mark, Some(("token_type".into(), "access".into())));
        assert_eq!((issuer.algorithms.len(), issuer.leeway), (9, Duration::ZERO));
    }
    let set = &flags(&[
        "--jwks-url=https://id.example.org/keys",
        "--jwks-refresh=1h",
        "--jwt-issuer=acme",
        "--jwt-audience=a,b",
        "--jwt-user-claim=sub",
        "--jwt-session-claim=off",
        "--jwt-type-claim=typ",
        "--jwt-type-value=Bearer",
        "--jwt-algorithms=RS256,EdDSA",
        "--jwt-leeway=30s",
    ])
    .unwrap()[0];
    let same = &file(
        &json!([entry(&json!({
            "jwks_refresh": "1h", "issuer": "acme", "audience": ["a", "b"], "user_claim": "sub", "session_claim": "off",
            "type_claim": "typ", "type_value": "Bearer", "algorithms": ["RS256", "EdDSA"], "leeway": "30s",
        }))])
        .to_string(),
    )
    .unwrap()[0];
    for issuer in [set, same] {
        assert_eq!((issuer.iss.as_deref(), issuer.audience.join(" ")), (Some("acme"), "a b".into()));
        assert_eq!((issuer.user_claim.as_str(), issuer.session_claim.as_deref()), ("sub", None));
        assert_eq!(issuer.access_mark, Some(("typ".into(), "Bearer".into())));
        assert_eq!(issuer.algorithms, [Algorithm::RS256, Algorithm::EdDSA]);
        assert_eq!(issuer.leeway, Duration::from_secs(30));
    }
}

#[test]
fn a_bad_entry_of_the_file_is_named_with_what_it_may_be() {
    let table = [
        (json!({"issuers": []}).to_string(), vec!["list of issuers"]),
        ("[{".into(), vec!["list of issuers", "EOF"]),
        ("[] []".into(), vec!["one list"]),
        (json!([{"jwks_url": "https://x"}]).to_string(), vec!["entry 1", "name must"]),
        (json!([entry(&json!({})), entry(&json!({}))]).to_string(), vec!["entry 2", "no other entry"]),
        (
            json!([entry(&json!({"secret": "x"}))]).to_string(),
            vec!["[0]", "unknown field `secret`", "`jwks_url`"],
        ),
        (json!([entry(&json!({"leeway": "1h"}))]).to_string(), vec!["[0].leeway", "from 0s to 5m"]),
        (
            json!([entry(&json!({"jwks_refresh": "0"}))]).to_string(),
            vec!["[0].jwks_refresh", "from 1s to 1d"],
        ),
        (json!([{"name": "acme"}]).to_string(), vec!["entry 1", "'acme'", "jwks_url or public_key must"]),
        (
            json!([entry(&json!({"jwks_url": "id.example.org"}))]).to_string(),
            vec!["jwks_url must be a URL", "https://"],
        ),
        (
            json!([entry(&json!({"jwks_url": "http://id.example.org"}))]).to_string(),
            vec!["jwks_url", "without TLS"],
        ),
        (
            json!([entry(&json!({"public_key": "acme.pem"}))]).to_string(),
            vec!["public_key", "leave one of them out"],
        ),
        (
            json!([{"name": "acme", "public_key": "no.pem"}]).to_string(),
            vec!["public_key", "no.pem", "cannot be read"],
        ),
        (
            json!([entry(&json!({"algorithms": ["HS256"]}))]).to_string(),
            vec!["algorithms must be among RS256", "PRESENCE_TRUSTED_SECRETS"],
        ),
        (
            json!([entry(&json!({"algorithms": ["none"]}))]).to_string(),
            vec!["algorithms must be among RS256"],
        ),
        (json!([entry(&json!({"issuer": ""}))]).to_string(), vec!["issuer must", "'iss'"]),
        (json!([entry(&json!({"audience": [""]}))]).to_string(), vec!["audience must", "'aud'"]),
        (
            json!([entry(&json!({"user_claim": "exp"}))]).to_string(),
            vec!["user_claim must be the name of a claim of its own"],
        ),
        (json!([entry(&json!({"user_claim": "sid"}))]).to_string(), vec!["session_claim must be the name"]),
        (json!([entry(&json!({"type_claim": ""}))]).to_string(), vec!["type_claim must be the name"]),
        (json!([entry(&json!({"type_claim": "off", "type_value": "x"}))]).to_string(), vec!["type_value"]),
    ];
    for (text, words) in table {
        let error = file(&text).unwrap_err().to_string();
        assert!(error.contains("PRESENCE_ISSUERS"), "{error}");
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
    }
}

#[test]
fn a_bad_flag_is_named_with_its_variable() {
    let url = "--jwks-url=https://id.example.org/keys";
    let table: [(&[&str], &str); 5] = [
        (&["--jwks-url="], "PRESENCE_JWKS_URL (--jwks-url) must"),
        (&[url, "--jwt-public-key=x.pem"], "PRESENCE_JWT_PUBLIC_KEY (--jwt-public-key) is one place"),
        (&[url, "--jwt-algorithms=HS256"], "PRESENCE_JWT_ALGORITHMS (--jwt-algorithms) must"),
        (&["--jwt-issuer=acme"], "PRESENCE_JWT_ISSUER (--jwt-issuer) says"),
        (&["--jwks-allow-http"], "PRESENCE_JWKS_ALLOW_HTTP (--jwks-allow-http) says"),
    ];
    for (words, begins) in table {
        let error = flags(words).unwrap_err().to_string();
        assert!(error.starts_with(begins), "{words:?}: {error}");
    }
}

#[test]
fn a_refusal_or_a_debug_shows_no_url() {
    let secret = "http://ada:hunter2@id.example.org/?key=hunter2";
    for error in [
        flags(&["--jwks-url", secret]).unwrap_err(),
        file(&json!([entry(&json!({"jwks_url": secret}))]).to_string()).unwrap_err(),
    ] {
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
    let issuers = flags(&["--jwks-allow-http", "--jwks-url", secret]).unwrap();
    assert!(!format!("{issuers:?}").contains("hunter2"));
}
