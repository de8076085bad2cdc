//! Settings: each a flag and an environment variable, checked before anything starts.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

/// Every setting. A bad one ends the start at once, with a message that names it and what it may be.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// HTTP address; port 0 takes a free one
    #[arg(
        long,
        env = "PRESENCE_LISTEN",
        default_value = "127.0.0.1:8000",
        global = true,
        value_name = "ADDRESS",
        value_parser = address
    )]
    pub listen: SocketAddr,

    /// postgres://… or sqlite://… [default: an SQLite file in the data folder]
    #[arg(long, env = "DATABASE_URL", global = true, value_name = "URL", hide_env_values = true, value_parser = secret)]
    pub database_url: Option<Secret>,

    /// redis://, rediss://, redis-sentinel:// or redis-cluster:// [default: a private redis-server child, its data in
    /// the data folder]
    #[arg(long, env = "REDIS_URL", global = true, value_name = "URL", hide_env_values = true, value_parser = secret)]
    pub redis_url: Option<Secret>,

    /// What the embedded defaults keep
    #[arg(long, env = "PRESENCE_DATA_DIR", default_value = "./data", global = true, value_name = "FOLDER")]
    pub data_dir: PathBuf,

    /// How long a user stays online after the last heartbeat (1s to 1h)
    #[arg(long, env = "PRESENCE_TTL", default_value = "120s", global = true, value_name = "TIME", value_parser = ttl)]
    pub ttl: Duration,

    /// Shards of the live set (1 to 1024) [default: 1; 64 on a cluster]
    #[arg(long, env = "PRESENCE_SHARDS", global = true, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub shards: Option<u32>,

    /// HS256 secret that signs tokens, 32 bytes or more [default: generated once into the data folder]
    #[arg(long, env = "PRESENCE_JWT_SECRET", global = true, value_name = "SECRET", hide_env_values = true, value_parser = secret)]
    pub jwt_secret: Option<Secret>,

    /// Further HS256 secrets whose tokens are taken, comma-separated
    #[arg(long, env = "PRESENCE_TRUSTED_SECRETS", global = true, value_name = "SECRETS", hide_env_values = true, value_delimiter = ',', value_parser = secret)]
    pub trusted_secrets: Vec<Secret>,

    /// Lifetime of an access token (1s to 1d)
    #[arg(long, env = "PRESENCE_ACCESS_TTL", default_value = "15m", global = true, value_name = "TIME", value_parser = access_ttl)]
    pub access_ttl: Duration,

    /// Lifetime of a refresh token (1s to 365d)
    #[arg(long, env = "PRESENCE_REFRESH_TTL", default_value = "7d", global = true, value_name = "TIME", value_parser = refresh_ttl)]
    pub refresh_ttl: Duration,

    /// For how long after its first use a refresh token may be used again: two tabs, not theft (0 to 5m)
    #[arg(long, env = "PRESENCE_REFRESH_GRACE", default_value = "10s", global = true, value_name = "TIME", value_parser = grace)]
    pub refresh_grace: Duration,

    /// Password of the account 'admin', made on the first start with an empty database [default: random, printed once]
    #[arg(long, env = "PRESENCE_ADMIN_PASSWORD", global = true, value_name = "PASSWORD", hide_env_values = true, value_parser = secret)]
    pub admin_password: Option<Secret>,

    /// How often the `last_seen` of those who stay online is written to SQL (0 turns it off; 1s to 1h)
    #[arg(long, env = "PRESENCE_LAST_SEEN_FLUSH", default_value = "60s", global = true, value_name = "TIME", value_parser = flush)]
    pub last_seen_flush: Duration,

    /// How long the end of the process may take after SIGTERM or SIGINT (1s to 5m)
    #[arg(long, env = "PRESENCE_SHUTDOWN_TIMEOUT", default_value = "10s", global = true, value_name = "TIME", value_parser = shutdown_timeout)]
    pub shutdown_timeout: Duration,

    /// Makes one task panic: sweep, listen, persist, reconcile, accounts, `last_seen`, `group_commit` or http. For the test
    /// that shows that the process ends
    #[arg(long, env = "PRESENCE_PANIC_IN", global = true, hide = true)]
    pub panic_in: Option<String>,

    /// Takes the sweeper away: offline then comes when Redis says so, which may be minutes late. For the test that
    /// shows what it is worth
    #[arg(long, env = "PRESENCE_WITHOUT_SWEEPER", global = true, hide = true)]
    pub without_sweeper: bool,
}

/// A text that no log, error or `--help` shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Reads `90s`, `15m`, `7d`, `1h 30m`, or plain seconds, within bounds.
fn span(text: &str, least: &str, most: &str) -> Result<Duration, String> {
    let read = |text: &str| match u64::from_str(text) {
        Ok(seconds) => Ok(Duration::from_secs(seconds)),
        Err(_) => humantime::parse_duration(text),
    };
    let (Ok(low), Ok(high)) = (read(least), read(most)) else {
        return Err("its bounds cannot be read".into());
    };
    match read(text) {
        Ok(span) if (low..=high).contains(&span) => Ok(span),
        _ => Err(format!("must be a time from {least} to {most}, such as 90s, 15m or 1h")),
    }
}

fn ttl(text: &str) -> Result<Duration, String> {
    span(text, "1s", "1h")
}

fn access_ttl(text: &str) -> Result<Duration, String> {
    span(text, "1s", "1d")
}

fn refresh_ttl(text: &str) -> Result<Duration, String> {
    span(text, "1s", "365d")
}

fn grace(text: &str) -> Result<Duration, String> {
    span(text, "0s", "5m")
}

