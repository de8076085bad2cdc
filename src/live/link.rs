//! The way from a key to the server that has it: a connection to each primary, and what is done about redirections.
//!
//! Servers fail apart: a call to one that is dead fails at once, and waits for no other. A call that meets a slot on the move
//! goes after it, or waits until it has arrived.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use fred::clients::Client;
use fred::error::{Error, ErrorKind};
use fred::types::Key;
use fred::types::config::{Config, Server};
use fred::util::redis_keyslot;
use tokio::sync::{broadcast, watch};
use tokio::time::sleep;

use super::node::{AbortOnDrop, Node, PATIENCE, Timeouts};
use super::topology::Topology;
use super::view::Map;
use super::{LiveError, Result};

/// How long a call waits for a slot that is on the move: less than a heartbeat's patience, so that the answer is still
/// about the slot.
const MOVING: Duration = Duration::from_millis(1_200);
/// Between two attempts meanwhile.
const AGAIN: Duration = Duration::from_millis(20);
/// Redirections followed at once; more of them go in circles, while the servers have not agreed yet.
const HOPS: u32 = 4;
/// Between two looks for another server where the only one takes no writes: a replica that was the primary closes no
/// connection, and whoever asks for its name again may find the new one. Reads are cut short by each look.
const LOOK_ELSEWHERE: Duration = Duration::from_secs(5);

/// Connections to all primaries, each of which comes back by itself; clones share them.
#[derive(Clone)]
pub(super) struct Link {
    inner: Arc<Inner>,
    tender: Arc<AbortOnDrop>,
}

struct Inner {
    topology: Topology,
    timeouts: Timeouts,
    nodes: Mutex<HashMap<Server, Node>>,
    /// Opened when Redis is known to be the right one ([`super::LiveSet::ready`]); until then it is as good as away.
    gate: Arc<AtomicBool>,
    reconnected: broadcast::Sender<()>,
    looked_elsewhere: Mutex<Option<Instant>>,
}

/// What a server says instead of an answer.
#[derive(Debug, PartialEq, Eq)]
enum Redirection {
    /// Another serves the slot; without a name where the server does not know its own.
    Moved(Option<Server>),
    /// The slot is on its way from one server to another, and neither has all keys of the call.
    Moving,
}

impl Link {
    /// Starts connecting; does not wait for Redis.
    pub(super) fn open(topology: &Topology, timeouts: Timeouts, gate: &Arc<AtomicBool>) -> Self {
        let inner = Arc::new(Inner {
            topology: topology.clone(),
            timeouts,
            nodes: Mutex::default(),
            gate: gate.clone(),
            reconnected: broadcast::Sender::new(16),
            looked_elsewhere: Mutex::default(),
        });
        // From here on, so that no change falls between the two.
        let changes = topology.changes();
        inner.match_map();
        let tender = tokio::spawn(tend(Arc::downgrade(&inner), changes));
        Self { inner, tender: Arc::new(AbortOnDrop(tender)) }
    }

    /// Runs a command on the server that has `key`; fails with [`LiveError::Down`] where that cannot be reached. Makes
    /// the command anew where it is redirected. The inner result is Redis's own answer.
    pub(super) async fn call<T, F>(
        &self,
        key: &Key,
        command: impl Fn(Client) -> F,
    ) -> Result<std::result::Result<T, Error>>
    where
        F: Future<Output = std::result::Result<T, Error>>,
    {
        self.check_gate()?;
        self.call_before_ready(key, command).await
    }

