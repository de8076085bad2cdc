//! What a service keeps on the machine is its user's alone: modes, owners, and what another user can reach.

mod elsewhere;
mod former;
mod names;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use super::commands::presenced;
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::tether;

/// The user `nobody`, or another that owns nothing here.
const STRANGER: u32 = 65_534;

/// Every command with what it needs to succeed on a data folder that a service has used.
const COMMANDS: [&[&str]; 5] = [
    &["migrate"],
    &["doctor"],
    &["check-offline-users"],
    &["create-user", "--username", "ada", "--email", "ada@example.com"],
    &["import-users", "users.json", "--dry-run"],
];

fn options(data: &Path, env: &[(&str, &str)]) -> PresencedOptions {
    PresencedOptions {
        data: Some(data.to_path_buf()),
        env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..PresencedOptions::default()
    }
}

async fn start(data: &Path, env: &[(&str, &str)]) -> Presenced {
    Presenced::start(options(data, env)).await
}

/// Starts a service that must refuse to start, and returns what it said.
async fn refused(data: &Path) -> String {
    let (code, output) = Presenced::try_start(options(data, &[])).await.expect_err("a start that is refused");
    assert_eq!(code, 1, "{output}");
    output
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// The folder and all that is in it.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let mut all = vec![folder.to_owned()];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        // A running server creates and removes files.
        match fs::symlink_metadata(&path) {
            Ok(found) if found.is_dir() => all.extend(walk(&path)),
            Ok(_) => all.push(path),
            Err(_) => {}
        }
    }
    all
}

fn open_to_all(folder: &Path) {
    for path in walk(folder) {
        set_mode(&path, if path.is_dir() { 0o755 } else { 0o644 });
    }
}

/// Those below the folder that other users have access to, with their modes.
fn open(folder: &Path) -> Vec<String> {
    let look = |path: PathBuf| {
        let mode = fs::symlink_metadata(&path).ok()?.mode() & 0o7777;
        (mode & 0o077 != 0).then(|| format!("{mode:o} {}", path.display()))
    };
    walk(folder).into_iter().filter_map(look).collect()
}

fn is_root(folder: &Path) -> bool {
    fs::metadata(folder).unwrap().uid() == 0
}

/// Runs a program as another user, who knows every path.
fn as_stranger(program: &str, arguments: &[&str]) -> Output {
    let user = STRANGER.to_string();
    let command = Command::new("setpriv")
        .args(["--reuid", &user, "--regid", &user, "--clear-groups", program])
        .args(arguments)
        .output();
    command.expect("setpriv is installed")
}

/// A folder that other users may pass through.
fn public_folder(name: &str) -> TempDir {
    let folder = tether::folder(name);
    set_mode(folder.path(), 0o755);
    folder
}

#[tokio::test]
async fn another_user_can_neither_reach_the_embedded_redis_nor_read_a_file() {
    let folder = public_folder("strangers");
    let data = folder.path().join("data");
    // A folder that was there before, as systemd and Docker make them.
    fs::create_dir(&data).unwrap();
    set_mode(&data, 0o755);
    let service = start(&data, &[]).await;
    assert_eq!(open(&data), [""; 0]);
    assert!(service.stderr().contains("was open to other users"), "{}", service.stderr());
    assert_eq!(service.redis_cli(&["CONFIG", "GET", "port"]), "port\n0", "no TCP");
    let socket = service.redis_socket();
    assert_eq!(mode(socket.parent().unwrap()), 0o700);
    // By modes alone where the tests have no other user to run as.
    if is_root(&data) {
        let asked = as_stranger("redis-cli", &["-s", &socket.display().to_string(), "PING"]);
        assert!(!String::from_utf8_lossy(&asked.stdout).contains("PONG"), "{asked:?}");
        for path in walk(&data) {
            let read = as_stranger("cat", &[&path.display().to_string()]);
            assert!(!read.status.success() && read.stdout.is_empty(), "{}", path.display());
        }
    }
}

#[tokio::test]
async fn every_command_closes_what_it_finds_open() {
    let folder = public_folder("mended");
    let data = folder.path().join("data");
    fs::write(folder.path().join("users.json"), "[]").unwrap();
    let service = start(&data, &[]).await;
    assert_eq!(service.terminate().await, 0);
    let kept = walk(&data);
    for name in ["presence.db", "jwt-secret", "generated-admin-password", "appendonlydir", "redis.log"] {
        assert!(kept.iter().any(|path| path.ends_with(name)), "{name} is looked at: {kept:?}");
    }
    for command in COMMANDS {
        open_to_all(&data);
        let command: Vec<String> = command
            .iter()
            .map(|word| {
                if *word == "users.json" {
                    format!("{}/users.json", folder.path().display())
                } else {
                    (*word).into()
                }
            })
            .collect();
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let output = presenced(&data, &[], &command);
        assert!(output.status.success(), "{command:?}: {output:?}");
        let used_redis = ["doctor", "check-offline-users"].contains(&command[0]);
        let left: Vec<String> =
            open(&data).into_iter().filter(|path| used_redis || !path.contains("/redis/")).collect();
        assert_eq!(left, [""; 0], "{command:?}");
    }
    open_to_all(&data);
    let _service = start(&data, &[]).await;
    assert_eq!(open(&data), [""; 0]);
    // While the service runs, too, for its files are the same.
    open_to_all(&data);
    assert!(presenced(&data, &[], &["doctor"]).status.success());
    assert_eq!(open(&data), [""; 0]);
}

