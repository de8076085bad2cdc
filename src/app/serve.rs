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

use super::backing::{self, DataFolder};
use super::exposure;
use super::farewell::Farewell;
use super::settings::{Secret, Settings};
use crate::http::lists::Lists;
use crate::http::{self, AppState, Doors, Metrics, PerUser, SecurityLog};
use crate::identity::Identity;
use crate::live::{EmbeddedRedis, LiveError, LiveSet};
use crate::metrics::Registry;
use crate::presence::{PresenceService, drill};
use crate::store::Store;
use crate::tasks::{Context, Counts, Tasks};

/// How long a start waits for Redis before it goes on without.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);

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
    let metrics_listener = match settings.doors.metrics_listen {
        Some(address) => Some(listen(address, "PRESENCE_METRICS_LISTEN (--metrics-listen)").await?),
        None => None,
    };
    let embeds = settings.redis_url.is_none() || settings.database_url.is_none();
    let folder = DataFolder::open(settings, embeds)?;
    let secret = folder.jwt_secret(settings)?;
    let (redis_url, mut embedded) = tokio::select! {
        redis = backing::redis(settings, &folder) => redis?,
        () = &mut stop => return Ok(()),
    };
    let live = backing::live(settings, redis_url)?;
    let store = backing::store(settings).await?;
    let identity =
        Identity::new(store.clone(), &settings.tokens.identity(&secret)?, settings.limits.limits(&live));
    let mut keys = keep_keys(&identity);

    // Neither is a condition: what is away is waited for while the service says so to whoever asks.
    let mut redis = std::pin::pin!(live.ready());
    let first = tokio::select! {
        first = at_first(redis.as_mut(), &store, settings, &identity) => first.map(Some),
        () = &mut stop => Ok(None),
    };
    let First { mut redis_is_ready, mut database_is_ready, admin } = match first {
        Ok(Some(first)) => first,
        other => {
            end(embedded, Farewell::begin(settings.shutdown_timeout)).await;
            return other.map(drop);
        }
    };
    let mut database = std::pin::pin!(async {
        backing::migrate_in_time(&store).await?;
        backing::mend_counts_beside(&store);
        if let Some(admin) = ensure_admin(settings, &store, &identity).await? {
            println!("admin password: {}", admin.shown());
        }
        anyhow::Ok(())
    });

    let presence = PresenceService::new(live.clone(), store.clone(), settings.tokens.access_ttl);
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
    announce(&listeners, admin.as_ref(), embedded.as_ref())?;
    let failing = presence.clone();
    let state = state(settings, presence, identity.clone(), metrics);
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
            () = ended(&mut embedded) => {
                tracing::error!("the embedded redis-server has ended by itself; it is started again");
                tokio::select! {
                    again = start_again(&folder, embedded.take()) => match again {
                        Ok(server) => embedded = Some(server),
                        Err(error) => break Err(error),
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
    admin: Option<Admin>,
}

/// The first look at Redis and SQL, neither of which is waited for long.
async fn at_first(
    redis: impl Future<Output = Result<(), LiveError>>,
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
    let admin = if database_is_ready { ensure_admin(settings, store, identity).await? } else { None };
    Ok(First { redis_is_ready, database_is_ready, admin })
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

/// The account `admin`, made just now.
struct Admin {
    /// Its password, where that was made up here.
    password: Option<String>,
}

impl Admin {
    fn shown(&self) -> &str {
        self.password.as_deref().unwrap_or("as PRESENCE_ADMIN_PASSWORD has it")
    }
}

/// Makes the account `admin` where there is no account at all.
async fn ensure_admin(
    settings: &Settings,
    store: &Arc<dyn Store>,
    identity: &Identity,
) -> anyhow::Result<Option<Admin>> {
    let made_up = backing::random_text()?[..20].to_string();
    let chosen = settings.admin_password.as_ref().map(Secret::reveal);
    let made = identity
        .ensure_admin(chosen.unwrap_or(&made_up))
        .await
        .context("the account 'admin' could not be made")?;
    if made && chosen.is_none() {
        exposure::note_generated_password(settings, store).await?;
    }
    Ok(made.then(|| Admin { password: chosen.is_none().then_some(made_up) }))
}

/// What a newcomer needs next, on standard output; logs go to standard error.
fn announce(
    listeners: &Listeners,
    admin: Option<&Admin>,
    embedded: Option<&EmbeddedRedis>,
) -> anyhow::Result<()> {
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
        writeln!(out, "look into Redis: redis-cli -p {} HGETALL 'presence:{{0}}:user:1'", embedded.port())?;
    }
    out.flush()?;
    Ok(())
}

/// The server again, with its data and on its port, where everyone looks for it.
async fn start_again(folder: &DataFolder, former: Option<EmbeddedRedis>) -> anyhow::Result<EmbeddedRedis> {
    let port = former.as_ref().map(EmbeddedRedis::port);
    drop(former);
    let server = EmbeddedRedis::start(&folder.redis()).await?;
    anyhow::ensure!(
        Some(server.port()) == port,
        "the port of the embedded redis-server was taken by somebody else; start presenced again"
    );
    Ok(server)
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
