//! `presenced serve`: the service from its first line to its last.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};

use super::backing;
use super::data_folder::DataFolder;
use super::exposure;
use super::farewell::Farewell;
use super::first_admin::{self, Admin};
use super::settings::Settings;
use crate::http::lists::Lists;
use crate::http::{self, AppState, Doors, Metrics, PerUser, SecurityLog};
use crate::identity::{self, Identity};
use crate::live::{EmbeddedRedis, LiveError, LiveSet};
use crate::metrics::Registry;
use crate::presence::{PresenceService, drill};
use crate::store::Store;
use crate::tasks::{Context, Counts, Tasks};

/// How long a start waits for Redis before it goes on without.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);

/// Between two attempts to read the installation's id while SQL is away.
const PAIR_RETRY: Duration = Duration::from_millis(500);

pub(super) async fn serve(settings: &Settings) -> anyhow::Result<()> {
    let stop = told_to_stop()?;
    tokio::pin!(stop);
    if let Some(task) = &settings.panic_in {
        drill::announce(task);
    }

    exposure::refuse_first_start(settings)?;
    let doors = settings.doors.open()?;
    // Before anything else, so that an address in use is known at once.
    let listener = listen(settings.doors.listen, "PRESENCE_LISTEN (--listen)").await?;
    let metrics_listener = metrics_listener(settings).await?;
    let folder = DataFolder::of(settings)?;
    let embeds = settings.redis_url.is_none() || settings.database_url.is_none();
    // Until the embedded server has ended.
    let _lock = if embeds { Some(folder.lock()?) } else { None };
    let secret = folder.jwt_secret(settings)?;
    let (redis_url, mut embedded) = tokio::select! {
        redis = backing::redis(settings, &folder) => redis?,
        () = &mut stop => return Ok(()),
    };
    let live = backing::live(settings, redis_url)?;
    let store = backing::store(settings).await?;
    let identity_settings =
        identity::Settings { sessions: settings.sessions.policy(), ..settings.tokens.identity(&secret)? };
    let identity = Identity::new(store.clone(), &identity_settings, settings.limits.limits(&live));
    let mut keys = keep_keys(&identity);

    let presence = PresenceService::new(live.clone(), store.clone(), settings.tokens.access_ttl);

    // Neither is a condition: what is away is waited for while the service says so to whoever asks.
    let mut redis = std::pin::pin!(live.ready());
    let first = tokio::select! {
        first = at_first(redis.as_mut(), &live, &presence, &store, settings, &identity) => first.map(Some),
        () = &mut stop => Ok(None),
    };
    let First { mut redis_is_ready, mut database_is_ready, mut pair_is_checked, admin } = match first {
        Ok(Some(first)) => first,
        other => {
            end(embedded, Farewell::begin(settings.shutdown_timeout)).await;
            return other.map(drop);
        }
    };
    let mut database = std::pin::pin!(prepare_database(settings, &store, &identity));
    let mut pair = std::pin::pin!(check_pair(&live, &store, &presence));

    let (counts, mut metrics) = (Counts::default(), Registry::default());
    presence.register(&mut metrics);
    identity.register_metrics(&mut metrics);
    counts.register(&mut metrics);
    let mut tasks = Tasks::start(&Context {
        live: live.clone(),
        store: store.clone(),
        presence: presence.clone(),
        last_seen_flush: settings.last_seen_flush,
        counts,
        sweep: !settings.without_sweeper,
    });
    let listeners = Listeners { main: listener, doors, metrics: metrics_listener };
    if let Err(error) = announce(&listeners, admin.as_ref(), embedded.as_ref()) {
        first_admin::not_shown(&error, admin.as_ref());
    }
    let failing = presence.clone();
    let state = state(settings, presence.clone(), identity.clone(), metrics);
    let (stop_http, mut servers) = listeners.serve(state, settings);
    let outcome = loop {
        tokio::select! {
            () = &mut stop => break Ok(()),
            failure = failure(&mut tasks, &failing, &live, &mut servers, &mut keys) => break Err(anyhow::anyhow!(
                "{failure}; this is a defect, and the process ends rather than live on half alive"
            )),
            ready = &mut redis, if !redis_is_ready => match ready {
                Ok(()) => redis_is_ready = true,
                Err(error) => break Err(error.into()),
            },
            ready = &mut database, if !database_is_ready => match ready {
                Ok(()) => database_is_ready = true,
                Err(error) => break Err(error),
            },
            checked = &mut pair, if !pair_is_checked => match checked {
                Ok(()) => pair_is_checked = true,
                Err(error) => break Err(error.into()),
            },
            () = ended(&mut embedded) => {
                tracing::error!("the embedded redis-server has ended by itself; it is started again");
                tokio::select! {
                    again = start_again(embedded.take()) => match again {
                        Ok(server) => embedded = server,
                        Err(error) => break Err(error.into()),
                    },
                    () = &mut stop => break Ok(()),
                }
            }
        }
    };
    let farewell = Farewell::begin(settings.shutdown_timeout);
    drop(stop_http);
    while servers.join_next().await.is_some() {}
    Box::pin(tasks.stop(farewell.batches, farewell.cut)).await;
    let _ = timeout_at(farewell.connections, live.close()).await;
    end(embedded, farewell).await;
    tracing::debug!("stopped");
    outcome
}

