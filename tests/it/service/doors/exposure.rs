//! The embedded default does not open itself to the world with a password that has stood on a screen.

use std::path::Path;

use serde_json::json;

use crate::support::http::Api;
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::tether;

const BEYOND: &str = "0.0.0.0:0";

async fn start(data: &Path, env: &[(&str, &str)]) -> Result<Presenced, (i32, String)> {
    Presenced::try_start(PresencedOptions {
        data: Some(data.to_path_buf()),
        env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..PresencedOptions::default()
    })
    .await
}

fn api(service: &Presenced) -> Api {
    Api::new(&service.base_url().replace("0.0.0.0", "127.0.0.1"))
}

fn assert_refused(started: Result<Presenced, (i32, String)>, words: &str) {
    let (code, output) = started.expect_err("an open door with a generated password");
    assert_eq!(code, 1, "{output}");
    for word in
        [words, "refusing to listen on 0.0.0.0", "PRESENCE_ALLOW_GENERATED_PASSWORD", "PRESENCE_LISTEN"]
    {
        assert!(output.contains(word), "{word}: {output}");
    }
}

#[tokio::test]
async fn a_first_start_beyond_this_machine_needs_a_password_that_somebody_chose() {
    let folder = tether::folder("exposed");
    let data = folder.path().join("data");
    assert_refused(start(&data, &[("PRESENCE_LISTEN", BEYOND)]).await, "PRESENCE_ADMIN_PASSWORD");
    assert!(!data.exists(), "nothing was made");
    let chosen = [("PRESENCE_LISTEN", BEYOND), ("PRESENCE_ADMIN_PASSWORD", "a password of the test")];
    let service = start(&data, &chosen).await.unwrap();
    api(&service).login_with("admin", "a password of the test").await;
    assert_eq!(service.terminate().await, 0);
    // The account is there now, and needs no setting any more.
    let service = start(&data, &chosen[..1]).await.unwrap();
    assert!(!service.stderr().contains("WARN"), "{}", service.stderr());
}

#[tokio::test]
async fn a_generated_password_stays_on_this_machine_until_it_is_changed() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tether::folder("generated");
    let data = folder.path().join("data");
    let service = start(&data, &[]).await.unwrap();
    let password = service.printed("admin password: ").unwrap();
    let kept = data.join("generated-admin-password");
    assert_eq!(std::fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!std::fs::read_to_string(&kept).unwrap().contains(&password), "the hash alone");
    assert_eq!(service.terminate().await, 0);
    let beyond = [("PRESENCE_LISTEN", BEYOND)];
    assert_refused(start(&data, &beyond).await, "change it");
    // A password in the settings changes none that is there.
    let chosen = [beyond[0], ("PRESENCE_ADMIN_PASSWORD", "a password of the test")];
    assert_refused(start(&data, &chosen).await, "change it");
    let told = [beyond[0], ("PRESENCE_ALLOW_GENERATED_PASSWORD", "true")];
    let service = start(&data, &told).await.unwrap();
    assert!(service.stderr().contains("with the generated password"), "{}", service.stderr());
    assert_eq!(service.terminate().await, 0);

    let service = start(&data, &[]).await.unwrap();
    let tokens = api(&service).login_with("admin", &password).await;
    let path = format!("admin/users/{}/", tokens.user_id());
    let change = json!({"password": "a password that somebody chose"});
    let (status, body, _) = api(&service).patch(&path, Some(&tokens.access), &change).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(service.terminate().await, 0);
    let service = start(&data, &beyond).await.unwrap();
    assert!(!kept.exists(), "it has gone with the password");
    assert!(!service.stderr().contains("generated"), "{}", service.stderr());
    api(&service).login_with("admin", "a password that somebody chose").await;
}

#[tokio::test]
async fn told_to_a_first_start_opens_itself_with_a_warning() {
    let folder = tether::folder("told");
    let told = [("PRESENCE_LISTEN", BEYOND), ("PRESENCE_ALLOW_GENERATED_PASSWORD", "true")];
    let service = start(&folder.path().join("data"), &told).await.unwrap();
    assert!(service.printed("admin password: ").is_some());
    assert!(service.stderr().contains("with the generated password"), "{}", service.stderr());
}