    /// [`Self::call`] for the one question that opens the gate.
    pub(super) async fn call_before_ready<T, F>(
        &self,
        key: &Key,
        command: impl Fn(Client) -> F,
    ) -> Result<std::result::Result<T, Error>>
    where
        F: Future<Output = std::result::Result<T, Error>>,
    {
        let topology = &self.inner.topology;
        let slot = redis_keyslot(key.as_bytes());
        let (begun, mut hops, mut redirected) = (Instant::now(), 0, None);
        loop {
            let Some(server) = redirected.take().or_else(|| topology.of(slot)) else {
                topology.suspect();
                return Err(LiveError::Down);
            };
            let answer = self.inner.run(&server, &command).await?;
            let redirection = answer.as_ref().err().and_then(|error| redirection(error, &server));
            let Some(redirection) = redirection.filter(|_| begun.elapsed() < MOVING) else {
                return Ok(answer);
            };
            match redirection {
                Redirection::Moved(to) => {
                    let to = to.unwrap_or(server);
                    topology.moved(slot, &to);
                    redirected = Some(to);
                    hops += 1;
                    if hops % HOPS == 0 {
                        sleep(AGAIN).await;
                    }
                }
                Redirection::Moving => sleep(AGAIN).await,
            }
        }
    }

    /// [`Self::call_at`] for what is asked before the gate opens.
    pub(super) async fn call_at_before_ready<T, F>(
        &self,
        server: &Server,
        command: impl Fn(Client) -> F,
    ) -> Result<std::result::Result<T, Error>>
    where
        F: Future<Output = std::result::Result<T, Error>>,
    {
        self.inner.run(server, &command).await
    }

    /// Runs a command on this very server.
    pub(super) async fn call_at<T, F>(
        &self,
        server: &Server,
        command: impl Fn(Client) -> F,
    ) -> Result<std::result::Result<T, Error>>
    where
        F: Future<Output = std::result::Result<T, Error>>,
    {
        self.check_gate()?;
        self.inner.run(server, &command).await
    }

    fn check_gate(&self) -> Result<()> {
        if self.inner.gate.load(Ordering::Relaxed) { Ok(()) } else { Err(LiveError::Down) }
    }

    /// Returns when a connection is not looked after any more.
    pub(super) async fn abandoned(&self) {
        while !(self.tender.0.is_finished()
            || self.inner.topology.is_abandoned()
            || self.inner.nodes().values().any(Node::is_abandoned))
        {
            sleep(PATIENCE).await;
        }
    }

    /// Waits until a primary is connected: of several one will do, for they fail apart.
    pub(super) async fn connected(&self) {
        loop {
            let nodes: Vec<Node> = self.inner.nodes().values().cloned().collect();
            if nodes.iter().any(Node::is_up) {
                return;
            }
            if nodes.is_empty() {
                let mut changes = self.inner.topology.changes();
                let _ = tokio::time::timeout(PATIENCE, changes.changed()).await;
            } else {
                let changes = nodes.iter().map(|node| Box::pin(node.changed()));
                futures_util::future::select_all(changes).await;
            }
        }
    }

    /// Told at each (re)connection, and when slots have gone to another server.
    pub(super) fn reconnections(&self) -> broadcast::Receiver<()> {
        self.inner.reconnected.subscribe()
    }

    pub(super) async fn close(&self) {
        let nodes: Vec<Node> = self.inner.nodes().values().cloned().collect();
        futures_util::future::join_all(nodes.iter().map(Node::close)).await;
    }
}

/// Keeps a connection to each primary, from before the first call to it.
async fn tend(inner: Weak<Inner>, mut changes: watch::Receiver<Arc<Map>>) {
    while changes.changed().await.is_ok() {
        let Some(inner) = inner.upgrade() else { return };
        inner.match_map();
        let _ = inner.reconnected.send(());
    }
}

impl Inner {
    fn nodes(&self) -> MutexGuard<'_, HashMap<Server, Node>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens connections to new primaries, and lets go of those to servers that serve nothing.
    fn match_map(&self) {
        let primaries = self.topology.map().primaries();
        for server in &primaries {
            if let Err(error) = self.node(server) {
                tracing::error!(%error, %server, "no connection can be made");
            }
        }
        if primaries.is_empty() {
            return;
        }
        let mut nodes = self.nodes();
        let gone: Vec<Server> = nodes.keys().filter(|server| !primaries.contains(server)).cloned().collect();
        for node in gone.iter().filter_map(|server| nodes.remove(server)) {
            // Calls under way end by themselves.
            tokio::spawn(async move { node.close().await });
        }
    }