async fn metrics_listener(settings: &Settings) -> anyhow::Result<Option<tokio::net::TcpListener>> {
    let Some(address) = settings.doors.metrics_listen else { return Ok(None) };
    Ok(Some(listen(address, "PRESENCE_METRICS_LISTEN (--metrics-listen)").await?))
}

/// The schema, and the first administrator where there is none.
async fn prepare_database(
    settings: &Settings,
    store: &Arc<dyn Store>,
    identity: &Identity,
) -> anyhow::Result<()> {
    backing::migrate_in_time(store).await?;
    backing::mend_counts_beside(store);
    if let Some(admin) = first_admin::ensure(settings, store, identity).await? {
        admin.print();
    }
    Ok(())
}

async fn listen(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    let bound = TcpListener::bind(address).await;
    bound.with_context(|| format!("cannot listen on {address}: set {setting} to a free address"))
}

/// What the handlers ask.
fn state(
    settings: &Settings,
    presence: PresenceService,
    identity: Identity,
    mut metrics: Registry,
) -> AppState {
    let (doors, security) = (&settings.doors, SecurityLog::default());
    security.register(&mut metrics);
    let requests = PerUser::new(doors.max_requests_per_user as usize, 0);
    let lists = Lists::new(presence.clone());
    let trusted_proxies = doors.trusted_proxies.clone();
    AppState { presence, lists, identity, metrics: Arc::new(metrics), trusted_proxies, requests, security }
}

/// Where clients and scrapers connect.
struct Listeners {
    main: TcpListener,
    doors: Doors,
    /// Where the metrics have an address of their own.
    metrics: Option<TcpListener>,
}

impl Listeners {
    /// Serves on each until the sender is dropped, and then answers what is under way.
    fn serve(self, state: AppState, settings: &Settings) -> (watch::Sender<()>, JoinSet<()>) {
        let (stop, stopped) = watch::channel(());
        let stopped = || {
            let mut stopped = stopped.clone();
            async move { while stopped.changed().await.is_ok() {} }
        };
        let grace = Farewell::for_requests(settings.shutdown_timeout);
        let mut servers = JoinSet::new();
        let metrics = if let Some(listener) = self.metrics {
            let (front, doors) = (http::metrics_front(state.clone()), settings.doors.open_for_metrics());
            servers.spawn(http::serve(listener, front, doors, stopped(), grace));
            Metrics::Elsewhere
        } else {
            Metrics::Here
        };
        let front = http::front(state, settings.doors.guard(), metrics);
        servers.spawn(http::serve(self.main, front, self.doors, stopped(), grace));
        (stop, servers)
    }
}

/// Listens for SIGTERM and SIGINT from now on; the future is done when one has come.
fn told_to_stop() -> anyhow::Result<impl Future<Output = ()>> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping: finishing what is in flight");
    })
}

/// Keeps the keys of issuers from now on, until the value is dropped: a fetch has nothing that is worth finishing.
fn keep_keys(identity: &Identity) -> JoinSet<()> {
    let identity = identity.clone();
    let mut keys = JoinSet::new();
    keys.spawn(async move {
        drill::drill("keys");
        identity.keep_keys().await;
    });
    keys
}

/// What a start has found.
struct First {
    redis_is_ready: bool,
    database_is_ready: bool,
    /// Whether Redis and SQL are known to be of one installation.
    pair_is_checked: bool,
    admin: Option<Admin>,
}

/// The first look at Redis and SQL, neither of which is waited for long.
async fn at_first(
    redis: impl Future<Output = Result<(), LiveError>>,
    live: &LiveSet,
    presence: &PresenceService,
    store: &Arc<dyn Store>,
    settings: &Settings,
    identity: &Identity,
) -> anyhow::Result<First> {
    let redis_is_ready = if let Ok(ready) = timeout(FIRST_PATIENCE, redis).await {
        ready?;
        true
    } else {
        tracing::warn!(
            "Redis does not answer yet: heartbeats get 503 until it does; is REDIS_URL right, and the server up?"
        );
        false
    };
    let database_is_ready = backing::migrate(store).await?;
    if database_is_ready {
        backing::mend_counts_beside(store);
    }
    exposure::refuse_generated_password(settings, store, database_is_ready).await?;
    let admin = if database_is_ready { first_admin::ensure(settings, store, identity).await? } else { None };
    let pair_is_checked = redis_is_ready && database_is_ready;
    if pair_is_checked {
        check_pair(live, store, presence).await?;
    }
    Ok(First { redis_is_ready, database_is_ready, pair_is_checked, admin })
}

