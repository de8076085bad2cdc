//! Clients that are slow, silent or too many, while others send their heartbeats.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::service::{Database, Scene};
use crate::support::mint::access_token;

const TTL: Duration = Duration::from_mins(1);

fn address(scene: &Scene) -> String {
    scene.service.base_url().trim_start_matches("http://").to_owned()
}

/// The tests' own limit of open files, where a shell has made it small.
fn open_many_files() {
    rlimit::increase_nofile_limit(8_192).unwrap();
}

/// Sends bytes as they are, and returns all that comes back until the server hangs up.
async fn raw(scene: &Scene, bytes: &[u8]) -> String {
    let mut client = TcpStream::connect(address(scene)).await.unwrap();
    let (mut reading, mut writing) = client.split();
    let mut text = Vec::new();
    // The server may hang up in the middle of what it does not want.
    let _ = tokio::join!(writing.write_all(bytes), reading.read_to_end(&mut text));
    String::from_utf8_lossy(&text).into_owned()
}

/// A thousand connections drip the heads of requests that never end.
async fn drip(mut client: TcpStream) {
    let (mut reading, mut writing) = client.split();
    let mut beat = tokio::time::interval(Duration::from_millis(500));
    let _ = writing.write_all(b"POST /api/users/heartbeat/ HTTP/1.1\r\nx-drip: ").await;
    let mut rest = [0; 64];
    loop {
        tokio::select! {
            read = reading.read(&mut rest) => if matches!(read, Ok(0) | Err(_)) { return },
            _ = beat.tick() => { let _ = writing.write_all(b"x").await; }
        }
    }
}

#[tokio::test]
async fn twelve_hundred_slow_heads_are_cut_off_while_heartbeats_go_on() {
    open_many_files();
    let scene = Scene::start(Database::Sqlite, 20, TTL, &[]).await;
    let mut slow = tokio::task::JoinSet::new();
    for _ in 0..1_200 {
        slow.spawn(drip(TcpStream::connect(address(&scene)).await.unwrap()));
    }
    let begun = Instant::now();
    let (mut beats, mut worst) = (0u32, Duration::ZERO);
    let mut token = (1..=20).map(|user| access_token(user, "phone")).cycle();
    while !slow.is_empty() {
        let asked = Instant::now();
        let (status, body, _) = scene.api.heartbeat(&token.next().unwrap()).await;
        assert_eq!(status, 200, "{body}");
        (beats, worst) = (beats + 1, worst.max(asked.elapsed()));
        while slow.try_join_next().is_some() {}
        assert!(begun.elapsed() < Duration::from_secs(30), "{} are still there", slow.len());
    }
    assert!(begun.elapsed() > Duration::from_secs(5), "they were given their time: {:?}", begun.elapsed());
    assert!(beats > 500 && worst < Duration::from_secs(1), "{beats} heartbeats, the slowest {worst:?}");
}

#[tokio::test]
async fn a_flood_of_silent_connections_displaces_itself() {
    open_many_files();
    let scene = Scene::start(Database::Sqlite, 2, TTL, &[("PRESENCE_MAX_CONNECTIONS", "64")]).await;
    let token = access_token(1, "phone");
    assert_eq!(scene.api.heartbeat(&token).await.0, 200);
    let mut silent = Vec::new();
    for _ in 0..1_000 {
        silent.push(TcpStream::connect(address(&scene)).await.unwrap());
    }
    let (status, body, _) = scene.api.heartbeat(&token).await;
    assert_eq!(status, 200, "{body}");
    // A newcomer too.
    let beat = raw(&scene, b"GET /healthz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(beat.starts_with("HTTP/1.1 200"), "{beat}");
    for client in &mut silent[..900] {
        let read = timeout(Duration::from_secs(5), client.read(&mut [0; 16])).await;
        assert!(matches!(read, Ok(Ok(0) | Err(_))), "the oldest have made room: {read:?}");
    }
    let log = scene.service.stderr();
    assert_eq!(log.matches("PRESENCE_MAX_CONNECTIONS").count(), 1, "said once: {log}");
}

#[tokio::test]
async fn a_head_that_is_too_long_gets_its_own_status() {
    let scene = Scene::start(Database::Sqlite, 2, TTL, &[]).await;
    let get = |target: &str, headers: &str| {
        format!("GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n").into_bytes()
    };
    let query = |length: usize| format!("/healthz?{}", "x".repeat(length));
    let header = |length: usize| format!("x-long: {}\r\n", "x".repeat(length));
    let problem = "application/problem+json";
    for (bytes, status, kind) in [
        (get("/healthz", &header(30_000)), "200 OK", "application/json"),
        (get(&query(8_000), &header(20_000)), "400 Bad Request", problem),
        (get(&query(9_000), ""), "414 URI Too Long", problem),
        (get("/healthz", &header(33_000)), "431 Request Header Fields Too Large", problem),
        // hyper itself refuses these, with a status alone.
        (get("/healthz", &header(70_000)), "431 Request Header Fields Too Large", ""),
        (get(&query(70_000), ""), "414 URI Too Long", ""),
        (get("/healthz", &"x: y\r\n".repeat(101)), "431 Request Header Fields Too Large", ""),
    ] {
        let answer = raw(&scene, &bytes).await;
        let head = answer.lines().next().unwrap_or_default();
        assert_eq!(head, format!("HTTP/1.1 {status}"), "{} bytes: {answer}", bytes.len());
        assert!(answer.contains(kind), "{answer}");
    }
}
