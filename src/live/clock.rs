//! Redis's clock, for what is dated outside the scripts (invariant 7).

use fred::interfaces::ClientLike;
use fred::types::{ClusterHash, CustomCommand, Value};

use super::live_set::LiveSet;
use super::{LiveError, Result};
use crate::model::Millis;

impl LiveSet {
    /// The time of the server that has a shard.
    pub async fn now(&self, shard: u32) -> Result<Millis> {
        let key = self.keys(shard).live();
        let time = self.front.call(&key, |client| async move {
            let command = CustomCommand::new_static("TIME", ClusterHash::FirstKey, false);
            client.custom::<Vec<i64>, Value>(command, Vec::new()).await
        });
        match time.await??[..] {
            [seconds, micros] => Ok(Millis(seconds * 1_000 + micros / 1_000)),
            _ => Err(LiveError::Redis("TIME did not answer with two numbers".into())),
        }
    }
}
