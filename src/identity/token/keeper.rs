//! The keeper: fetches the keys of issuers from their URLs, in the background.
//!
//! Verifying never waits for it: it works with the keys that are known at that moment. They are fetched anew every
//! `refresh`, and sooner where a token names a key that is not known; forged tokens can do no more than that, so
//! they have a provider asked every `BETWEEN` at most. While it does not answer, or not with a set of keys, those that are
//! known go on working. An answer counts as it is: what is not in it is not trusted any more.

use std::fmt;
use std::time::Duration;

use reqwest::{Client, StatusCode, Url, redirect};
use tokio::time::{Instant, sleep, sleep_until};

use super::issuer::{Issuer, KeySource, MAX_KEYS_TRIED};
use super::jwk::{ALGORITHMS, KeySet};

/// The least time between two fetches that tokens bring about.
const BETWEEN: Duration = Duration::from_secs(5);
/// How long a fetch may take, all in all.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest answer that is read, bytes. A set of a few keys with their certificates has some 10 KiB.
const MOST_BYTES: usize = 512 * 1024;
/// The first pause after a failure, and the longest, while no token asks for a key.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// Where a set of keys is fetched, and how often.
#[derive(Clone)]
pub struct KeysUrl {
    url: Url,
    refresh: Duration,
}

impl fmt::Debug for KeysUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The rest may hold a password or a token.
        write!(f, "KeysUrl({})", self.url.host_str().unwrap_or_default())
    }
}

impl KeysUrl {
    /// A URL to be fetched every `refresh`; without TLS only on this machine, or where `allow_http` says that the way
    /// there is safe.
    ///
    /// # Errors
    /// What it may be.
    pub fn parse(text: &str, refresh: Duration, allow_http: bool) -> Result<Self, String> {
        const FORM: &str = "must be a URL that begins with https://";
        let url = Url::parse(text).map_err(|_| FORM.to_owned())?;
        let host = url.host_str().unwrap_or_default();
        let is_here = host == "localhost"
            || host.trim_matches(['[', ']']).parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        match url.scheme() {
            "https" => Ok(Self { url, refresh }),
            "http" if is_here || allow_http => Ok(Self { url, refresh }),
            "http" => Err(format!(
                "{FORM}, or http:// on this machine: on its way without TLS somebody could put a key of his own among the \
                 provider's and speak for every account. Where the way is safe all the same, allow http"
            )),
            _ => Err(FORM.to_owned()),
        }
    }

    fn client(&self) -> Result<Client, String> {
        // The one backend that is built in, which a client wants even for plain HTTP; whoever was first installed the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .timeout(PATIENCE)
            // Every fetch is its own: what is idle for minutes is dead when it is needed.
            .pool_max_idle_per_host(0)
            .user_agent(concat!("presenced/", env!("CARGO_PKG_VERSION")));
        let client = if self.url.scheme() == "https" {
            client.https_only(true)
        } else {
            // Plain text is for this machine or a way known to be safe, and a proxy is neither.
            client.no_proxy().tls_certs_only([])
        };
        client.build().map_err(|error| {
            format!(
                "TLS cannot be prepared ({}): install ca-certificates, or set SSL_CERT_FILE",
                inside(error)
            )
        })
    }

    /// Asks once.
    async fn fetch(&self) -> Result<KeySet, String> {
        let get = self.client()?.get(self.url.clone()).header("accept", "application/json");
        let mut answer = get.send().await.map_err(inside)?;
        match answer.status() {
            StatusCode::OK => {}
            status if status.is_redirection() => {
                return Err(format!("the answer is {status}: set the URL that it leads to"));
            }
            status => return Err(format!("the answer is {status}")),
        }
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(inside)? {
            if body.len() + chunk.len() > MOST_BYTES {
                return Err(format!("the answer is longer than {} KiB", MOST_BYTES / 1024));
            }
            body.extend_from_slice(&chunk);
        }
        // To see whether a point is on its curve costs a signature's work, for each key of a set.
        let read = tokio::task::spawn_blocking(move || KeySet::from_json(&body));
        read.await.map_err(|_| "the answer could not be read".to_owned())?
    }
}

