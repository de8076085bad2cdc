//! Counts against limits, shared by all instances: a key each, whose TTL is the time until all is given back.

use fred::interfaces::KeysInterface;

use super::Result;
use super::live_set::{LiveSet, unexpected};
use super::scripts::named;
use crate::model::limit::{Limit, Taken};

impl LiveSet {
    /// Counts one more against the limit of this name (`lua/limit.lua`), unless it is reached.
    pub async fn limit(&self, name: &str, limit: Limit) -> Result<Taken> {
        let reply: Vec<i64> = named::limit
            .run(&self.front, || {
                (
                    vec![self.keys(0).limit(name)],
                    vec![limit.interval_us().into(), limit.tolerance_us().into()],
                )
            })
            .await?;
        match reply[..] {
            [admitted @ (0 | 1), next_us] => Ok(Taken { admitted: admitted == 1, next_us }),
            _ => Err(unexpected("limit", "something else than two numbers")),
        }
    }

    /// Forgets what was counted against the limit of this name.
    pub async fn forgive(&self, name: &str) -> Result<()> {
        let key = self.keys(0).limit(name);
        let deletion = self.front.call(&key, |client| {
            let key = key.clone();
            async move { client.del::<(), _>(key).await }
        });
        Ok(deletion.await??)
    }
}
