//! Which installation this Redis belongs to, and whether it may forget (invariant 13).
//!
//! SQL holds a random id of the installation, and so does Redis. Until both are known to be the same, the loops that carry
//! something from SQL to Redis or back wait: another installation's blocklist would bar this one's users.

use fred::interfaces::{ClientLike, KeysInterface};
use fred::types::{InfoKind, SetOptions};
use tokio::time::sleep;

use super::live_set::{ASK_AGAIN, LiveSet};
use super::{LiveError, Result};
use crate::model::UserId;

/// The policy under which Redis never deletes a key for want of memory.
const NO_EVICTION: &str = "noeviction";

impl LiveSet {
    /// Makes sure that this Redis belongs to the installation `id`, and notes it where Redis has none. Waits while Redis is
    /// away. [`Self::verified`] returns from then on.
    ///
    /// # Errors
    /// [`LiveError::Installation`] where it belongs to another.
    pub async fn belong_to(&self, id: &str) -> Result<()> {
        // Set once: one process works with one database.
        let _ = self.installation.set(id.to_owned());
        loop {
            self.connected().await;
            match self.confirm_installation().await {
                Err(LiveError::Down | LiveError::Timeout | LiveError::Refused(_)) => sleep(ASK_AGAIN).await,
                outcome => return outcome,
            }
        }
    }

    /// Notes the installation's id again where Redis has lost it, and compares it where it has not. Nothing happens before
    /// [`Self::belong_to`] has been called.
    ///
    /// # Errors
    /// [`LiveError::Installation`] where Redis belongs to another installation by now: every further call then finds Redis
    /// away. Or whatever keeps Redis from answering.
    pub async fn confirm_installation(&self) -> Result<()> {
        let Some(ours) = self.installation.get() else { return Ok(()) };
        let key = self.keys(0).installation();
        let set = self.back.call_before_ready(&key, |client| {
            let (key, ours) = (key.clone(), ours.clone());
            async move { client.set::<(), _, _>(key, ours, None, Some(SetOptions::NX), false).await }
        });
        set.await??;
        let found = self.found_installation().await?;
        let same = found.as_ref() == Some(ours);
        self.verified.send_if_modified(|verified| std::mem::replace(verified, same) != same);
        if same {
            return Ok(());
        }
        self.close_gate();
        Err(LiveError::Installation {
            ours: ours.clone(),
            found: found.unwrap_or_default(),
            prefix: self.options.prefix.clone(),
        })
    }

    /// The installation that this Redis belongs to; `None` where none is noted. Changes nothing.
    ///
    /// # Errors
    /// Whatever keeps Redis from answering.
    pub async fn found_installation(&self) -> Result<Option<String>> {
        let key = self.keys(0).installation();
        let get = self.back.call_before_ready(&key, |client| {
            let key = key.clone();
            async move { client.get::<Option<String>, _>(key).await }
        });
        Ok(get.await??)
    }

    /// Returns when this Redis is known to belong to the installation of this process's database.
    pub async fn verified(&self) {
        let mut verified = self.verified.subscribe();
        if verified.wait_for(|verified| *verified).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether [`Self::verified`] would return at once.
    pub fn is_verified(&self) -> bool {
        *self.verified.borrow()
    }

    /// The `maxmemory-policy` of a primary that may evict keys; `None` where none does, or none says.
    ///
    /// # Errors
    /// Where a primary cannot be asked.
    pub async fn eviction_policy(&self) -> Result<Option<String>> {
        for server in self.topology.map().primaries() {
            let info = self.back.call_at_before_ready(&server, |client| async move {
                client.info::<String>(Some(InfoKind::Memory)).await
            });
            let info = match info.await?.map_err(LiveError::from) {
                // A user without the right to ask: the start names what is missing.
                Err(LiveError::Redis(_)) => continue,
                info => info?,
            };
            let policy = info.lines().find_map(|line| line.strip_prefix("maxmemory_policy:")).map(str::trim);
            if let Some(policy) = policy.filter(|policy| *policy != NO_EVICTION) {
                return Ok(Some(policy.to_owned()));
            }
        }
        Ok(None)
    }

    /// The policy that [`Self::eviction_policy`] found when Redis was last reached.
    pub fn known_eviction_policy(&self) -> Option<String> {
        self.evicts.borrow().clone()
    }

    /// Asks for the eviction policy, and logs one that evicts when it is first seen.
    pub async fn look_for_eviction(&self) {
        let Ok(policy) = self.eviction_policy().await else { return };
        let is_new = self.evicts.send_if_modified(|known| std::mem::replace(known, policy.clone()) != policy);
        if let (true, Some(policy)) = (is_new, policy) {
            tracing::warn!("{}", eviction_warning(&policy));
        }
    }

    /// Notes an account id that SQL has given: after a restored dump SQL would give it once more, to another person.
    ///
    /// # Errors
    /// Whatever keeps Redis from answering.
    pub async fn note_user_id(&self, id: UserId) -> Result<()> {
        if self.largest_user_id().await?.is_some_and(|largest| largest >= id) {
            return Ok(());
        }
        let key = self.keys(0).largest_id();
        let set = self.back.call(&key, |client| {
            let key = key.clone();
            async move { client.set::<(), _, _>(key, id, None, None, false).await }
        });
        Ok(set.await??)
    }

    /// The largest account id that was noted.
    ///
    /// # Errors
    /// Whatever keeps Redis from answering.
    pub async fn largest_user_id(&self) -> Result<Option<UserId>> {
        let key = self.keys(0).largest_id();
        let get = self.back.call(&key, |client| {
            let key = key.clone();
            async move { client.get::<Option<String>, _>(key).await }
        });
        Ok(get.await??.and_then(|id| id.parse().ok()))
    }
}

/// What to tell an operator about a Redis that may evict.
pub fn eviction_warning(policy: &str) -> String {
    format!(
        "Redis may evict keys (maxmemory-policy is {policy}): users would be shown offline, and sessions and blocks be rebuilt \
         from SQL, whenever it is short of memory; set maxmemory-policy to noeviction, or give presenced a Redis of its own"
    )
}