    fn node(&self, server: &Server) -> Result<Node> {
        let mut nodes = self.nodes();
        if let Some(node) = nodes.get(server) {
            return Ok(node.clone());
        }
        let config: Config = self.topology.config(server);
        let node = Node::open(config, self.timeouts, self.reconnected.clone())?;
        nodes.insert(server.clone(), node.clone());
        Ok(node)
    }

    async fn run<T, F>(
        &self,
        server: &Server,
        command: &impl Fn(Client) -> F,
    ) -> Result<std::result::Result<T, Error>>
    where
        F: Future<Output = std::result::Result<T, Error>>,
    {
        let node = self.node(server)?;
        // On the heap: fred's futures are large, and this one is part of everyone's.
        let answer = node.run(Box::pin(command(node.client()))).await;
        match &answer {
            Err(_) => self.topology.suspect(),
            Ok(Err(error)) if error.details().starts_with("READONLY") => self.look_elsewhere(&node),
            Ok(Err(error))
                if *error.kind() == ErrorKind::Timeout || error.details().starts_with("CLUSTERDOWN") =>
            {
                self.topology.suspect();
            }
            Ok(_) => {}
        }
        answer
    }

    /// The server is a replica: another must be the primary.
    fn look_elsewhere(&self, node: &Node) {
        if !self.topology.is_fixed() {
            self.topology.suspect();
            return;
        }
        let mut looked = self.looked_elsewhere.lock().unwrap_or_else(PoisonError::into_inner);
        if looked.is_none_or(|looked| looked.elapsed() >= LOOK_ELSEWHERE) {
            *looked = Some(Instant::now());
            node.replace_connection();
        }
    }
}

fn redirection(error: &Error, asked: &Server) -> Option<Redirection> {
    let mut words = error.details().split(' ');
    match words.next()? {
        "MOVED" => Some(Redirection::Moved(words.nth(1).and_then(|address| server(address, asked)))),
        // Whatever has arrived already, a script wants all its keys in one place.
        "ASK" | "TRYAGAIN" => Some(Redirection::Moving),
        _ => None,
    }
}

/// `10.0.0.2:7002`; a server that does not know its own name leaves it out.
fn server(address: &str, asked: &Server) -> Option<Server> {
    let (host, port) = address.rsplit_once(':')?;
    let host = if host.is_empty() || host == "?" { &asked.host } else { host };
    Some(Server::new(host, port.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirections_are_told_from_other_errors() {
        let asked = Server::new("10.0.0.1", 7001);
        let of = |text: &str| redirection(&Error::new(ErrorKind::Unknown, text.to_owned()), &asked);
        let moved = |host: &str| Some(Redirection::Moved(Some(Server::new(host, 7002))));
        assert_eq!(of("MOVED 866 10.0.0.2:7002"), moved("10.0.0.2"));
        assert_eq!(of("MOVED 866 :7002"), moved("10.0.0.1"));
        assert_eq!(of("MOVED 866 ::1:7002"), moved("::1"));
        assert_eq!(of("MOVED 866 nonsense"), Some(Redirection::Moved(None)));
        assert_eq!(of("ASK 866 10.0.0.2:7002"), Some(Redirection::Moving));
        assert_eq!(of("TRYAGAIN Multiple keys request during rehashing of slot"), Some(Redirection::Moving));
        assert_eq!(of("CLUSTERDOWN The cluster is down"), None);
    }

    #[tokio::test]
    async fn a_link_whose_watcher_dies_says_that_it_is_abandoned() {
        let topology = Topology::open("redis://127.0.0.1:1").unwrap();
        let timeouts = Timeouts { command: Duration::from_secs(1), extra: Duration::ZERO };
        let link = Link::open(&topology, timeouts, &Arc::default());
        let abandoned = tokio::time::timeout(Duration::from_secs(30), link.abandoned());
        let death = async {
            tokio::task::yield_now().await;
            for node in link.inner.nodes().values() {
                node.abort_watcher();
            }
        };
        assert!(tokio::join!(abandoned, death).0.is_ok(), "its absence is no reason, its end is");
    }
}
