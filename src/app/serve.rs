//! `presenced serve`: the service from its first line to its last.

use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use super::backing::{self, DataFolder};
use super::settings::{Secret, Settings};
use crate::http::{self, AppState};
use crate::identity::{self, Identity};
use crate::live::EmbeddedRedis;
use crate::presence::PresenceService;
use crate::tasks::{Context, Tasks};

/// How long requests in flight may take when the service ends; with the persister's last batch and the embedded
/// server's farewell it stays below 10 s.
const GRACE: Duration = Duration::from_secs(3);

/// How long a start waits for Redis before it goes on without.
const FIRST_PATIENCE: Duration = Duration::from_secs(2);

pub(super) async fn serve(settings: &Settings) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping: finishing what is in flight");
    };
    tokio::pin!(stop);

    // Before anything else, so that an address in use is known at once.
    let listener = TcpListener::bind(settings.listen).await.with_context(|| {
        format!("cannot listen on {}: set PRESENCE_LISTEN (--listen) to a free address", settings.listen)
    })?;
    let embeds = settings.redis_url.is_none() || settings.database_url.is_none();
    let folder = DataFolder::open(settings, embeds)?;
    let secret = folder.jwt_secret(settings)?;
    let (redis_url, mut embedded) = backing::redis(settings, &folder).await?;
    let live = backing::live(settings, redis_url)?;
    let store = tokio::select! {
        store = backing::store(settings) => store?,
        () = &mut stop => {
            end(embedded).await;
            return Ok(());
        }
    };
    let identity = Identity::new(
        store.clone(),
        &identity::Settings {
            access_ttl: settings.access_ttl,
            refresh_ttl: settings.refresh_ttl,
            refresh_grace: settings.refresh_grace,
            secret: secret.reveal().to_string(),
            trusted_secrets: settings
                .trusted_secrets
                .iter()
                .map(|secret| secret.reveal().to_string())
                .collect(),
        },
    );
    let admin = ensure_admin(settings, &identity).await?;
    if tokio::time::timeout(FIRST_PATIENCE, live.connected()).await.is_ok() {
        if let Err(error) = backing::check_shards(settings, &live).await {
            end(embedded).await;
            return Err(error);
        }
    } else {
        tracing::warn!(
            "Redis does not answer yet: heartbeats get 503 until it does; is REDIS_URL right, and the server up?"
        );
    }
    let presence = PresenceService::new(live.clone(), store.clone(), settings.access_ttl);
    let mut tasks = Tasks::start(&Context {
        live: live.clone(),
        store,
        presence: presence.clone(),
        last_seen_flush: settings.last_seen_flush,
        sweep: !settings.without_sweeper,
    });

    announce(&listener, &admin, embedded.as_ref())?;
    let (stop_http, stopped) = tokio::sync::oneshot::channel::<()>();
    let router = http::router(AppState { presence, identity });
    let mut server = tokio::spawn(http::serve(
        listener,
        router,
        async {
            let _ = stopped.await;
        },
        GRACE,
    ));
    let outcome = loop {
        tokio::select! {
            () = &mut stop => break Ok(()),
            failure = tasks.failed() => break Err(anyhow::anyhow!("{failure}; this is a defect, and the process ends rather than live on half alive")),
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
    drop(stop_http);
    let _ = (&mut server).await;
    tasks.stop().await;
    tracing::debug!("the loops have ended");
    live.close().await;
    tracing::debug!("the connections to Redis are closed");
    end(embedded).await;
    tracing::debug!("stopped");
    outcome
}

/// What there is to say of the account `admin`.
struct Admin {
    /// Whether it was made now.
    is_new: bool,
    /// Its password, where that was made up here.
    password: Option<String>,
}

/// Makes the account `admin` where there is no account at all.
async fn ensure_admin(settings: &Settings, identity: &Identity) -> anyhow::Result<Admin> {
    let made_up = backing::random_text()?[..20].to_string();
    let chosen = settings.admin_password.as_ref().map(Secret::reveal);
    let is_new = identity
        .ensure_admin(chosen.unwrap_or(&made_up))
        .await
        .context("the account 'admin' could not be made")?;
    Ok(Admin { is_new, password: (is_new && chosen.is_none()).then_some(made_up) })
}

/// What a newcomer needs next, on standard output; logs go to standard error.
fn announce(listener: &TcpListener, admin: &Admin, embedded: Option<&EmbeddedRedis>) -> anyhow::Result<()> {
    use std::io::Write;
    let address = format!("http://{}", listener.local_addr()?);
    let mut out = std::io::stdout().lock();
    writeln!(out, "address: {address}")?;
    if admin.is_new {
        let shown = admin.password.as_deref().unwrap_or("as PRESENCE_ADMIN_PASSWORD has it");
        writeln!(out, "admin password: {shown}")?;
    }
    let password = admin.password.as_deref().unwrap_or("…");
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

async fn end(embedded: Option<EmbeddedRedis>) {
    if let Some(embedded) = embedded {
        embedded.stop().await;
    }
}
