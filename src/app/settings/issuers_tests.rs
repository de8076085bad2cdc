//! Which settings of issuers are taken, and what a refusal says.

use clap::Parser;
use serde_json::{Value, json};

use super::*;

const BEFORE: Duration = Duration::from_secs(5);

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    issuers: IssuerFlags,
}

fn flags(words: &[&str]) -> anyhow::Result<Vec<IssuerSettings>> {
    Line::parse_from(std::iter::once(&"presenced").chain(words)).issuers.read(BEFORE)
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
        assert_eq!(issuer.algorithms.len(), 9);
        assert_eq!(issuer.leeway, Leeway { before: BEFORE, after: Duration::ZERO });
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
        assert_eq!(issuer.leeway, Leeway::both(Duration::from_secs(30)));
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
        (
            json!([{"name": "acme"}]).to_string(),
            vec!["entry 1", "'acme'", "jwks_url must be set, or public_key or shared_secrets_file"],
        ),
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
fn secrets_shared_with_an_issuer_come_by_a_flag_or_by_a_file_and_bring_their_algorithms() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("acme.secret"), "a secret of acme that is long enough\n").unwrap();
    let path = folder.path().join("issuers.json");
    let entry = |more: &Value| {
        let mut entry = json!({"name": "acme", "shared_secrets_file": "acme.secret", "user_claim": "uid"});
        entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        std::fs::write(&path, json!([entry]).to_string()).unwrap();
        flags(&["--issuers", path.to_str().unwrap()])
    };
    let by_flag = &flags(&[
        "--jwt-shared-secrets=a secret of acme that is long enough\n,an older one that is long enough too",
        "--jwt-user-claim=uid",
        "--jwt-algorithms=HS512",
    ])
    .unwrap()[0];
    let by_file = &entry(&json!({"algorithms": ["HS512"]})).unwrap()[0];
    for issuer in [by_flag, by_file] {
        assert_eq!((issuer.user_claim.as_str(), &issuer.algorithms[..]), ("uid", &[Algorithm::HS512][..]));
        assert!(issuer.is_verified_with("a secret of acme that is long enough"));
        assert!(!format!("{issuer:?}").contains("secret of acme"));
    }
    assert!(by_flag.is_verified_with("an older one that is long enough too"));
    assert_eq!(entry(&json!({})).unwrap()[0].algorithms, jwk::SHARED_ALGORITHMS);

    let wrong = entry(&json!({"algorithms": ["RS256"]})).unwrap_err().to_string();
    assert!(wrong.contains("algorithms must be among HS256, HS384, HS512"), "{wrong}");
    let twice = entry(&json!({"jwks_url": "https://id.example.org/keys"})).unwrap_err().to_string();
    assert!(twice.contains("shared_secrets_file is one place of its keys, jwks_url another"), "{twice}");
    for (content, why) in [("short\n", "32 bytes"), ("\n", "is empty"), (",", "one or more")] {
        std::fs::write(folder.path().join("acme.secret"), content).unwrap();
        let error = entry(&json!({})).unwrap_err().to_string();
        assert!(error.contains("shared_secrets_file names") && error.contains(why), "{error}");
        assert!(!error.contains("short"), "{error}");
    }
    let short = flags(&["--jwt-shared-secrets=hunter2"]).unwrap_err().to_string();
    assert!(
        short.starts_with("PRESENCE_JWT_SHARED_SECRETS (--jwt-shared-secrets) must each be 32"),
        "{short}"
    );
}

#[test]
fn a_file_holds_no_more_keys_of_one_kind_than_a_token_is_tried_against() {
    const KEY: &str = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAsvnThV5cWosgxCBm+ELkH//oKyI9e+M997H+oUBbH/4=\n\
        -----END PUBLIC KEY-----\n";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.pem");
    let with = |count: usize| {
        std::fs::write(&path, KEY.repeat(count)).unwrap();
        flags(&["--jwt-public-key", path.to_str().unwrap()])
    };
    assert!(with(MAX_KEYS_TRIED).is_ok());
    let error = with(MAX_KEYS_TRIED + 1).unwrap_err().to_string();
    assert!(
        error.contains("PRESENCE_JWT_PUBLIC_KEY") && error.contains("more than 4 keys of one kind"),
        "{error}"
    );
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
