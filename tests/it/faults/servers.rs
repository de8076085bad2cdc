//! The Redis of a run: one server behind a proxy, or a cluster of primaries, each of which alone holds its shards.

use std::collections::BTreeSet;
use std::path::Path;

use super::world::USERS;
use crate::support::cluster::RedisCluster;
use crate::support::proxy::Proxy;
use crate::support::redis::RedisServer;

/// Nothing that was acknowledged is lost by a kill: what a round loses it loses on purpose.
const KEEPS_ALL: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];
/// Shards on a cluster: some at each primary.
const SHARDS: u32 = 6;

pub enum Servers {
    One(RedisServer, Proxy),
    Cluster(RedisCluster),
}

impl Servers {
    pub async fn one() -> Self {
        let server = RedisServer::start(&KEEPS_ALL).await;
        let proxy = Proxy::before(server.port()).await;
        Self::One(server, proxy)
    }

    pub async fn cluster() -> Self {
        Self::Cluster(RedisCluster::without_replicas(&KEEPS_ALL).await)
    }

    /// By which the instances reach it.
    pub fn url(&self) -> String {
        match self {
            Self::One(server, proxy) => {
                server.url().replace(&format!(":{}", server.port()), &format!(":{}", proxy.port()))
            }
            Self::Cluster(cluster) => cluster.url(),
        }
    }

    pub fn shards(&self) -> u32 {
        match self {
            Self::One(..) => 1,
            Self::Cluster(_) => SHARDS,
        }
    }

    pub fn nodes(&self) -> &[RedisServer] {
        match self {
            Self::One(server, _) => std::slice::from_ref(server),
            Self::Cluster(cluster) => &cluster.nodes,
        }
    }

    pub fn node_mut(&mut self, node: usize) -> &mut RedisServer {
        match self {
            Self::One(server, _) => server,
            Self::Cluster(cluster) => &mut cluster.nodes[node],
        }
    }

    /// What is between the instances and the one server.
    pub const fn proxy(&self) -> Option<&Proxy> {
        match self {
            Self::One(_, proxy) => Some(proxy),
            Self::Cluster(_) => None,
        }
    }

    /// Runs redis-cli at the server of a shard.
    pub fn cli(&self, shard: u32, arguments: &[&str]) -> String {
        self.nodes()[self.node_of(shard)].cli(arguments)
    }

    /// The shards of a server.
    pub fn shards_of(&self, node: usize) -> Vec<u32> {
        (0..self.shards()).filter(|shard| self.node_of(*shard) == node).collect()
    }

    /// The users whose presence a server holds; `None` for all.
    pub fn users_of(&self, node: usize) -> Option<BTreeSet<i64>> {
        let shard = |user: i64| u32::try_from(user).unwrap() % self.shards();
        matches!(self, Self::Cluster(_))
            .then(|| (1..=USERS).filter(|user| self.node_of(shard(*user)) == node).collect())
    }

    fn node_of(&self, shard: u32) -> usize {
        match self {
            Self::One(..) => 0,
            // Slots do not move here.
            Self::Cluster(_) => RedisCluster::first_owner(RedisCluster::slot_of(shard)),
        }
    }

    /// Takes away what a server that has ended has on its disk, or puts a copy in its place, and starts it.
    pub async fn start_on(&mut self, node: usize, copy: Option<&Path>) {
        let server = self.node_mut(node);
        let folder = server.folder().join("appendonlydir");
        std::fs::remove_dir_all(&folder).unwrap();
        if let Some(copy) = copy {
            super::world::copy_folder(&copy.join(node.to_string()), &folder);
        }
        server.restart().await;
    }

    /// Waits until every server takes writes: a primary that was started anew waits for two seconds first.
    pub async fn are_well(&self) {
        if let Self::Cluster(cluster) = self {
            cluster.settled().await;
        }
    }

    /// What the servers have logged.
    pub fn output(&self) -> String {
        self.nodes().iter().map(RedisServer::output).collect()
    }
}
