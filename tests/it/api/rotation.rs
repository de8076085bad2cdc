//! A new secret: the steps of `docs/tokens.md`, with real processes side by side and one after the other.

use serde_json::{Value, json};

use super::{Engine, Stage, problem};
use crate::support::http::{Api, Tokens};
use crate::support::mint::SECRET;
use crate::support::process::PresencedOptions;

const NEW: &str = "the secret that comes after that and is long enough";

fn secrets(signs: &str, trusted: &str) -> PresencedOptions {
    let env = [("PRESENCE_JWT_SECRET", signs), ("PRESENCE_TRUSTED_SECRETS", trusted)]
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    PresencedOptions { env: env.collect(), ..PresencedOptions::default() }
}

async fn refreshed(api: &Api, refresh: &str) -> (String, String) {
    let (status, body, _) = api.post("token/refresh/", None, &json!({"refresh": refresh})).await;
    assert_eq!(status, 200, "{body}");
    let text = |name: &str| body[name].as_str().expect("a token").to_owned();
    (text("access"), text("refresh"))
}

/// By which of the two secrets a token is signed.
fn signed_by(token: &str) -> &'static str {
    let by = |secret: &str| {
        let key = jsonwebtoken::DecodingKey::from_secret(secret.as_bytes());
        let validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::HS256);
        jsonwebtoken::decode::<Value>(token, &key, &validation).is_ok()
    };
    match (by(SECRET), by(NEW)) {
        (true, false) => "old",
        (false, true) => "new",
        both => panic!("{both:?}"),
    }
}

async fn goes_on(api: &Api, tokens: &Tokens) {
    let (status, body, _) = api.heartbeat(&tokens.access).await;
    assert_eq!(status, 200, "{body}");
}

#[tokio::test]
async fn a_new_secret_logs_nobody_out_across_a_rolling_restart_of_two_instances() {
    let stage = Stage::start(Engine::Postgres).await;
    let phone = stage.join("ada").await;
    let (second, _) = stage.another(PresencedOptions::default()).await;

    // Step 1, one instance after the other: all sign as before, and each takes what the others will sign next.
    second.terminate().await;
    let (ready, ready_api) = stage.another(secrets(SECRET, NEW)).await;
    goes_on(&ready_api, &phone).await;
    let laptop = ready_api.login("ada").await;
    assert_eq!((signed_by(&laptop.access), signed_by(&laptop.refresh)), ("old", "old"));
    goes_on(&stage.api, &laptop).await;
    let (other_ready, other_api) = stage.another(secrets(SECRET, NEW)).await;

    // Step 2, one after the other again: the new one signs. Whoever is still at step 1 takes both.
    other_ready.terminate().await;
    let (turned, turned_api) = stage.another(secrets(NEW, SECRET)).await;
    let tablet = turned_api.login("ada").await;
    assert_eq!((signed_by(&tablet.access), signed_by(&tablet.refresh)), ("new", "new"));
    for (api, tokens) in [
        (&ready_api, &phone),
        (&ready_api, &laptop),
        (&ready_api, &tablet),
        (&turned_api, &phone),
        (&turned_api, &laptop),
        (&turned_api, &tablet),
    ] {
        goes_on(api, tokens).await;
    }
    // Pairs are exchanged in either direction, and are signed by whoever gives them out.
    let (access, refresh) = refreshed(&ready_api, &tablet.refresh).await;
    assert_eq!((signed_by(&access), signed_by(&refresh)), ("old", "old"));
    let (access, refresh) = refreshed(&turned_api, &refresh).await;
    assert_eq!((signed_by(&access), signed_by(&refresh)), ("new", "new"));
    assert_eq!(ready_api.heartbeat(&access).await.0, 200);

    // And across a restart of all.
    ready.terminate().await;
    turned.terminate().await;
    drop(other_api);
    let (_last, last_api) = stage.another(secrets(NEW, SECRET)).await;
    let (access, refresh) = refreshed(&last_api, &phone.refresh).await;
    assert_eq!((signed_by(&access), signed_by(&refresh)), ("new", "new"));
    assert_eq!(last_api.heartbeat(&access).await.0, 200);
    goes_on(&last_api, &laptop).await;

    // Step 3, when the last refresh token of the old one has expired.
    let (_done, done_api) = stage.another(secrets(NEW, "")).await;
    assert_eq!(done_api.heartbeat(&access).await.0, 200);
    refreshed(&done_api, &refresh).await;
    problem(&done_api.heartbeat(&laptop.access).await, 401);
    problem(&done_api.post("token/refresh/", None, &json!({"refresh": laptop.refresh})).await, 401);
    // Which ends nothing: an instance that still takes it refreshes it.
    refreshed(&last_api, &laptop.refresh).await;
}
