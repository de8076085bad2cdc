//! A real Redis Cluster for one test: three primaries, with a replica each or none.

use std::time::Duration;

use super::{poll::eventually, redis::RedisServer, tether};

/// Far more than it takes to agree, even on a machine that is busy with something else.
const AGREES_WITHIN: Duration = Duration::from_mins(1);
const PRIMARIES: usize = 3;
/// How long a node may be silent before the others take it for dead: as short as a busy machine bears.
pub const NODE_TIMEOUT: Duration = Duration::from_millis(1_500);

/// Nodes on loopback, the primaries first. They end with the value, and with the test process however that ends.
#[derive(Debug)]
pub struct RedisCluster {
    pub nodes: Vec<RedisServer>,
    replicas: usize,
}

/// One line of `CLUSTER NODES`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    pub id: String,
    pub port: u16,
    pub flags: String,
    /// First and last.
    pub slots: Vec<(u16, u16)>,
}

impl Line {
    fn has(&self, slot: u16) -> bool {
        self.slots.iter().any(|(first, last)| (*first..=*last).contains(&slot))
    }
}

impl RedisCluster {
    const SLOTS: u16 = 16_384;

    /// Starts six nodes with these arguments besides, and returns when they serve all slots.
    pub async fn start(arguments: &[&str]) -> Self {
        Self::start_with(PRIMARIES, arguments).await
    }

    /// Starts three primaries that no replica stands in for.
    pub async fn without_replicas(arguments: &[&str]) -> Self {
        Self::start_with(0, arguments).await
    }

    async fn start_with(replicas: usize, arguments: &[&str]) -> Self {
        let timeout = NODE_TIMEOUT.as_millis().to_string();
        let own = [
            ["--cluster-enabled", "yes"],
            ["--cluster-node-timeout", &timeout],
            ["--cluster-require-full-coverage", "no"],
            ["--cluster-replica-validity-factor", "0"],
            ["--repl-diskless-sync-delay", "0"],
        ];
        let mut nodes = Vec::new();
        for _ in 0..PRIMARIES + replicas {
            // The port of the bus is 10,000 more by default, which may be anybody's.
            let bus = tether::free_port().to_string();
            let arguments = [own.as_flattened(), &["--cluster-port", &bus], arguments].concat();
            nodes.push(RedisServer::start(&arguments).await);
        }
        let cluster = Self { nodes, replicas };
        cluster.form().await;
        cluster
    }

