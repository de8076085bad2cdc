//! A redis-server that a former service has left behind on the data: of this version, of the one before, or stopped.

use std::fs;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::{open, open_to_all, presenced, start};
use crate::support::http::Api;
use crate::support::poll::eventually;
use crate::support::redis::RedisServer;
use crate::support::tether::{self, Start, Tether};

/// Starts a redis-server on a folder without the service that would end it, and waits until it answers.
async fn orphan(folder: &Path, output: &Path, arguments: &[&str], is_up: impl Fn() -> bool) -> Tether {
    fs::create_dir_all(folder).unwrap();
    let folder = folder.canonicalize().unwrap().display().to_string();
    let own = ["redis-server", "--dir", &folder, "--appendonly", "yes", "--save", ""];
    let command: Vec<String> = own.iter().chain(arguments).map(ToString::to_string).collect();
    let tether =
        Tether::start(&Start { folder: output, signal: "KILL", user: None, env: &[], command: &command });
    eventually(Duration::from_secs(10), async || if is_up() { Ok(()) } else { Err(tether.output()) }).await;
    tether
}

fn set(target: &[&str]) {
    let wrote =
        std::process::Command::new("redis-cli").args(target).args(["SET", "kept", "yes"]).output().unwrap();
    assert_eq!(wrote.stdout, b"OK\n", "{wrote:?}");
}

#[tokio::test]
async fn a_server_that_still_runs_is_found_through_its_socket_and_ended_first() {
    let folder = tether::folder("orphan");
    let data = folder.path().join("data");
    let socket = data.join("redis/redis.sock");
    let (path, output) = (socket.display().to_string(), tether::folder("output"));
    let arguments = ["--port", "0", "--unixsocket", path.as_str()];
    let orphan =
        orphan(&data.join("redis"), output.path(), &arguments, || UnixStream::connect(&socket).is_ok()).await;
    set(&["-s", &path]);
    let service = start(&data, &[]).await;
    assert_eq!(orphan.exit_code(), Some(0), "it has written its data and ended");
    assert_eq!(service.redis_cli(&["GET", "kept"]), "yes");
}

#[tokio::test]
async fn an_upgrade_ends_the_server_of_the_version_before_and_forgets_its_port() {
    let folder = tether::folder("upgrade");
    let data = folder.path().join("data");
    let (port, output) = (tether::free_port(), tether::folder("output"));
    let text = port.to_string();
    let arguments = ["--port", text.as_str(), "--bind", "127.0.0.1"];
    let is_up = || TcpStream::connect(("127.0.0.1", port)).is_ok();
    let former = orphan(&data.join("redis"), output.path(), &arguments, is_up).await;
    fs::write(data.join("redis/port"), &text).unwrap();
    set(&["-p", &text]);
    open_to_all(&data);
    let service = start(&data, &[]).await;
    assert_eq!(former.exit_code(), Some(0));
    assert_eq!(service.redis_cli(&["GET", "kept"]), "yes");
    assert!(!data.join("redis/port").exists() && open(&data).is_empty(), "{:?}", open(&data));
}

#[test]
fn a_command_beside_a_service_whose_redis_it_cannot_reach_says_what_to_do() {
    let folder = tether::folder("unreachable");
    let data = folder.path().join("data");
    assert!(presenced(&data, &[], &["migrate"]).status.success());
    fs::create_dir(data.join("redis")).unwrap();
    let lock = fs::File::create(data.join("lock")).unwrap();
    lock.try_lock().unwrap();
    for (file, words) in [("unrelated", "redis.log"), ("port", "of an earlier version")] {
        fs::write(data.join("redis").join(file), "1").unwrap();
        let output = presenced(&data, &[], &["doctor"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(words), "{said}");
    }
}

#[tokio::test]
async fn a_stranger_on_the_port_of_the_version_before_is_left_alone() {
    let folder = tether::folder("stranger");
    let data = folder.path().join("data");
    let stranger = RedisServer::start(&[]).await;
    fs::create_dir_all(data.join("redis")).unwrap();
    for port in [stranger.port().to_string(), "nonsense".to_owned()] {
        fs::write(data.join("redis/port"), port).unwrap();
        let service = start(&data, &[]).await;
        assert!(!data.join("redis/port").exists());
        assert_eq!(service.terminate().await, 0);
    }
    assert_eq!(stranger.cli(&["PING"]), "PONG");
}

#[tokio::test]
async fn a_start_waits_for_a_former_server_that_has_lost_its_socket_and_not_ended() {
    let folder = tether::folder("waits");
    let data = folder.path().join("data");
    fs::create_dir_all(data.join("redis")).unwrap();
    // What such a server has for as long as its process lives.
    let lock = fs::File::create(data.join("redis/lock")).unwrap();
    lock.try_lock().unwrap();
    let ends = async {
        eventually(Duration::from_secs(20), async || {
            // The step before Redis.
            if data.join("jwt-secret").exists() { Ok(()) } else { Err("the start has not come so far") }
        })
        .await;
        assert!(!data.join("redis/redis.pid").exists(), "no second server");
        drop(lock);
    };
    let (service, ()) = tokio::join!(start(&data, &[]), ends);
    assert_eq!(service.redis_cli(&["PING"]), "PONG");
    // The server that runs now has the lock.
    let lock = fs::File::open(data.join("redis/lock")).unwrap();
    assert!(lock.try_lock().is_err());
    assert_eq!(service.terminate().await, 0);
    lock.try_lock().unwrap();
}

#[tokio::test]
async fn a_server_that_was_stopped_when_its_service_was_killed_ends_too() {
    let folder = tether::folder("stopped");
    let data = folder.path().join("data");
    let service = start(&data, &[]).await;
    let api = Api::new(service.base_url());
    let tokens = api.login_with("admin", &service.printed("admin password: ").unwrap()).await;
    let pid = fs::read_to_string(data.join("redis/redis.pid")).unwrap().trim().parse().unwrap();
    tether::signal(pid, "STOP");
    service.kill9().await;
    tether::signal(pid, "CONT");
    eventually(Duration::from_secs(10), async || if tether::is_alive(pid) { Err(pid) } else { Ok(()) }).await;
    let service = start(&data, &[]).await;
    let (status, body, _) = Api::new(service.base_url()).heartbeat(&tokens.access).await;
    assert_eq!(status, 200, "{body}");
}