/// Returns when Redis and SQL are known to be of one installation; waits for both.
async fn check_pair(
    live: &LiveSet,
    store: &Arc<dyn Store>,
    presence: &PresenceService,
) -> Result<(), LiveError> {
    loop {
        // It fails until the schema is up to date, too.
        match store.installation().await {
            Ok(id) => {
                live.belong_to(&id).await?;
                if let Err(error) = presence.keep_ids_from_coming_again().await {
                    tracing::debug!(%error, "the largest account id will be compared later");
                }
                return Ok(());
            }
            Err(error) => tracing::debug!(%error, "the installation's id cannot be read yet"),
        }
        tokio::time::sleep(PAIR_RETRY).await;
    }
}

/// Returns when something has died without which the process would live on half alive, and says what.
async fn failure(
    tasks: &mut Tasks,
    presence: &PresenceService,
    live: &LiveSet,
    servers: &mut JoinSet<()>,
    keys: &mut JoinSet<()>,
) -> String {
    tokio::select! {
        failed = tasks.failed() => failed,
        failed = presence.failed() => failed,
        failed = live.failed() => failed,
        _ = servers.join_next() => "an accept loop has ended".to_string(),
        _ = keys.join_next() => "the keeper of the issuers' keys has ended".to_string(),
    }
}

/// What a newcomer needs next, on standard output; logs go to standard error.
fn announce(
    listeners: &Listeners,
    admin: Option<&Admin>,
    embedded: Option<&EmbeddedRedis>,
) -> std::io::Result<()> {
    use std::io::Write;
    let scheme = if listeners.doors.tls.is_some() { "https" } else { "http" };
    let address = format!("{scheme}://{}", listeners.main.local_addr()?);
    let mut out = std::io::stdout().lock();
    writeln!(out, "address: {address}")?;
    if let Some(metrics) = &listeners.metrics {
        writeln!(out, "metrics: http://{}/metrics", metrics.local_addr()?)?;
    }
    if let Some(admin) = admin {
        writeln!(out, "admin password: {}", admin.shown())?;
    }
    let password = admin.and_then(|admin| admin.password.as_deref()).unwrap_or("…");
    writeln!(
        out,
        "sign in:   TOKEN=$(curl -s {address}/api/users/login/ -H 'Content-Type: application/json' -d \
         '{{\"username\":\"admin\",\"password\":\"{password}\"}}' | sed 's/.*\"access\":\"\\([^\"]*\\)\".*/\\1/')"
    )?;
    writeln!(
        out,
        "heartbeat: curl -X POST {address}/api/users/heartbeat/ -H \"Authorization: Bearer $TOKEN\""
    )?;
    if let Some(embedded) = embedded {
        let socket = shell_word(&embedded.socket().to_string_lossy());
        writeln!(out, "look into Redis: redis-cli -s {socket} HGETALL 'presence:{{0}}:user:1'")?;
    }
    out.flush()
}

/// A text as one word of a shell's command line, quoted where it must be.
fn shell_word(text: &str) -> String {
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "/._-+=:,@%".contains(character);
    if text.chars().all(is_plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Starts the embedded server again, with its data and at its socket, where the connections look for it.
async fn start_again(ended: Option<EmbeddedRedis>) -> Result<Option<EmbeddedRedis>, LiveError> {
    match ended {
        Some(server) => server.start_again().await.map(Some),
        None => Ok(None),
    }
}

async fn ended(embedded: &mut Option<EmbeddedRedis>) {
    match embedded {
        Some(embedded) => embedded.ended().await,
        None => std::future::pending().await,
    }
}

/// Ends the embedded server, in time.
async fn end(embedded: Option<EmbeddedRedis>, farewell: Farewell) {
    if let Some(embedded) = embedded {
        embedded.stop_within(farewell.embedded.saturating_duration_since(Instant::now())).await;
    }
}

#[cfg(test)]
mod tests {
    use super::shell_word;

    #[test]
    fn a_path_is_one_word_of_a_shell_and_plain_where_it_can_be() {
        for (path, word) in [
            ("/a-b/c_d.e/redis.sock", "/a-b/c_d.e/redis.sock"),
            ("/job%2Fmain/x", "/job%2Fmain/x"),
            ("/my app/#1", "'/my app/#1'"),
            ("/it's/$HOME", r"'/it'\''s/$HOME'"),
            ("/ü", "'/ü'"),
        ] {
            assert_eq!(shell_word(path), word);
        }
    }
}