    async fn form(&self) {
        for (index, node) in self.nodes.iter().enumerate() {
            // Distinct from the beginning, or they would quarrel first.
            ok(node, &["CLUSTER", "SET-CONFIG-EPOCH", &(index + 1).to_string()]);
            if index < PRIMARIES {
                let slots = usize::from(Self::SLOTS);
                let (first, last) = (index * slots / PRIMARIES, (index + 1) * slots / PRIMARIES - 1);
                ok(node, &["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()]);
            }
            let bus = self.nodes[0].cli(&["CONFIG", "GET", "cluster-port"]);
            let bus = bus.lines().last().expect("a port");
            if index > 0 {
                ok(node, &["CLUSTER", "MEET", "127.0.0.1", &self.nodes[0].port().to_string(), bus]);
            }
        }
        self.everyone(|lines| lines.len() == self.nodes.len() && lines.iter().all(|line| line.port > 0))
            .await;
        for index in 0..self.replicas {
            let id = self.nodes[index].cli(&["CLUSTER", "MYID"]);
            ok(&self.nodes[index + PRIMARIES], &["CLUSTER", "REPLICATE", &id]);
        }
        self.settled().await;
    }

    /// `redis-cluster://…`, with each node that there was at first.
    pub fn url(&self) -> String {
        let others: Vec<String> =
            self.nodes[1..].iter().map(|node| format!("node=127.0.0.1:{}", node.port())).collect();
        format!("redis-cluster://127.0.0.1:{}?{}", self.nodes[0].port(), others.join("&"))
    }

    /// What a node says of all; empty where it says nothing.
    pub fn lines(&self, node: usize) -> Vec<Line> {
        let text = self.nodes[node].cli(&["CLUSTER", "NODES"]);
        text.lines().filter_map(line).collect()
    }

    /// The node that serves a slot, by the word of `witness`.
    pub fn owner_by(&self, witness: usize, slot: u16) -> usize {
        let lines = self.lines(witness);
        let line = lines.iter().find(|line| line.flags.contains("master") && line.has(slot));
        let port = line.unwrap_or_else(|| panic!("nobody has slot {slot}: {lines:?}")).port;
        self.nodes.iter().position(|node| node.port() == port).expect("one of ours")
    }

    /// The slot of a shard's keys.
    pub fn slot_of(shard: u32) -> u16 {
        fred::util::redis_keyslot(shard.to_string().as_bytes())
    }

    /// The node that was given a slot at first.
    pub fn first_owner(slot: u16) -> usize {
        let first = |index: usize| index * usize::from(Self::SLOTS) / PRIMARIES;
        (0..PRIMARIES).rfind(|index| first(*index) <= usize::from(slot)).expect("the first begins with 0")
    }

    /// The node that serves a shard, by the word of `witness`.
    pub fn of_shard_by(&self, witness: usize, shard: u32) -> usize {
        self.owner_by(witness, Self::slot_of(shard))
    }

    /// The node that replicates another, by the word of `witness`.
    pub fn replica_of(&self, primary: usize) -> usize {
        let id = self.nodes[primary].cli(&["CLUSTER", "MYID"]);
        let text = self.nodes[primary].cli(&["CLUSTER", "REPLICAS", &id]);
        let port = text.lines().find_map(line).unwrap_or_else(|| panic!("no replica: {text}")).port;
        self.nodes.iter().position(|node| node.port() == port).expect("one of ours")
    }

    /// Waits until every node that lives sees the others as `seen` wants it.
    pub async fn everyone(&self, seen: impl Fn(&[Line]) -> bool) {
        eventually(AGREES_WITHIN, async || {
            for node in 0..self.nodes.len() {
                let lines = self.lines(node);
                if !lines.is_empty() && !seen(&lines) {
                    return Err(lines);
                }
            }
            Ok(())
        })
        .await;
    }

    /// Waits until all are there, and the replicas follow.
    pub async fn settled(&self) {
        self.everyone(|lines| {
            let replicas = lines.iter().filter(|line| line.flags.contains("slave")).count();
            let slots: usize = lines
                .iter()
                .flat_map(|line| &line.slots)
                .map(|(first, last)| usize::from(last - first) + 1)
                .sum();
            let well = lines.iter().all(|line| !line.flags.contains("fail"));
            lines.len() == self.nodes.len()
                && replicas == self.replicas
                && slots == usize::from(Self::SLOTS)
                && well
        })
        .await;
        eventually(AGREES_WITHIN, async || {
            for node in &self.nodes {
                let info = node.cli(&["INFO", "replication"]);
                if info.contains("role:slave") && !info.contains("master_link_status:up") {
                    return Err(info);
                }
                let state = node.cli(&["CLUSTER", "INFO"]);
                if !state.contains("cluster_state:ok") {
                    return Err(state);
                }
            }
            Ok(())
        })
        .await;
    }

    /// Begins to move a slot, as `redis-cli --cluster reshard` does; see [`Self::finish_move`].
    pub fn begin_move(&self, slot: u16, from: usize, to: usize) {
        let (slot, source) = (slot.to_string(), self.nodes[from].cli(&["CLUSTER", "MYID"]));
        let target = self.nodes[to].cli(&["CLUSTER", "MYID"]);
        ok(&self.nodes[to], &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &source]);
        ok(&self.nodes[from], &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &target]);
    }

    /// Moves a slot's keys, `at_once` in a command, and then says whose it is.
    pub fn finish_move(&self, slot: u16, from: usize, to: usize, at_once: usize) {
        let (source, text, at_once) = (&self.nodes[from], slot.to_string(), at_once.to_string());
        let port = self.nodes[to].port().to_string();
        loop {
            let keys = source.cli(&["CLUSTER", "GETKEYSINSLOT", &text, &at_once]);
            let keys: Vec<&str> = keys.lines().filter(|key| !key.is_empty()).collect();
            if keys.is_empty() {
                break;
            }
            let said =
                source.cli(&[&["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"], &keys[..]].concat());
            assert!(said == "OK" || said == "NOKEY", "{said}");
        }
        let target = self.nodes[to].cli(&["CLUSTER", "MYID"]);
        // The new owner first: it dates its claim.
        for node in [to, from] {
            ok(&self.nodes[node], &["CLUSTER", "SETSLOT", &text, "NODE", &target]);
        }
    }
}

/// Runs a command that must do.
fn ok(node: &RedisServer, command: &[&str]) {
    let said = node.cli(command);
    assert_eq!(said, "OK", "{command:?}");
}

fn line(text: &str) -> Option<Line> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let port = words.get(1)?.split('@').next()?.rsplit_once(':')?.1.parse().ok()?;
    let slots = words.get(8..).unwrap_or_default().iter().filter(|word| !word.starts_with('['));
    let slots = slots.map(|word| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        (first.parse().expect("a slot"), last.parse().expect("a slot"))
    });
    Some(Line { id: words[0].to_owned(), port, flags: (*words.get(2)?).to_owned(), slots: slots.collect() })
}
