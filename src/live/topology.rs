//! Where Redis is: one server for good, the primaries of a cluster, or the primary that sentinels name.
//!
//! A keeper asks the servers (or sentinels) themselves, on connections that last for one question: now and then, and at once
//! when a call has found something odd. It knows nothing of the calls. fred's own clients for clusters and sentinels are
//! not used: one task of theirs serves all nodes and waits while it connects anew (`router/mod.rs`; issues 59, 145 and 208 of
//! aembke/fred.rs), so that one dead primary would hold up the calls to all others.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::interfaces::ClientLike;
use fred::types::config::{Config, Server, ServerConfig};
use fred::types::{ClusterHash, CustomCommand, RespVersion};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};

use super::embedded::SOCKET_SCHEME;
use super::node::{AbortOnDrop, visitor};
use super::view::{Map, View};
use super::{LiveError, Result};

/// A look for its own sake: whoever calls a server that serves no more is told so, and asks for a look.
const ROUND: Duration = Duration::from_secs(5);
/// Between two looks while something is odd.
const PAUSE: Duration = Duration::from_millis(200);
/// How long one server may take to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Servers asked in one round, primaries first.
const ASKED: usize = 16;

/// What `REDIS_URL` may carry behind its question mark. Others would be ignored without a word.
const PARAMETERS: [&str; 4] = ["node", "sentinelServiceName", "sentinelUsername", "sentinelPassword"];

/// Where Redis is; clones share it.
#[derive(Clone)]
pub(super) struct Topology {
    shared: Arc<Shared>,
    keeper: Option<Arc<AbortOnDrop>>,
}

struct Shared {
    config: Config,
    kind: Kind,
    map: watch::Sender<Arc<Map>>,
    suspected: Notify,
    silent: AtomicBool,
}

enum Kind {
    One,
    Cluster { seeds: Vec<Server> },
    Sentinels { seeds: Vec<Server>, service: String, username: Option<String>, password: Option<String> },
}

impl Topology {
    /// Reads the URL, and begins to look where that is needed.
    ///
    /// # Errors
    /// [`LiveError::Url`].
    pub(super) fn open(url: &str) -> Result<Self> {
        let config = read(url)?;
        let (kind, map) = match &config.server {
            ServerConfig::Clustered { hosts, .. } => (Kind::Cluster { seeds: hosts.clone() }, Map::default()),
            ServerConfig::Sentinel { hosts, service_name, username, password } => {
                let kind = Kind::Sentinels {
                    seeds: hosts.clone(),
                    service: service_name.clone(),
                    username: username.clone(),
                    password: password.clone(),
                };
                (kind, Map::default())
            }
            ServerConfig::Centralized { server } => {
                (Kind::One, Map::default().merge(&[View::of_one(server.clone(), 0, vec![])]))
            }
            // One file, whatever it is called.
            ServerConfig::Unix { .. } => {
                (Kind::One, Map::default().merge(&[View::of_one(Server::new("unix", 0), 0, vec![])]))
            }
        };
        let map = watch::Sender::new(Arc::new(map));
        let shared =
            Arc::new(Shared { config, kind, map, suspected: Notify::new(), silent: AtomicBool::new(false) });
        let keeper = (!matches!(shared.kind, Kind::One))
            .then(|| Arc::new(AbortOnDrop(tokio::spawn(keep(shared.clone())))));
        Ok(Self { shared, keeper })
    }

