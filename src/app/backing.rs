//! What the service stands on: the data folder, the generated secret, the embedded server, SQL and Redis.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::settings::{SECRET_BYTES, Secret, Settings};
use crate::live::{self, EmbeddedRedis, LiveSet};
use crate::presence::PresenceService;
use crate::store::{self, Store};
use crate::tasks::{Context, Counts};

/// The embedded database, in the data folder.
pub(super) const SQLITE: &str = "presence.db";
/// Between two attempts to reach SQL at the start.
const RETRY: Duration = Duration::from_secs(1);
/// How long a command waits for SQL.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a command waits for Redis.
pub(super) const REDIS_PATIENCE: Duration = Duration::from_secs(5);
/// What it says then.
pub(super) const NO_REDIS: &str = "Redis does not answer: is REDIS_URL right, and the server up?";
/// What a command says that waits for SQL in vain.
const NO_DATABASE: &str = "the database does not answer: is DATABASE_URL right, and the server up?";
/// Between two lines that say so.
const SAY_AGAIN: u32 = 10;

/// The data folder, this process's alone while the lock is held.
pub(super) struct DataFolder {
    path: PathBuf,
    _lock: Option<File>,
}

impl DataFolder {
    /// Opens the folder; `exclusively` where an embedded part keeps its data there. `None` for the lock where another
    /// process has it and that is no harm.
    pub(super) fn open(settings: &Settings, exclusively: bool) -> anyhow::Result<Self> {
        let path = settings.data_dir.clone();
        if !exclusively {
            return Ok(Self { path, _lock: None });
        }
        match Self::try_lock(&path)? {
            Some(lock) => Ok(Self { path, _lock: Some(lock) }),
            None => anyhow::bail!(
                "another presenced uses the folder {}: end it, or give this one a folder of its own with PRESENCE_DATA_DIR",
                path.display()
            ),
        }
    }

    /// The lock on a folder, or `None` where another process holds it.
    pub(super) fn try_lock(path: &Path) -> anyhow::Result<Option<File>> {
        make_private(path).with_context(|| {
            format!("cannot create {}: set PRESENCE_DATA_DIR to a folder that can be written", path.display())
        })?;
        let lock = File::create(path.join("lock"))
            .with_context(|| format!("cannot write to {}: set PRESENCE_DATA_DIR", path.display()))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(lock)),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(error).context("cannot lock the data folder"),
        }
    }

    pub(super) fn redis(&self) -> PathBuf {
        self.path.join("redis")
    }

    /// The secret that signs tokens: the setting's, or one generated at the first start and kept.
    pub(super) fn jwt_secret(&self, settings: &Settings) -> anyhow::Result<Secret> {
        if let Some(secret) = &settings.tokens.jwt_secret {
            return Ok(secret.clone());
        }
        let file = self.path.join("jwt-secret");
        if !file.exists() {
            if settings.database_url.is_some() && settings.redis_url.is_some() {
                tracing::warn!(
                    file = %file.display(),
                    "PRESENCE_JWT_SECRET is not set: one is generated into the data folder. Instances that work side by \
                     side need the same"
                );
            }
            std::fs::create_dir_all(&self.path)
                .and_then(|()| write_once(&file, &random_text()?))
                .with_context(|| {
                    format!("cannot keep a generated secret in {}: set PRESENCE_JWT_SECRET", file.display())
                })?;
        }
        // Read back: of two first starts at once one wrote it.
        let secret = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}: set PRESENCE_JWT_SECRET", file.display()))?;
        anyhow::ensure!(
            secret.trim().len() >= SECRET_BYTES,
            "{} holds less than {SECRET_BYTES} bytes, which is no secret: delete it to have another made (everyone signs in \
             anew), or set PRESENCE_JWT_SECRET",
            file.display()
        );
        Ok(Secret::new(secret.trim().to_string()))
    }
}

/// Makes a folder that only its owner can enter, for it holds password hashes; leaves one that is there as it is.
fn make_private(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)
}

/// 256 random bits as text.
pub(super) fn random_text() -> std::io::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(std::io::Error::from)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// Makes a file that only its owner can read, whole or not at all; leaves one that is there already.
pub(super) fn write_once(file: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let draft = file.with_extension(format!("{}.tmp", std::process::id()));
    let mut options = std::fs::OpenOptions::new();
    let mut writing = options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    writing.write_all(text.as_bytes())?;
    writing.sync_all()?;
    let linked = match std::fs::hard_link(&draft, file) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    };
    std::fs::remove_file(&draft)?;
    linked
}

/// Where SQL is.
pub(super) fn database_url(settings: &Settings) -> String {
    settings.database_url.as_ref().map_or_else(
        || format!("sqlite://{}", settings.data_dir.join(SQLITE).display()),
        |url| url.reveal().to_string(),
    )
}

/// Opens SQL, without asking it anything yet.
pub(super) async fn store(settings: &Settings) -> anyhow::Result<Arc<dyn Store>> {
    Ok(store::open(&database_url(settings), &store::Options::default()).await?)
}

/// Brings the schema up to date; `false` where the database is away.
pub(super) async fn migrate(store: &Arc<dyn Store>) -> anyhow::Result<bool> {
    match store.migrate().await {
        Ok(applied) if applied.is_empty() => Ok(true),
        Ok(applied) => {
            tracing::info!(migrations = applied.join(", "), "the schema is up to date");
            Ok(true)
        }
        Err(error) if error.is_unavailable() => {
            tracing::debug!(%error, "the database is away");
            Ok(false)
        }
        Err(error) => Err(error).context("the schema could not be brought up to date"),
    }
}