/// The cause of a failed request, without the URL.
fn inside(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Keeps the keys of one issuer for ever; returns at once where they are fixed.
pub(in crate::identity) async fn keep(issuer: &Issuer) {
    if issuer.settings.access_mark.is_none() && issuer.settings.audience.is_empty() {
        tracing::warn!(
            issuer = issuer.settings.name,
            "neither a claim that marks access tokens nor an audience is looked at: whatever this provider signs for anybody \
             is taken for an access token"
        );
    }
    let KeySource::Url(source) = &issuer.settings.keys else { return };
    let name = issuer.settings.name.as_str();
    let mut failures = 0;
    let mut known = None;
    loop {
        let begun = Instant::now();
        let pause = match source.fetch().await {
            Ok(set) => {
                let kids: Vec<_> = set.keys.iter().map(|key| key.kid().map(str::to_owned)).collect();
                if failures > 0 || known.as_ref() != Some(&kids) {
                    report(name, &set);
                }
                (failures, known) = (0, Some(kids));
                issuer.replace_keys(set.keys);
                source.refresh
            }
            Err(reason) => {
                // Once for each outage; more would drown the rest.
                if failures == 0 {
                    tracing::warn!(
                        issuer = name,
                        reason,
                        "the keys of this issuer cannot be fetched: those that are known go on working, and it is asked again"
                    );
                } else {
                    tracing::debug!(issuer = name, reason, failures, "the keys still cannot be fetched");
                }
                failures += 1;
                pause_after(failures - 1)
            }
        };
        let wanted = async {
            issuer.wanted.notified().await;
            sleep_until(begun + BETWEEN).await;
        };
        tokio::select! {
            () = sleep(about(pause)) => {}
            () = wanted => {}
        }
    }
}

fn report(issuer: &str, set: &KeySet) {
    tracing::info!(issuer, keys = set.keys.len(), "the keys of this issuer are known");
    if set.keys.is_empty() {
        tracing::warn!(issuer, "this issuer has no key that can be used: its tokens are not taken");
    }
    if !set.left_out.is_empty() {
        tracing::warn!(issuer, reasons = ?set.left_out, "some keys of this issuer are left out");
    }
    let most = ALGORITHMS.map(|algorithm| set.keys.iter().filter(|key| key.is_for(algorithm)).count());
    if most.into_iter().any(|keys| keys > MAX_KEYS_TRIED) {
        tracing::warn!(
            issuer,
            tried = MAX_KEYS_TRIED,
            "this issuer has more keys of one algorithm than a token without a key id is tried against: its tokens should \
             name their key (kid)"
        );
    }
}

/// Twice as long after every failure.
fn pause_after(failures: u32) -> Duration {
    let (first, longest) = PAUSES;
    first.saturating_mul(1 << failures.min(16)).min(longest)
}

/// Three quarters of a span to the whole: many instances, started together, do not ask together.
fn about(span: Duration) -> Duration {
    let mut byte = [0];
    // Without chance all ask together, which is no failure.
    let _ = getrandom::fill(&mut byte);
    span.mul_f64(0.75 + f64::from(byte[0]) / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_fetched_over_tls_or_on_this_machine() {
        let parse = |text, allow| KeysUrl::parse(text, Duration::from_mins(5), allow);
        for good in [
            "https://id.example.org/keys",
            "http://127.0.0.1:80/keys",
            "http://[::1]/",
            "http://localhost:8080/keys",
        ] {
            assert!(parse(good, false).is_ok(), "{good}");
        }
        for bad in
            ["", "id.example.org", "ftp://id.example.org", "file:///etc/passwd", "http://id.example.org"]
        {
            assert!(parse(bad, false).unwrap_err().contains("begins with https://"), "{bad}");
        }
        for bad in ["http://localhost.example.org", "http://127.0.0.1.example.org", "http://10.0.0.1/keys"] {
            assert!(parse(bad, false).unwrap_err().contains("without TLS"), "{bad}");
            assert!(parse(bad, true).is_ok(), "{bad}");
        }
    }

    #[test]
    fn a_url_shows_no_password() {
        let url = KeysUrl::parse("https://ada:hunter2@id.example.org/?key=hunter3", PATIENCE, false).unwrap();
        assert_eq!(format!("{url:?}"), "KeysUrl(id.example.org)");
    }

    #[test]
    fn pauses_grow_up_to_a_bound_and_differ() {
        let pauses: Vec<u64> = [0, 1, 2, 4, 5, 99, u32::MAX].map(|n| pause_after(n).as_secs()).to_vec();
        assert_eq!(pauses, [1, 2, 4, 16, 30, 30, 30]);
        let some: Vec<Duration> = (0..64).map(|_| about(Duration::from_secs(8))).collect();
        assert!(some.iter().all(|span| (6.0..=8.0).contains(&span.as_secs_f64())), "{some:?}");
        assert!(some.iter().any(|span| *span != some[0]));
    }
}