    /// Whether there is one server for good.
    pub(super) fn is_fixed(&self) -> bool {
        self.keeper.is_none()
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.shared.kind, Kind::Cluster { .. })
    }

    /// Who serves a slot, as far as is known.
    pub(super) fn of(&self, slot: u16) -> Option<Server> {
        self.shared.map.borrow().of(slot).cloned()
    }

    pub(super) fn map(&self) -> Arc<Map> {
        self.shared.map.borrow().clone()
    }

    /// Told when something has changed.
    pub(super) fn changes(&self) -> watch::Receiver<Arc<Map>> {
        self.shared.map.subscribe()
    }

    /// A call has found something odd: look soon.
    pub(super) fn suspect(&self) {
        self.shared.suspected.notify_one();
    }

    /// A server has said that another serves this slot.
    pub(super) fn moved(&self, slot: u16, to: &Server) {
        self.suspect();
        self.shared.map.send_if_modified(|map| {
            let is_new = map.of(slot) != Some(to);
            if is_new {
                *map = Arc::new(Map::clone(map).moved(slot, to.clone()));
            }
            is_new
        });
    }

    /// How one of the servers is reached.
    pub(super) fn config(&self, server: &Server) -> Config {
        let mut config = self.shared.config.clone();
        if !self.is_fixed() {
            config.server = ServerConfig::Centralized { server: server.clone() };
        }
        config
    }

    /// The number of the database that the URL names.
    pub(super) fn database(&self) -> u8 {
        self.shared.config.database.unwrap_or(0)
    }

    /// Whether nobody looks any more, which only the end of the process should bring about.
    pub(super) fn is_abandoned(&self) -> bool {
        self.keeper.as_ref().is_some_and(|keeper| keeper.0.is_finished())
    }
}

/// Reads the URL of a server of the operator's, or the plain path of the embedded server's socket.
fn read(url: &str) -> Result<Config> {
    if let Some(path) = url.strip_prefix(SOCKET_SCHEME) {
        return Ok(Config { server: ServerConfig::new_unix_socket(path), ..Config::default() });
    }
    let config = Config::from_url(url).map_err(|error| LiveError::Url(error.details().to_string()))?;
    check_parameters(url)?;
    Ok(config)
}

/// A misspelt `node` would leave the service with one server to ask.
fn check_parameters(url: &str) -> Result<()> {
    let query = url.split_once('?').map(|(_, query)| query.split('#').next().unwrap_or_default());
    for (name, _) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        if !PARAMETERS.contains(&&*name) {
            return Err(LiveError::Url(format!(
                "it has the parameter '{name}', which is none of {}",
                PARAMETERS.join(", ")
            )));
        }
    }
    Ok(())
}

/// Looks, for ever.
async fn keep(shared: Arc<Shared>) {
    loop {
        shared.look().await;
        sleep(PAUSE).await;
        let _ = timeout(ROUND, shared.suspected.notified()).await;
    }
}

impl Shared {
    /// Asks all at once. What an answer brings counts at once; when all have answered, only what they say counts.
    async fn look(&self) {
        let asked = self.whom_to_ask();
        let count = asked.len();
        let mut answers: FuturesUnordered<_> = asked.into_iter().map(|server| self.ask(server)).collect();
        let (mut views, mut trouble) = (Vec::new(), None);
        while let Some(answer) = answers.next().await {
            match answer {
                Ok(view) => {
                    let known = self.map.borrow().clone();
                    self.publish(Map::clone(&known).merge(std::slice::from_ref(&view)));
                    views.push(view);
                }
                Err(error) => trouble = Some(error),
            }
        }
        // Fewer than half may be those who know least. Claims that nobody makes any more go with the next full round.
        if views.len() * 2 > count {
            self.publish(Map::default().merge(&views));
        }
        self.say(views.is_empty().then_some(trouble).flatten());
        if self.map.borrow().primaries().is_empty() {
            self.suspected.notify_one();
        }
    }

    /// Those of the URL, the primaries that are known, and the others.
    fn whom_to_ask(&self) -> Vec<Server> {
        let (Kind::Cluster { seeds } | Kind::Sentinels { seeds, .. }) = &self.kind else { return vec![] };
        let map = self.map.borrow();
        // A primary is no sentinel.
        let primaries = if matches!(self.kind, Kind::Cluster { .. }) { map.primaries() } else { vec![] };
        let mut seen = BTreeSet::new();
        let all = primaries.iter().chain(seeds).chain(map.members());
        all.filter(|server| seen.insert((*server).clone())).take(ASKED).cloned().collect()
    }

