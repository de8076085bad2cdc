//! The servers that serve something: what has to be done at each of them, whatever keys they hold.

use std::sync::Arc;

use fred::interfaces::KeysInterface;
use fred::types::config::Server;
use fred::types::{Expiration, Key};
use fred::util::redis_keyslot;
use tokio::sync::watch;

use super::live_set::LiveSet;
use super::view::{Map, SLOTS};
use super::{LiveError, Result};

/// A server that serves something: the only one, or one of a cluster's.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Primary(pub(super) Server);

impl std::fmt::Display for Primary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Who serves, as it changes.
pub struct Primaries(watch::Receiver<Arc<Map>>);

impl Primaries {
    /// Who serves now; nobody where that is not known yet.
    pub fn now(&mut self) -> Vec<Primary> {
        self.0.borrow_and_update().primaries().into_iter().map(Primary).collect()
    }

    /// Returns when that may have changed since the last look.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl LiveSet {
    /// Who serves.
    pub fn primaries(&self) -> Primaries {
        Primaries(self.topology.changes())
    }

    /// Whether each primary answers and takes writes, by a key that is gone at once.
    ///
    /// # Errors
    /// What the first says that does not.
    pub async fn takes_writes(&self) -> Result<()> {
        let primaries = self.topology.map().primaries();
        if primaries.is_empty() {
            return Err(LiveError::Down);
        }
        let writes = primaries.iter().map(|server| async move {
            let key = self.key_at(server, |n| self.keys(0).probe(&self.options.instance, n))?;
            let write = self.front.call_at(server, |client| {
                let key = key.clone();
                async move { client.set::<(), _, _>(key, "", Some(Expiration::PX(1)), None, false).await }
            });
            match write.await?.map_err(LiveError::from) {
                // The slot is somebody else's by now, or on its way: the server is well.
                Err(LiveError::Refused(reason)) if is_redirection(&reason) => Ok(()),
                other => other,
            }
        });
        futures_util::future::join_all(writes).await.into_iter().collect()
    }

    /// A key that lies at this server: the first of those that `name` makes.
    pub(super) fn key_at(&self, server: &Server, name: impl Fn(u32) -> Key) -> Result<Key> {
        let map = self.topology.map();
        // Some are wanted more than there are slots, for names fall anywhere.
        let mut names = (0..u32::from(SLOTS) * 16).map(name);
        names
            .find(|key| map.of(redis_keyslot(key.as_bytes())) == Some(server))
            .ok_or_else(|| LiveError::Redis(format!("{server} serves nothing any more")))
    }
}

fn is_redirection(reason: &str) -> bool {
    ["MOVED", "ASK", "TRYAGAIN"].iter().any(|word| reason.starts_with(word))
}