/// Puts right how many accounts there are said to be, beside everything else: it takes the longer the more there are, and
/// nothing waits for it. Where it fails the numbers are as they were.
pub(super) fn mend_counts_beside(store: &Arc<dyn Store>) {
    let store = Arc::clone(store);
    tokio::spawn(async move {
        match store.mend_counts().await {
            Ok(0) => {}
            Ok(wrong) => {
                tracing::warn!(wrong, "the numbers of accounts were put right: their triggers had been off");
            }
            Err(error) => {
                tracing::warn!(%error, "the numbers of accounts were not looked at; the next start will");
            }
        }
    });
}

/// [`migrate`], waiting as long as the database is away.
pub(super) async fn migrate_in_time(store: &Arc<dyn Store>) -> anyhow::Result<()> {
    for attempt in 0.. {
        if migrate(store).await? {
            break;
        }
        if attempt % SAY_AGAIN == 0 {
            tracing::warn!("waiting for the database; is DATABASE_URL right, and the server up?");
        }
        tokio::time::sleep(RETRY).await;
    }
    Ok(())
}

/// Opens SQL with its schema up to date, for a command that has nothing else to do.
pub(super) async fn store_now(settings: &Settings) -> anyhow::Result<Arc<dyn Store>> {
    let store = store(settings).await?;
    tokio::time::timeout(PATIENCE, migrate_in_time(&store)).await.context(NO_DATABASE)??;
    Ok(store)
}

/// Opens SQL as it is, for a command that must change nothing by looking: makes no file, and leaves the schema alone.
pub(super) async fn store_as_it_is(settings: &Settings) -> anyhow::Result<Arc<dyn Store>> {
    let url = database_url(settings);
    if let Some(path) = url.strip_prefix("sqlite:") {
        let path = path.trim_start_matches("//").split('?').next().unwrap_or_default();
        anyhow::ensure!(
            Path::new(path).exists(),
            "there is no database {path}: are DATABASE_URL and PRESENCE_DATA_DIR right?"
        );
    }
    let store = store(settings).await?;
    store.ping().await.context(NO_DATABASE)?;
    Ok(store)
}

/// Starts connecting to Redis.
pub(super) fn live(settings: &Settings, url: String) -> anyhow::Result<LiveSet> {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "presenced".into());
    let options = live::Options {
        url,
        ttl: settings.ttl,
        prefix: settings.prefix.clone(),
        shards: settings.shards(),
        max_sessions: settings.sessions.max_sessions,
        ended_ttl: settings.tokens.access_ttl,
        instance: format!("{host}-{}-{}", std::process::id(), &random_text()?[..6]),
        command_timeout: Duration::from_millis(1_500),
    };
    let setting = "REDIS_URL (--redis-url)";
    let named = settings.redis_url.as_ref().map_or(setting, |url| url.named(setting));
    LiveSet::open(options).with_context(|| format!("{named} cannot be used"))
}

/// Redis as the settings have it: an embedded server where no URL is given.
pub(super) async fn redis(
    settings: &Settings,
    folder: &DataFolder,
) -> anyhow::Result<(String, Option<EmbeddedRedis>)> {
    if let Some(url) = &settings.redis_url {
        return Ok((url.reveal().to_string(), None));
    }
    let embedded = EmbeddedRedis::start(&folder.redis()).await?;
    Ok((embedded.url(), Some(embedded)))
}

/// Redis as a command of its own process reaches it.
pub(super) struct CommandRedis {
    pub(super) live: LiveSet,
    embedded: Option<EmbeddedRedis>,
    _folder: Option<DataFolder>,
}

impl CommandRedis {
    pub(super) async fn close(self) {
        self.live.close().await;
        if let Some(embedded) = self.embedded {
            embedded.stop().await;
        }
    }
}

/// What a command works with: all that a service's loops have, and no loop.
pub(super) fn context(settings: &Settings, live: &LiveSet, store: &Arc<dyn Store>) -> Context {
    Context {
        live: live.clone(),
        store: store.clone(),
        presence: PresenceService::new(live.clone(), store.clone(), settings.tokens.access_ttl),
        last_seen_flush: Duration::ZERO,
        counts: Counts::default(),
        sweep: true,
    }
}

/// Starts connecting to Redis: with an embedded server to the running service's, or to one started for the while.
pub(super) async fn redis_for_a_command(settings: &Settings) -> anyhow::Result<CommandRedis> {
    let (folder, url, embedded) = match &settings.redis_url {
        Some(url) => (None, url.reveal().to_string(), None),
        None => match DataFolder::try_lock(&settings.data_dir)? {
            None => (None, running_redis(settings)?, None),
            Some(lock) => {
                drop(lock);
                let folder = DataFolder::open(settings, true)?;
                let (url, embedded) = redis(settings, &folder).await?;
                (Some(folder), url, embedded)
            }
        },
    };
    Ok(CommandRedis { live: live(settings, url)?, embedded, _folder: folder })
}

fn running_redis(settings: &Settings) -> anyhow::Result<String> {
    let file = settings.data_dir.join("redis").join("port");
    let port = std::fs::read_to_string(&file)
        .with_context(|| format!("a presenced runs on this folder, but {} tells no port", file.display()))?;
    Ok(format!("redis://127.0.0.1:{}", port.trim()))
}