#[tokio::test]
async fn a_database_that_a_url_names_is_its_owners_alone_and_its_folder_stays_as_it_is() {
    let folder = public_folder("url");
    let (there, missing) = (folder.path().join("there"), folder.path().join("missing"));
    fs::create_dir(&there).unwrap();
    set_mode(&there, 0o755);
    let target = there.join("target.db");
    symlink(&target, there.join("link.db")).unwrap();
    for (file, companions_of) in [
        (there.join("users.db"), there.join("users.db")),
        (missing.join("users.db"), missing.join("users.db")),
        (there.join("link.db"), target),
    ] {
        let url = format!("sqlite://{}", file.display());
        // Each database has an embedded server of its own.
        let data = folder.path().join(format!("data-{}", file.display().to_string().replace('/', "-")));
        for life in 0..2 {
            let service = start(&data, &[("DATABASE_URL", &url)]).await;
            for suffix in ["", "-wal", "-shm"] {
                let path = PathBuf::from(format!("{}{suffix}", companions_of.display()));
                assert_eq!(mode(&path), 0o600, "{} in life {life}", path.display());
                // Left open by an earlier version that was killed.
                set_mode(&path, 0o644);
            }
            service.kill9().await;
        }
    }
    assert_eq!((mode(&there), mode(&missing)), (0o755, 0o700));
}

#[tokio::test]
async fn a_data_folder_of_another_user_or_another_purpose_is_refused_with_what_to_do() {
    let folder = public_folder("refused");
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("notes"), "").unwrap();
    set_mode(&data, 0o755);
    for command in COMMANDS.into_iter().filter(|command| command[0] != "import-users") {
        let output = presenced(&data, &[], command);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // The doctor looks for the database first.
        let expected = if command[0] == "doctor" { "there is no database" } else { "chmod 700" };
        assert!(!output.status.success() && said.contains(expected), "{command:?}: {said}");
    }
    let said = refused(&data).await;
    assert!(
        said.contains("holds what presenced did not put there") && said.contains("PRESENCE_DATA_DIR"),
        "{said}"
    );
    assert_eq!((mode(&data), walk(&data).len()), (0o755, 2), "nothing is changed");

    // `/tmp` is sticky, and root's for all but root.
    let said = refused(Path::new("/tmp")).await;
    assert!(said.contains("PRESENCE_DATA_DIR"), "{said}");
    assert_eq!(mode(Path::new("/tmp")) & 0o1777, 0o1777);

    fs::remove_file(data.join("notes")).unwrap();
    if is_root(&data) {
        chown(&data, Some(STRANGER), Some(STRANGER)).unwrap();
        let said = refused(&data).await;
        assert!(said.contains("belongs to user 65534") && said.contains("chown"), "{said}");
        chown(&data, Some(0), Some(0)).unwrap();
        // A secret that another user has put into a folder that was open.
        fs::write(data.join("jwt-secret"), "known to another user, and long enough for a secret").unwrap();
        chown(data.join("jwt-secret"), Some(STRANGER), Some(STRANGER)).unwrap();
        let said = refused(&data).await;
        assert!(said.contains("jwt-secret belongs to user 65534"), "{said}");
    }
}

#[tokio::test]
async fn something_else_in_the_place_of_the_socket_is_refused_and_left_alone() {
    let folder = tether::folder("squat");
    let data = folder.path().join("data");
    let socket = data.join("redis/redis.sock");
    fs::create_dir_all(data.join("redis")).unwrap();
    fs::write(&socket, "a file").unwrap();
    let said = refused(&data).await;
    assert!(said.contains("redis.sock is not a socket: move it away"), "{said}");
    assert_eq!(fs::read_to_string(&socket).unwrap(), "a file");
    fs::remove_file(&socket).unwrap();

    let listener = UnixListener::bind(&socket).unwrap();
    let said = refused(&data).await;
    assert!(said.contains("another process listens at") && said.contains("redis.sock"), "{said}");
    // Left behind by a process that was killed, it is no obstacle.
    drop(listener);
    assert!(socket.exists());
    let service = start(&data, &[]).await;
    assert_eq!(service.redis_cli(&["PING"]), "PONG");

    let elsewhere = folder.path().join("elsewhere");
    fs::write(&elsewhere, "").unwrap();
    let odd = folder.path().join("odd");
    fs::create_dir(&odd).unwrap();
    symlink(&elsewhere, odd.join("redis")).unwrap();
    let said = refused(&odd).await;
    assert!(said.contains("redis"), "{said}");
}
