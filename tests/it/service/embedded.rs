//! The embedded default: starts with nothing, stops with nothing lost, and comes back after any end.

use std::time::Duration;

use tokio::time::Instant;

use crate::support::http::{Api, Tokens};
use crate::support::poll::eventually;
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::tether;

async fn start(data: &std::path::Path, env: &[(&str, &str)]) -> Presenced {
    Presenced::start(PresencedOptions {
        ttl: Some(Duration::from_mins(1)),
        data: Some(data.to_path_buf()),
        env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..PresencedOptions::default()
    })
    .await
}

fn is_up(socket: &std::path::Path) -> bool {
    std::os::unix::net::UnixStream::connect(socket).is_ok()
}

async fn sign_in(service: &Presenced, password: &str) -> (Api, Tokens) {
    let api = Api::new(service.base_url());
    let tokens = api.login_with("admin", password).await;
    (api, tokens)
}

async fn status(api: &Api, tokens: &Tokens) -> String {
    // Not an activity of user 1's, were he silent: asked of SQL's mirror through the list would be; so ask Redis's answer.
    let (_, body, _) = api.get("me/", Some(&tokens.access)).await;
    body["user"]["online_status"].as_str().unwrap_or("none").to_owned()
}

#[tokio::test]
async fn a_sigterm_stops_the_child_too_and_a_new_start_finds_everything() {
    let folder = tether::folder("embedded");
    let data = folder.path().join("data");
    let service = start(&data, &[]).await;
    let password = service.printed("admin password: ").expect("the password is printed at the first start");
    let (api, tokens) = sign_in(&service, &password).await;
    assert_eq!(status(&api, &tokens).await, "online");
    let socket = service.redis_socket();
    let stopping = Instant::now();
    assert_eq!(service.terminate().await, 0);
    assert!(stopping.elapsed() < Duration::from_secs(10), "{:?}", stopping.elapsed());
    eventually(
        Duration::from_secs(5),
        async || if is_up(&socket) { Err("redis-server is still up") } else { Ok(()) },
    )
    .await;

    let service = start(&data, &[]).await;
    assert_eq!(service.printed("admin password: "), None, "printed once");
    assert_eq!(service.redis_socket(), socket, "the same socket, so that an operator finds it again");
    let api = Api::new(service.base_url());
    assert_eq!(status(&api, &tokens).await, "online", "token, secret and presence have lasted");
    let key = format!("presence:{{0}}:user:{}", tokens.user_id());
    assert!(!service.redis_cli(&["HGET", &key, "since"]).is_empty());
}

#[tokio::test]
async fn a_kill_9_leaves_no_orphan_and_nothing_lost() {
    let folder = tether::folder("killed");
    let data = folder.path().join("data");
    let mut first: Option<(String, Tokens)> = None;
    for life in 0..5 {
        let service = start(&data, &[]).await;
        let socket = service.redis_socket();
        let api = Api::new(service.base_url());
        if let Some((_, tokens)) = &first {
            assert_eq!(status(&api, tokens).await, "online", "life {life}");
        } else {
            let password = service.printed("admin password: ").unwrap();
            let (_, tokens) = sign_in(&service, &password).await;
            first = Some((password, tokens));
        }
        // What is acknowledged is on its way to the file: everysec.
        let tokens = &first.as_ref().unwrap().1;
        eventually(Duration::from_secs(5), async || {
            let info = service.redis_cli(&["INFO", "persistence"]);
            if info.contains("aof_pending_bio_fsync:0") && info.contains("aof_buffer_length:0") {
                Ok(())
            } else {
                Err(info)
            }
        })
        .await;
        assert_eq!(api.heartbeat(&tokens.access).await.0, 200);
        service.kill9().await;
        if life % 2 == 0 {
            // Not always waited for: a start right away must do as well.
            eventually(
                Duration::from_secs(5),
                async || if is_up(&socket) { Err("an orphan") } else { Ok(()) },
            )
            .await;
        }
    }
}

#[tokio::test]
async fn a_second_service_on_the_same_folder_is_told_so() {
    let folder = tether::folder("twice");
    let data = folder.path().join("data");
    let _first = start(&data, &[]).await;
    let second =
        Presenced::try_start(PresencedOptions { data: Some(data), ..PresencedOptions::default() }).await;
    let (code, output) = second.expect_err("two on one folder");
    assert_eq!(code, 1);
    assert!(
        output.contains("another presenced uses the folder") && output.contains("PRESENCE_DATA_DIR"),
        "{output}"
    );
}

#[tokio::test]
async fn a_redis_child_that_dies_is_started_again_with_its_data() {
    let folder = tether::folder("child");
    let data = folder.path().join("data");
    let service = start(&data, &[("PRESENCE_ADMIN_PASSWORD", "a password of the test")]).await;
    let line = service.printed("admin password: ").unwrap();
    assert!(!line.contains("of the test"), "a password that was set is not printed: {line}");
    let (api, tokens) = sign_in(&service, "a password of the test").await;
    let info = service.redis_cli(&["INFO", "server"]);
    let pid = info.lines().find_map(|line| line.strip_prefix("process_id:")).unwrap();
    assert!(std::process::Command::new("kill").args(["-9", pid.trim()]).status().unwrap().success());
    eventually(Duration::from_secs(10), async || {
        let (status, body, _) = api.heartbeat(&tokens.access).await;
        if status == 200 { Ok(()) } else { Err((status, body)) }
    })
    .await;
    assert_eq!(service.terminate().await, 0);
}

#[tokio::test]
async fn a_secret_file_that_is_no_secret_is_refused() {
    let folder = tether::folder("secret");
    let data = folder.path().join("data");
    std::fs::create_dir_all(&data).unwrap();
    std::fs::write(data.join("jwt-secret"), "").unwrap();
    let started =
        Presenced::try_start(PresencedOptions { data: Some(data), ..PresencedOptions::default() }).await;
    let (code, output) = started.expect_err("an empty key signs nothing");
    assert_eq!(code, 1);
    assert!(output.contains("jwt-secret") && output.contains("delete it"), "{output}");
}

#[tokio::test]
async fn a_start_waits_for_a_redis_that_loads_much() {
    use std::fmt::Write as _;
    let folder = tether::folder("loads");
    let data = folder.path().join("data");
    let service = start(&data, &[]).await;
    let password = service.printed("admin password: ").unwrap();
    let (api, tokens) = sign_in(&service, &password).await;
    // What a day leaves behind in the append-only file.
    let mut input = String::new();
    for user in 0..300_000 {
        writeln!(input, "HSET presence:{{0}}:user:{user} status online since 1 s:phone {user}").unwrap();
    }
    std::fs::write(folder.path().join("commands"), input).unwrap();
    let loaded = std::process::Command::new("redis-cli")
        .arg("-s")
        .arg(service.redis_socket())
        .arg("--pipe")
        .stdin(std::fs::File::open(folder.path().join("commands")).unwrap())
        .stdout(std::process::Stdio::null())
        .status();
    assert!(loaded.unwrap().success());
    drop(api);
    assert_eq!(service.terminate().await, 0);
    for _ in 0..2 {
        let service = start(&data, &[]).await;
        let api = Api::new(service.base_url());
        assert_eq!(status(&api, &tokens).await, "online");
        service.kill9().await;
    }
}
