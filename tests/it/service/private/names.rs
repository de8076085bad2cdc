//! Data folders whose names have characters that mean something in a URL, in a shell or nothing in UTF-8.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use super::{COMMANDS, mode, presenced, start};
use crate::support::http::Api;
use crate::support::tether;

/// Starts a service on this folder, and finds what it did there by every other way.
async fn is_meant(parent: &Path, name: &str) {
    let data = parent.join(name).join("data");
    let service = start(&data, &[]).await;
    let api = Api::new(service.base_url());
    let tokens = api.login_with("admin", &service.printed("admin password: ").unwrap()).await;
    assert_eq!(api.heartbeat(&tokens.access).await.0, 200, "{name}");
    assert_eq!(mode(&data.join("presence.db")), 0o600, "{name}");
    assert_eq!(service.redis_socket(), data.join("redis/redis.sock"));
    // As an operator does: the line is copied into a shell.
    let line = service.printed("look into Redis: ").unwrap();
    let shown = Command::new("sh").args(["-c", &line]).output().unwrap();
    assert!(String::from_utf8_lossy(&shown.stdout).contains("online"), "{line}: {shown:?}");
    let doctor = presenced(&data, &[], &["doctor"]);
    assert!(String::from_utf8_lossy(&doctor.stdout).contains("looked at: 1 accounts"), "{name}: {doctor:?}");
    assert_eq!(service.terminate().await, 0);
    let doctor = presenced(&data, &[], &["doctor"]);
    assert!(doctor.status.success(), "{name}: {doctor:?}");
}

#[tokio::test]
async fn a_folder_is_meant_by_its_name_whatever_characters_that_has() {
    let folder = tether::folder("names");
    for name in ["job%2Fmain", "what?", "a #1 & $HOME `b`", "it's \"ü\"", "日本 \\n\u{a0}", "file:x"] {
        is_meant(folder.path(), name).await;
    }
    let made: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(made.len(), 6, "nothing is made beside them: {made:?}");
}

#[tokio::test]
async fn a_relative_folder_is_under_the_folder_of_the_process() {
    let folder = tether::folder("relative");
    for name in ["job%2Fmain/data", "file:x/data", "./data", "what?"] {
        let run = |arguments: &[&str]| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_presenced"));
            command.env_remove("DATABASE_URL").env_remove("REDIS_URL").current_dir(folder.path());
            command.args(["--data-dir", name]).args(arguments).output().unwrap()
        };
        let created = run(&["create-user", "--username", "ada", "--email", "ada@example.com"]);
        assert!(created.status.success(), "{name}: {created:?}");
        assert!(folder.path().join(name).join("presence.db").exists(), "{name}");
        let doctor = run(&["doctor"]);
        assert!(
            String::from_utf8_lossy(&doctor.stdout).contains("looked at: 1 accounts"),
            "{name}: {doctor:?}"
        );
    }
}

#[test]
fn a_url_of_sqlite_is_percent_decoded() {
    let folder = tether::folder("decoded");
    let url = format!("sqlite://{}/job%252Fmain/a%20%231.db", folder.path().display());
    let env = [("DATABASE_URL", url.as_str())];
    let made = presenced(
        &folder.path().join("data"),
        &env,
        &["create-user", "--username", "ada", "--email", "a@b.c"],
    );
    assert!(made.status.success(), "{made:?}");
    assert!(folder.path().join("job%2Fmain/a #1.db").exists());
    let doctor = presenced(&folder.path().join("data"), &env, &["doctor"]);
    assert!(doctor.status.success(), "it finds the same file: {doctor:?}");
}

#[test]
fn a_folder_whose_name_is_not_utf_8_is_refused_before_anything_is_made() {
    let folder = tether::folder("bytes");
    let data = folder.path().join(OsStr::from_bytes(b"caf\xe9"));
    for command in COMMANDS
        .into_iter()
        .filter(|command| !["doctor", "import-users"].contains(&command[0]))
        .chain([&["serve"][..]])
    {
        let output = presenced(&data, &[("PRESENCE_LISTEN", "127.0.0.1:0")], command);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && said.contains("not UTF-8") && said.contains("PRESENCE_DATA_DIR"),
            "{command:?}: {said}"
        );
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}
