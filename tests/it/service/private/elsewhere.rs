//! A data folder whose path is too long for a socket: the socket is in a private folder elsewhere.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::{mode, options, presenced, refused, set_mode, start};
use crate::support::http::Api;
use crate::support::poll::eventually;
use crate::support::process::Presenced;
use crate::support::tether;

/// A folder for temporary files, and a data folder whose path is too long.
struct Long {
    folder: TempDir,
    temporary: PathBuf,
    data: PathBuf,
}

impl Long {
    fn new() -> Self {
        let folder = tether::folder("long");
        let temporary = folder.path().join("t");
        fs::create_dir(&temporary).unwrap();
        let data = folder.path().join("a-long-name".repeat(5)).join("b".repeat(60)).join("data");
        Self { folder, temporary, data }
    }

    async fn start(&self) -> Presenced {
        start(&self.data, &[("TMPDIR", self.temporary.to_str().unwrap())]).await
    }

    /// The private folders there are.
    fn elsewhere(&self) -> Vec<PathBuf> {
        fs::read_dir(&self.temporary).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

fn check(socket: &Path) {
    assert!(socket.as_os_str().len() <= 102, "{}", socket.display());
    let folder = fs::symlink_metadata(socket.parent().unwrap()).unwrap();
    assert!(folder.is_dir() && mode(socket.parent().unwrap()) == 0o700, "{folder:?}");
}

#[tokio::test]
async fn the_socket_of_a_long_path_is_in_a_private_folder_that_goes_with_the_service() {
    let long = Long::new();
    let service = long.start().await;
    let socket = service.redis_socket();
    check(&socket);
    assert_eq!(long.elsewhere(), [socket.parent().unwrap()]);
    assert_eq!(service.redis_cli(&["PING"]), "PONG");
    for command in ["doctor", "check-offline-users"] {
        // With another folder for temporary files: the data folder tells where the socket is.
        let output = presenced(&long.data, &[], &[command]);
        assert!(output.status.success(), "{command} beside the service: {output:?}");
    }
    // A shorter way to the same folder, and so to the same server.
    let short = long.folder.path().join("short");
    symlink(&long.data, &short).unwrap();
    assert!(presenced(&short, &[], &["doctor"]).status.success());
    assert_eq!(service.terminate().await, 0);
    assert!(long.elsewhere().is_empty() && !long.data.join("redis/socket-path").exists());

    // A command that starts a server for itself leaves nothing behind either.
    let temporary = long.temporary.to_str().unwrap();
    assert!(presenced(&long.data, &[("TMPDIR", temporary)], &["doctor"]).status.success());
    assert!(long.elsewhere().is_empty());

    // Reached by the shorter way, the socket is in the data folder: a command that comes by the longer finds it.
    let service = start(&short, &[]).await;
    assert_eq!(service.redis_socket(), short.join("redis/redis.sock"));
    assert!(presenced(&long.data, &[], &["doctor"]).status.success());
}

#[tokio::test]
async fn a_killed_service_is_followed_by_one_that_removes_what_was_left_elsewhere() {
    let long = Long::new();
    let service = long.start().await;
    let password = service.printed("admin password: ").unwrap();
    let tokens = Api::new(service.base_url()).login_with("admin", &password).await;
    let former = service.redis_socket();
    service.kill9().await;
    let service = long.start().await;
    check(&service.redis_socket());
    assert_eq!(long.elsewhere(), [service.redis_socket().parent().unwrap()]);
    assert_ne!(service.redis_socket(), former);
    let (status, body, _) = Api::new(service.base_url()).heartbeat(&tokens.access).await;
    assert_eq!(status, 200, "{body}");
}

#[tokio::test]
async fn a_copy_of_a_data_folder_leaves_the_server_of_the_original_alone() {
    let long = Long::new();
    let service = long.start().await;
    let copy = long.data.with_file_name("copy");
    let copied = std::process::Command::new("cp").arg("-a").args([&long.data, &copy]).status().unwrap();
    assert!(copied.success());
    let second = start(&copy, &[("TMPDIR", long.temporary.to_str().unwrap())]).await;
    assert_ne!(second.redis_socket(), service.redis_socket());
    assert_eq!((second.redis_cli(&["PING"]), service.redis_cli(&["PING"])), ("PONG".into(), "PONG".into()));
    assert_eq!(second.terminate().await, 0);
    assert_eq!(service.redis_cli(&["PING"]), "PONG");
}

#[tokio::test]
async fn a_server_that_dies_comes_back_at_its_socket_though_the_folder_is_gone() {
    let long = Long::new();
    let service = long.start().await;
    let api = Api::new(service.base_url());
    let tokens = api.login_with("admin", &service.printed("admin password: ").unwrap()).await;
    let socket = service.redis_socket();
    let info = service.redis_cli(&["INFO", "server"]);
    let pid = info.lines().find_map(|line| line.strip_prefix("process_id:")).unwrap().trim().parse().unwrap();
    // As a cleaner of old temporary files does.
    fs::remove_dir_all(socket.parent().unwrap()).unwrap();
    tether::signal(pid, "KILL");
    eventually(Duration::from_secs(10), async || {
        let (status, body, _) = api.heartbeat(&tokens.access).await;
        if status == 200 && socket.exists() { Ok(()) } else { Err((status, body)) }
    })
    .await;
    check(&socket);
    assert_eq!(service.terminate().await, 0);
    assert!(long.elsewhere().is_empty());
}

#[tokio::test]
async fn a_folder_for_temporary_files_that_protects_nothing_is_not_used() {
    let long = Long::new();
    // Whoever may write here may rename what is in it.
    set_mode(&long.temporary, 0o777);
    let service = long.start().await;
    check(&service.redis_socket());
    assert!(long.elsewhere().is_empty() && !service.redis_socket().starts_with(&long.temporary));
    assert_eq!(service.terminate().await, 0);
    set_mode(&long.temporary, 0o1777);
    let service = long.start().await;
    assert!(service.redis_socket().starts_with(&long.temporary));
}

#[tokio::test]
async fn a_note_that_leads_to_a_stranger_is_not_followed() {
    let long = Long::new();
    let redis = long.data.join("redis");
    fs::create_dir_all(&redis).unwrap();
    let foreign = long.temporary.join("presenced-foreign");
    fs::create_dir(&foreign).unwrap();
    set_mode(&foreign, 0o777);
    let socket = foreign.join("redis.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    fs::write(redis.join("socket-path"), socket.to_str().unwrap()).unwrap();
    let service = long.start().await;
    assert_ne!(service.redis_socket(), socket);
    assert!(socket.exists(), "what is not ours stays");
    let mut twice = options(&long.data, &[]);
    twice.env.push(("TMPDIR".into(), long.temporary.display().to_string()));
    let (_, said) = Presenced::try_start(twice).await.expect_err("two on one folder");
    assert!(said.contains("another presenced uses the folder"), "{said}");
    drop(service);
    let said = refused(Path::new("/proc/self/no/such")).await;
    assert!(said.contains("PRESENCE_DATA_DIR"), "{said}");
}
