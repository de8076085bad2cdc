//! Settings: each a flag and an environment variable, checked before anything starts.

mod doors;
mod issuers;
mod limits;
mod parse;
mod secret;
mod sessions;
mod sources;
mod tokens;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

pub use doors::DoorSettings;
pub use limits::LimitSettings;
pub use secret::{Secret, SecretList};
pub use sessions::SessionSettings;
pub use sources::read;
pub use tokens::{SECRET_BYTES, TokenSettings};

use crate::identity::check_admin_password;

/// Every setting. A bad one ends the start at once, with a message that names it and what it may be.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    /// postgres://… or sqlite://… with the path of a file, percent-encoded (%20 for a space) [default: an SQLite file in the
    /// data folder]
    #[arg(long, env = "DATABASE_URL", global = true, value_name = "URL", hide_env_values = true, value_parser = parse::secret)]
    pub database_url: Option<Secret>,

    /// redis://host:port, `redis-cluster://host:port?node=host:port&node=…` or
    /// `redis-sentinel://host:port/0?sentinelServiceName=name&node=…`; rediss for TLS (docs/cluster.md) [default: a private
    /// redis-server child, its data and its unix socket in the data folder]
    #[arg(long, env = "REDIS_URL", global = true, value_name = "URL", hide_env_values = true, value_parser = parse::secret)]
    pub redis_url: Option<Secret>,

    /// What the embedded defaults keep. It must belong to the user that runs presenced, and gets mode 0700: other users can
    /// neither read what is in it nor reach the embedded Redis
    #[arg(long, env = "PRESENCE_DATA_DIR", default_value = "./data", global = true, value_name = "FOLDER")]
    pub data_dir: PathBuf,

    /// How long a user stays online after the last heartbeat (1s to 1h)
    #[arg(long, env = "PRESENCE_TTL", default_value = "120s", global = true, value_name = "TIME", value_parser = parse::ttl)]
    pub ttl: Duration,

    /// Shards of the live set (1 to 1024) [default: 1; 64 on a cluster]
    #[arg(long, env = "PRESENCE_SHARDS", global = true, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub shards: Option<u32>,

    /// What the name of every key in Redis begins with: installations that share a server need one each (letters, digits, '.',
    /// '_' and '-', 64 at most)
    #[arg(long, env = "PRESENCE_PREFIX", default_value = "presence", global = true, value_name = "TEXT", value_parser = parse::prefix)]
    pub prefix: String,

    /// Password of the account 'admin', which the first start without an administrator makes; by the rules for all passwords
    /// [default: random, printed once]
    #[arg(long, env = "PRESENCE_ADMIN_PASSWORD", global = true, value_name = "PASSWORD", hide_env_values = true, value_parser = parse::secret)]
    pub admin_password: Option<Secret>,

    /// How often the `last_seen` of those who stay online is written to SQL (0 turns it off; 1s to 1h)
    #[arg(long, env = "PRESENCE_LAST_SEEN_FLUSH", default_value = "60s", global = true, value_name = "TIME", value_parser = parse::flush)]
    pub last_seen_flush: Duration,

    /// Threads that serve (1 to 1024) [default: as many as cores, less one for Redis, SQL and the network; one at least]
    #[arg(long, env = "PRESENCE_THREADS", global = true, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,

    /// How long the end of the process may take after SIGTERM or SIGINT (1s to 5m)
    #[arg(long, env = "PRESENCE_SHUTDOWN_TIMEOUT", default_value = "10s", global = true, value_name = "TIME", value_parser = parse::shutdown_timeout)]
    pub shutdown_timeout: Duration,

    /// Makes one task panic: sweep, listen, persist, reconcile, accounts, `session_ends`, `last_seen`, `group_commit`, keys or
    /// http. For the test that shows that the process ends
    #[arg(long, env = "PRESENCE_PANIC_IN", global = true, hide = true)]
    pub panic_in: Option<String>,

    /// Takes the sweeper away: offline then comes when Redis says so, which may be minutes late. For the test that
    /// shows what it is worth
    #[arg(long, env = "PRESENCE_WITHOUT_SWEEPER", global = true, hide = true)]
    pub without_sweeper: bool,

    // Last: the heading of a group stands over whatever follows it in `--help`.
    /// Who may knock, and how.
    #[command(flatten)]
    pub doors: DoorSettings,

    /// Whose tokens are taken.
    #[command(flatten)]
    pub tokens: TokenSettings,

    /// How many login sessions an account may have, and how old one may become.
    #[command(flatten)]
    pub sessions: SessionSettings,

    /// How often clients may try.
    #[command(flatten)]
    pub limits: LimitSettings,
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

impl Settings {
    /// Looks at what a flag's parser must not: the values that a refusal would print.
    ///
    /// # Errors
    /// A message that names the setting and what it may be.
    pub fn check(&self) -> anyhow::Result<()> {
        if let Some(url) = &self.database_url {
            let named = url.named("DATABASE_URL (--database-url)");
            if let Some(key) = unknown_parameter(url.reveal()) {
                anyhow::bail!(
                    "{named} has the parameter '{key}', which is none of {}",
                    POSTGRES_PARAMETERS.join(", ")
                );
            }
            let known = ["postgres", "postgresql", "sqlite"];
            let scheme = url.reveal().split_once(':').map(|(scheme, _)| scheme);
            anyhow::ensure!(
                scheme.is_some_and(|scheme| known.contains(&scheme)),
                "{named} must begin with postgres:// or sqlite://"
            );
        }
        if let Some(url) = &self.redis_url {
            let known =
                ["redis", "rediss", "redis-sentinel", "rediss-sentinel", "redis-cluster", "rediss-cluster"];
            let scheme = url.reveal().split_once("://").map(|(scheme, _)| scheme);
            anyhow::ensure!(
                scheme.is_some_and(|scheme| known.contains(&scheme)),
                "{} must begin with redis://, rediss://, redis-sentinel:// or redis-cluster://",
                url.named("REDIS_URL (--redis-url)")
            );
        }
        if let Some(password) = &self.admin_password
            && let Err(errors) = check_admin_password(password.reveal())
        {
            let reasons: Vec<String> = errors.0.into_values().flatten().collect();
            let setting = password.named("PRESENCE_ADMIN_PASSWORD (--admin-password)");
            anyhow::bail!("{setting} {}", reasons.join(", and "));
        }
        self.doors.check()?;
        self.tokens.check()
    }

    /// How many threads serve. One more than there are cores to spare costs throughput: each wakes the others with a system
    /// call.
    pub fn threads(&self) -> usize {
        let spare =
            || std::thread::available_parallelism().map_or(1, |cores| cores.get().saturating_sub(1).max(1));
        self.threads.map_or_else(spare, usize::from)
    }

    /// How many shards there are, given where Redis is.
    pub fn shards(&self) -> u32 {
        let clustered = self.redis_url.as_ref().is_some_and(|url| url.reveal().contains("-cluster://"));
        self.shards.unwrap_or(if clustered { 64 } else { 1 })
    }
}
