//! What the service stands on: the embedded server, SQL and Redis.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::data_folder::{DataFolder, FolderLock};
use super::settings::Settings;
use crate::live::{self, EmbeddedRedis, LiveSet};
use crate::presence::PresenceService;
use crate::store::{self, Store};
use crate::tasks::{Context, Counts};

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

/// 256 random bits as text.
pub(super) fn random_text() -> std::io::Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(std::io::Error::from)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// Opens SQL, without asking it anything yet: what the settings name, or the file in the data folder. The latter by its path,
/// which is no URL: the folder's name may have any character.
pub(super) async fn store(settings: &Settings) -> anyhow::Result<Arc<dyn Store>> {
    let options = store::Options::default();
    if let Some(url) = &settings.database_url {
        return Ok(store::open(url.reveal(), &options).await?);
    }
    let folder = DataFolder::of(settings)?;
    folder.prepare()?;
    Ok(store::open_file(&folder.database(), &options).await?)
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
    let file = match &settings.database_url {
        Some(url) => store::file_of(url.reveal())?,
        None => Some(DataFolder::of(settings)?.database()),
    };
    if let Some(file) = file {
        anyhow::ensure!(
            file.exists(),
            "there is no database {}: are DATABASE_URL and PRESENCE_DATA_DIR right?",
            file.display()
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

/// Redis as the settings have it: an embedded server where no URL is given, in a folder that this process has locked.
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
    _lock: Option<FolderLock>,
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
    if let Some(url) = &settings.redis_url {
        return Ok(CommandRedis {
            live: live(settings, url.reveal().to_string())?,
            embedded: None,
            _lock: None,
        });
    }
    let folder = DataFolder::of(settings)?;
    let lock = folder.try_lock()?;
    let (url, embedded) = match &lock {
        Some(_) => redis(settings, &folder).await?,
        None => (EmbeddedRedis::url_of_running(&folder.redis()).await?, None),
    };
    Ok(CommandRedis { live: live(settings, url)?, embedded, _lock: lock })
}