    fn publish(&self, map: Map) {
        let map = map.compact();
        self.map.send_if_modified(|known| {
            let (before, now) = (known.primaries(), map.primaries());
            if before != now {
                let names: Vec<_> = now.iter().map(ToString::to_string).collect();
                tracing::info!(primaries = names.join(", "), "Redis is served by");
            }
            let is_new = **known != map;
            if is_new {
                *known = Arc::new(map);
            }
            is_new
        });
    }

    /// One line when the trouble begins, one when it is over.
    fn say(&self, trouble: Option<Error>) {
        let whom = if matches!(self.kind, Kind::Cluster { .. }) { "node of the cluster" } else { "sentinel" };
        match trouble {
            Some(error) => {
                if !self.silent.swap(true, Ordering::Relaxed) {
                    let error = error.details();
                    tracing::warn!(error, "no {whom} says where Redis is; what was known of it is kept");
                }
            }
            None => {
                if self.silent.swap(false, Ordering::Relaxed) {
                    tracing::info!("over: a {whom} says where Redis is");
                }
            }
        }
    }

    async fn ask(&self, server: Server) -> std::result::Result<View, Error> {
        let mut config = self.config.clone();
        config.server = ServerConfig::Centralized { server: server.clone() };
        config.version = RespVersion::RESP2;
        if let Kind::Sentinels { username, password, .. } = &self.kind {
            (config.username, config.password, config.database) = (username.clone(), password.clone(), None);
        }
        let by_name = config.tls.is_some();
        let client =
            visitor(config, PATIENCE).map_err(|error| Error::new(ErrorKind::Config, error.to_string()))?;
        let asking = async {
            client.init().await?;
            if let Kind::Sentinels { service, .. } = &self.kind {
                return ask_sentinel(&client, service).await;
            }
            let text: String = client.custom(command("CLUSTER"), vec!["NODES"]).await?;
            Ok(View::of_cluster(&text, &server, by_name))
        };
        let answer = timeout(PATIENCE, asking).await;
        tokio::spawn(async move { timeout(PATIENCE, client.quit()).await.map(drop) });
        answer.unwrap_or_else(|_| Err(Error::new(ErrorKind::Timeout, format!("{server} does not answer"))))
    }
}

/// The primary, by the sentinel's word, dated by the epoch of its last failover; and the other sentinels.
/// (<https://redis.io/docs/latest/develop/reference/sentinel-clients/>)
async fn ask_sentinel(client: &Client, service: &str) -> std::result::Result<View, Error> {
    // The sentinel that leads a failover tells the new address by this command first, and the epoch by the other.
    let address: Option<(String, u16)> =
        client.custom(command("SENTINEL"), vec!["GET-MASTER-ADDR-BY-NAME", service]).await?;
    let Some((host, port)) = address else {
        let unknown = format!("the sentinels know no service '{service}' (sentinelServiceName)");
        return Err(Error::new(ErrorKind::NotFound, unknown));
    };
    let about: Vec<String> = client.custom(command("SENTINEL"), vec!["MASTER", service]).await?;
    let others: Vec<Vec<String>> = client.custom(command("SENTINEL"), vec!["SENTINELS", service]).await?;
    let epoch = field(&about, "config-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
    let others = others
        .iter()
        .filter_map(|about| Some(Server::new(field(about, "ip")?, field(about, "port")?.parse().ok()?)));
    Ok(View::of_one(Server::new(host, port), epoch, others.collect()))
}

fn field<'a>(about: &'a [String], name: &str) -> Option<&'a str> {
    about.chunks_exact(2).find(|pair| pair[0] == name).map(|pair| pair[1].as_str())
}

fn command(name: &'static str) -> CustomCommand {
    CustomCommand::new_static(name, ClusterHash::FirstKey, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_parameter_is_refused_by_its_name() {
        for good in
            ["redis://h", "redis-cluster://h:1?node=i:2&node=j:3", "redis-sentinel://h?sentinelServiceName=m"]
        {
            assert!(check_parameters(good).is_ok(), "{good}");
        }
        let refused = check_parameters("redis-cluster://h:1?nodes=i:2").unwrap_err().to_string();
        assert!(refused.contains("'nodes'") && refused.contains("node,"), "{refused}");
    }
}
