//! What the machine does to a run by itself: a disk that stands still for seconds, a processor that is elsewhere. A stall is
//! noted as a fault, so that what came late by it is not blamed on the service; it excuses lateness and nothing else.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};

use super::crowd::now;
use super::ledger::{Fault, Span};
use super::servers::Servers;
use crate::support::sql::Sql;

/// What takes longer than this is a stall.
const STALL: Duration = Duration::from_millis(250);
const PACE: Duration = Duration::from_millis(50);

/// Watches from its beginning to [`Watch::end`].
pub struct Watch {
    stalls: Arc<Mutex<Vec<Fault>>>,
    watchers: JoinSet<()>,
}

impl Watch {
    pub fn begin(redis: &Servers, sql: &Sql) -> Self {
        let stalls = Arc::new(Mutex::new(Vec::new()));
        let mut watchers = JoinSet::new();
        for (node, server) in redis.nodes().iter().enumerate() {
            let port = server.port();
            // A write, which waits for the disk as a heartbeat does.
            let write = format!("SET watch:{{{}}} 1\r\n", redis.shards_of(node)[0]);
            watchers.spawn(watch(stalls.clone(), "Redis", async move || {
                let Ok(mut stream) = TcpStream::connect(("127.0.0.1", port)).await else { return };
                let mut answer = [0; 64];
                if stream.write_all(write.as_bytes()).await.is_ok() {
                    let _ = stream.read(&mut answer).await;
                }
            }));
        }
        let sql = sql.clone();
        watchers.spawn(watch(stalls.clone(), "PostgreSQL", async move || {
            let _ = sql.try_run("UPDATE users SET email = email WHERE id = 1").await;
        }));
        watchers.spawn(watch(stalls.clone(), "the processor", async || {}));
        Self { stalls, watchers }
    }

    /// What was seen, as faults.
    pub async fn end(mut self) -> Vec<Fault> {
        self.watchers.shutdown().await;
        std::mem::take(&mut *self.stalls.lock().unwrap())
    }
}

async fn watch(stalls: Arc<Mutex<Vec<Fault>>>, what: &'static str, mut probe: impl AsyncFnMut()) {
    let mut pace = interval(PACE);
    loop {
        let due = pace.tick().await;
        let (from, begun) = (now(), Instant::now());
        let late = begun - due;
        probe().await;
        if late.max(begun.elapsed()) > STALL {
            let late = i64::try_from(late.as_millis()).unwrap();
            stalls.lock().unwrap().push(Fault {
                only: None,
                name: format!("a stall of {what}"),
                span: Span { from: from - late, to: now() },
                aftermath_ms: 1_000,
                forgot_since: None,
            });
            pace.reset();
        }
    }
}