fn shutdown_timeout(text: &str) -> Result<Duration, String> {
    span(text, "1s", "5m")
}

fn flush(text: &str) -> Result<Duration, String> {
    match span(text, "0s", "1h") {
        Ok(span) if span.is_zero() || span >= Duration::from_secs(1) => Ok(span),
        _ => Err("must be 0 to turn it off, or a time from 1s to 1h".into()),
    }
}

/// clap would print a refused value; a secret's parser never fails, and [`Settings::check`] says what is wrong.
#[allow(clippy::unnecessary_wraps)]
fn secret(text: &str) -> Result<Secret, String> {
    Ok(Secret(text.to_string()))
}

/// What a `postgres://` URL may carry behind its question mark. Others would be ignored, and their values logged.
const POSTGRES_PARAMETERS: [&str; 15] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "sslkey",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

fn unknown_parameter(url: &str) -> Option<String> {
    let (_, query) = url.strip_prefix("postgres").and_then(|rest| rest.split_once('?'))?;
    let mut keys = query.split('&').map(|pair| pair.split('=').next().unwrap_or_default());
    keys.find(|key| !key.is_empty() && !POSTGRES_PARAMETERS.contains(key) && !key.starts_with("options["))
        .map(str::to_string)
}

/// Reads `127.0.0.1:8000` or `localhost:8000`.
fn address(text: &str) -> Result<SocketAddr, String> {
    use std::net::ToSocketAddrs;
    let found = text.to_socket_addrs().ok().and_then(|mut found| found.next());
    found.ok_or_else(|| "must be an address and a port, such as 127.0.0.1:8000".to_string())
}

/// The shortest HS256 secret that is taken, in bytes: the length of the hash (RFC 7518, section 3.2).
pub(super) const SECRET_BYTES: usize = 32;

impl Settings {
    /// Looks at what a flag's parser must not: the values that a refusal would print.
    ///
    /// # Errors
    /// A message that names the setting and what it may be.
    pub fn check(&self) -> anyhow::Result<()> {
        if let Some(key) = self.database_url.as_ref().and_then(|url| unknown_parameter(url.reveal())) {
            anyhow::bail!(
                "DATABASE_URL (--database-url) has the parameter '{key}', which is none of {}",
                POSTGRES_PARAMETERS.join(", ")
            );
        }
        let scheme_of = |url: &Secret| url.reveal().split_once("://").map(|(scheme, _)| scheme.to_string());
        if let Some(url) = &self.database_url {
            let known = ["postgres", "postgresql", "sqlite"];
            let scheme = url.reveal().split_once(':').map(|(scheme, _)| scheme);
            anyhow::ensure!(
                scheme.is_some_and(|scheme| known.contains(&scheme)),
                "DATABASE_URL (--database-url) must begin with postgres:// or sqlite://"
            );
        }
        if let Some(url) = &self.redis_url {
            let known =
                ["redis", "rediss", "redis-sentinel", "rediss-sentinel", "redis-cluster", "rediss-cluster"];
            anyhow::ensure!(
                scheme_of(url).is_some_and(|scheme| known.contains(&scheme.as_str())),
                "REDIS_URL (--redis-url) must begin with redis://, rediss://, redis-sentinel:// or redis-cluster://"
            );
        }
        let long_enough = |secret: &Secret| secret.reveal().len() >= SECRET_BYTES;
        anyhow::ensure!(
            self.jwt_secret.as_ref().is_none_or(long_enough),
            "PRESENCE_JWT_SECRET (--jwt-secret) must be {SECRET_BYTES} bytes or more; make one with: openssl rand -hex 32"
        );
        anyhow::ensure!(
            self.trusted_secrets.iter().all(long_enough),
            "each of PRESENCE_TRUSTED_SECRETS (--trusted-secrets) must be {SECRET_BYTES} bytes or more, separated by commas"
        );
        anyhow::ensure!(
            self.admin_password.as_ref().is_none_or(|password| !password.reveal().is_empty()),
            "PRESENCE_ADMIN_PASSWORD (--admin-password) must not be empty; leave it out to have one made"
        );
        Ok(())
    }

    /// What identity needs of them, with the secret that signs.
    pub(super) fn identity(&self, secret: &Secret) -> crate::identity::Settings {
        crate::identity::Settings {
            access_ttl: self.access_ttl,
            refresh_ttl: self.refresh_ttl,
            refresh_grace: self.refresh_grace,
            secret: secret.reveal().to_string(),
            trusted_secrets: self.trusted_secrets.iter().map(|secret| secret.reveal().to_string()).collect(),
        }
    }

    /// How many shards there are, given where Redis is.
    pub fn shards(&self) -> u32 {
        let clustered = self.redis_url.as_ref().is_some_and(|url| url.reveal().contains("-cluster://"));
        self.shards.unwrap_or(if clustered { 64 } else { 1 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_with_a_unit_or_as_seconds() {
        assert_eq!(ttl("120s"), Ok(Duration::from_mins(2)));
        assert_eq!(ttl("2"), Ok(Duration::from_secs(2)));
        assert_eq!(refresh_ttl("7d"), Ok(Duration::from_hours(168)));
        assert_eq!(flush("0"), Ok(Duration::ZERO));
    }

    #[test]
    fn times_out_of_bounds_are_refused_with_the_bounds() {
        for text in ["0s", "999ms", "61m", "", "soon", "-1"] {
            assert!(ttl(text).unwrap_err().contains("from 1s to 1h"), "{text}");
        }
        assert!(flush("10ms").is_err());
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", Secret::new("hunter2".into())), "Secret(…)");
    }
}
