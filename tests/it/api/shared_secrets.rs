//! Tokens of an existing Django whose `SimpleJWT` is set up in its own way: another algorithm, other names of claims. All are
//! minted by the real package, and taken by settings alone.

use serde_json::{Value, json};

use super::{Engine, Stage, claims, problem, text};
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::python::python;
use crate::support::tether;

/// The account `admin`, which every service has.
const ADMIN: i64 = 1;

const DJANGO: &str = "django-insecure-the secret key of an existing product #1";

/// What this Django mints for [`ADMIN`].
fn minted(simple_jwt: &Value) -> Value {
    let asked = json!({"user": ADMIN, "secret": DJANGO, "simple_jwt": simple_jwt});
    python("mint_tokens.py", &[&asked.to_string()])["shared"].clone()
}

fn settings(env: &[(&str, &str)]) -> PresencedOptions {
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    PresencedOptions { env, ..PresencedOptions::default() }
}

#[tokio::test]
async fn a_simplejwt_with_hs512_and_its_own_claim_for_the_user_is_taken_by_settings_alone() {
    let minted = minted(
        &json!({"ALGORITHM": "HS512", "USER_ID_CLAIM": "uid", "TOKEN_TYPE_CLAIM": "kind", "ISSUER": "django"}),
    );
    let access = text(&minted["access"]);
    let read = claims(&access);
    assert_eq!((&read["uid"], &read["kind"]), (&json!("1"), &json!("access")), "{read}");
    assert!(read.get("user_id").is_none(), "{read}");

    let folder = tether::folder("django");
    // As an editor leaves it.
    std::fs::write(folder.path().join("django.secret"), format!("{DJANGO}\r\n")).unwrap();
    let issuers = json!([{
        "name": "django", "shared_secrets_file": "django.secret", "user_claim": "uid", "type_claim": "kind", "issuer": "django",
        "algorithms": ["HS512"],
    }]);
    let file = folder.path().join("issuers.json");
    std::fs::write(&file, issuers.to_string()).unwrap();
    let by_variables = [
        ("PRESENCE_JWT_SHARED_SECRETS", DJANGO),
        ("PRESENCE_JWT_USER_CLAIM", "uid"),
        ("PRESENCE_JWT_TYPE_CLAIM", "kind"),
        ("PRESENCE_JWT_ISSUER", "django"),
    ];
    let stage = Stage::with(Engine::Sqlite, settings(&by_variables)).await;
    let (_by_file, api_by_file) =
        stage.another(settings(&[("PRESENCE_ISSUERS", file.to_str().unwrap())])).await;
    for api in [&stage.api, &api_by_file] {
        assert_eq!(api.heartbeat(&access).await.0, 200);
        assert_eq!(api.get("me/", Some(&access)).await.1["user"]["id"], ADMIN);
        for name in ["expired", "refresh"] {
            problem(&api.heartbeat(&text(&minted[name])).await, 401);
        }
        let refresh = json!({"refresh": minted["refresh"]});
        let detail = text(&problem(&api.post("token/refresh/", None, &refresh).await, 401)["detail"]);
        assert!(detail.contains("was not issued here"), "{detail}");
        // Our own tokens are read by our own names beside them.
        assert_eq!(api.heartbeat(&stage.admin).await.0, 200);
    }
    // The same secret, trusted for tokens with our own claims: refused for what is missing.
    let (_plain, plain) = stage.another(settings(&[("PRESENCE_TRUSTED_SECRETS", DJANGO)])).await;
    problem(&plain.heartbeat(&access).await, 401);
}

#[tokio::test]
async fn a_simplejwt_with_hs384_or_hs512_and_our_own_claims_needs_its_secret_and_nothing_else() {
    // As `echo` and editors leave it.
    let stage =
        Stage::with(Engine::Sqlite, settings(&[("PRESENCE_TRUSTED_SECRETS", &format!("{DJANGO}\n"))])).await;
    for algorithm in ["HS256", "HS384", "HS512"] {
        let minted = minted(&json!({"ALGORITHM": algorithm}));
        assert_eq!(stage.api.heartbeat(&text(&minted["access"])).await.0, 200, "{algorithm}");
        problem(&stage.api.heartbeat(&text(&minted["expired"])).await, 401);
    }
}

#[tokio::test]
async fn settings_that_read_a_secret_in_two_ways_or_in_none_end_the_start_and_are_named() {
    let table = [
        (
            vec![("PRESENCE_TRUSTED_SECRETS", DJANGO), ("PRESENCE_JWT_SHARED_SECRETS", DJANGO)],
            vec!["'default'", "PRESENCE_TRUSTED_SECRETS", "in two ways"],
        ),
        (
            vec![("PRESENCE_TRUSTED_SECRETS", DJANGO), ("PRESENCE_JWT_USER_CLAIM", "uid")],
            vec!["PRESENCE_JWT_USER_CLAIM", "PRESENCE_JWT_SHARED_SECRETS"],
        ),
        (
            vec![("PRESENCE_JWT_SHARED_SECRETS", DJANGO), ("PRESENCE_JWT_ALGORITHMS", "RS256")],
            vec!["PRESENCE_JWT_ALGORITHMS", "HS256, HS384, HS512"],
        ),
        (
            vec![("PRESENCE_JWT_SHARED_SECRETS", "short")],
            vec!["PRESENCE_JWT_SHARED_SECRETS must each be 32 bytes"],
        ),
    ];
    for (env, words) in table {
        let (code, said) = Presenced::try_start(settings(&env)).await.expect_err("a refusal");
        assert_ne!(code, 0, "{said}");
        assert!(words.iter().all(|word| said.contains(word)), "{words:?}: {said}");
        assert!(!said.contains(DJANGO), "{said}");
    }
}
