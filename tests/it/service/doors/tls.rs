//! TLS on real connections: both HTTPs, renewal, and hostile handshakes.

use std::path::Path;
use std::time::Duration;

use reqwest::tls::TlsInfo;
use reqwest::{Client, Version};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::support::http::{Api, PASSWORD};
use crate::support::poll::eventually;
use crate::support::process::{Presenced, PresencedOptions};
use crate::support::tether;
use crate::support::tls::{Authority, Pair, plain_client};

async fn start(pair: &Pair, data: &Path) -> Result<Presenced, (i32, String)> {
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    Presenced::try_start(PresencedOptions {
        data: Some(data.to_path_buf()),
        env: vec![
            ("PRESENCE_TLS_CERT".to_owned(), text(&pair.certificate)),
            ("PRESENCE_TLS_KEY".to_owned(), text(&pair.key)),
            ("PRESENCE_ADMIN_PASSWORD".to_owned(), PASSWORD.to_owned()),
        ],
        ..PresencedOptions::default()
    })
    .await
}

/// The version spoken, and the certificate that the connection was made with.
async fn look(client: &Client, service: &Presenced) -> reqwest::Result<(Version, Vec<u8>)> {
    let answer = client.get(format!("{}/healthz", service.base_url())).send().await?;
    let info = answer.extensions().get::<TlsInfo>().and_then(TlsInfo::peer_certificate);
    Ok((answer.version(), info.unwrap_or_default().to_vec()))
}

#[tokio::test]
async fn both_versions_of_http_are_spoken_over_tls() {
    let (folder, authority) = (tether::folder("tls"), Authority::new());
    let (pair, _) = authority.issue(folder.path());
    let service = start(&pair, &folder.path().join("data")).await.unwrap();
    assert!(service.base_url().starts_with("https://127.0.0.1:"), "{}", service.base_url());
    let clients =
        [(authority.client(), Version::HTTP_2), (authority.client().http1_only(), Version::HTTP_11)];
    for (client, version) in clients {
        let client = client.build().unwrap();
        assert_eq!(look(&client, &service).await.unwrap().0, version);
        let api = Api::with(service.base_url(), client);
        let tokens = api.login("admin").await;
        // Many at once share the connection.
        let beats = (0..200).map(|_| api.heartbeat(&tokens.access));
        for (status, body, headers) in futures_util::future::join_all(beats).await {
            assert_eq!(status, 200, "{body}");
            assert_eq!(headers["strict-transport-security"], "max-age=31536000");
        }
        let long = format!("/healthz?{}", "x".repeat(9 * 1024));
        assert_eq!(api.get(&long, None).await.0, 414);
    }
    // Clear text gets no further than a stranger's certificate would.
    let address = service.base_url().replace("https", "http");
    assert!(plain_client().build().unwrap().get(format!("{address}/healthz")).send().await.is_err());
    let stranger = Authority::new().client().build().unwrap();
    assert!(look(&stranger, &service).await.is_err());
    let stopping = Instant::now();
    assert_eq!(service.terminate().await, 0);
    assert!(stopping.elapsed() < Duration::from_secs(4), "idle connections do not use up the grace");
}

#[tokio::test]
async fn a_new_certificate_is_taken_while_connections_live_on() {
    let (folder, authority) = (tether::folder("renewal"), Authority::new());
    let (pair, first) = authority.issue(folder.path());
    let service = start(&pair, &folder.path().join("data")).await.unwrap();
    let old = authority.client().build().unwrap();
    assert_eq!(look(&old, &service).await.unwrap().1, first);
    let said = |words: &str| service.stderr().matches(words).count();
    let newest = async || look(&authority.client().build().unwrap(), &service).await.unwrap().1;
    let shows = async |expected: &[u8]| {
        eventually(Duration::from_secs(15), async || {
            if newest().await == expected { Ok(()) } else { Err(service.stderr()) }
        })
        .await;
    };

    let (_, second) = authority.issue(folder.path());
    shows(&second).await;
    assert_eq!(look(&old, &service).await.unwrap().1, first, "the connection of before goes on");

    // A key of another certificate, then none: the former pair stays.
    let key = std::fs::read_to_string(&pair.key).unwrap();
    let (_, third) = authority.issue(folder.path());
    let third_key = std::fs::read_to_string(&pair.key).unwrap();
    std::fs::write(&pair.key, &key).unwrap();
    let trouble = "the former certificate stays in use";
    eventually(
        Duration::from_secs(15),
        async || if said(trouble) == 1 { Ok(()) } else { Err(service.stderr()) },
    )
    .await;
    assert_eq!(newest().await, second);
    std::fs::write(&pair.key, "no key").unwrap();
    eventually(
        Duration::from_secs(15),
        async || if said(trouble) == 2 { Ok(()) } else { Err(service.stderr()) },
    )
    .await;
    std::fs::write(&pair.key, &third_key).unwrap();
    shows(&third).await;
    eventually(
        Duration::from_secs(5),
        async || if said("good again") == 1 { Ok(()) } else { Err(service.stderr()) },
    )
    .await;
    assert_eq!((said(trouble), said("PRIVATE")), (2, 0), "{}", service.stderr());
}

#[tokio::test]
async fn handshakes_that_never_end_hold_nobody_up_and_are_cut_off() {
    let (folder, authority) = (tether::folder("handshakes"), Authority::new());
    let (pair, _) = authority.issue(folder.path());
    let service = start(&pair, &folder.path().join("data")).await.unwrap();
    let address = service.base_url().trim_start_matches("https://").to_owned();
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(&address).await.unwrap());
    }
    assert!(look(&authority.client().build().unwrap(), &service).await.is_ok());
    let begun = Instant::now();
    for client in &mut silent {
        let read = timeout(Duration::from_secs(20), client.read(&mut [0; 16])).await;
        assert!(matches!(read, Ok(Ok(0) | Err(_))), "{read:?}");
    }
    assert!(begun.elapsed() > Duration::from_secs(5), "they were given their time");
}

#[tokio::test]
async fn a_pair_that_cannot_be_used_ends_the_start_and_shows_nothing_of_the_key() {
    let (folder, authority) = (tether::folder("bad-pair"), Authority::new());
    let data = folder.path().join("data");
    let (pair, _) = authority.issue(folder.path());
    let key = std::fs::read_to_string(&pair.key).unwrap();
    let secret = key.lines().nth(1).unwrap().to_owned();
    let broken = key.replace("-----END", "----END");
    let unlike = {
        let other = tether::folder("other");
        let (other, _) = authority.issue(other.path());
        std::fs::read_to_string(other.key).unwrap()
    };
    for (text, must_say) in [
        (unlike.as_str(), "cannot be used together"),
        (broken.as_str(), "holds no private key"),
        ("", "holds no private key"),
    ] {
        std::fs::write(&pair.key, text).unwrap();
        let (code, output) = start(&pair, &data).await.expect_err(must_say);
        assert!(code == 1 && output.contains(must_say) && output.contains("PRESENCE_TLS_KEY"), "{output}");
        assert!(!output.contains(&secret), "{output}");
    }
    std::fs::remove_file(&pair.key).unwrap();
    let (_, output) = start(&pair, &data).await.expect_err("no key");
    assert!(output.contains("cannot read") && output.contains("key.pem"), "{output}");
    assert!(!data.exists(), "nothing was made");
}
