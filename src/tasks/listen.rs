//! The listener: hears expiry events and claims what they name.
//!
//! An event is a wake-up. Missed ones cost nothing but a look: the sweeper is told, and the loop goes on.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{Context, SweepNow};
use crate::live::{Event, ExpiryEvents, LiveError};
use crate::model::UserId;
use crate::presence::Trouble;

/// Events claimed together.
const CHUNK: usize = 500;
/// How long the first event of a call waits for others.
const GATHER: Duration = Duration::from_millis(5);
const RETRY: Duration = Duration::from_secs(1);

static TROUBLE: Trouble = Trouble::new("the listener cannot reach Redis; the sweeper must do");

pub(super) async fn run(context: &Context, sweep_now: &SweepNow) {
    loop {
        context.live.connected().await;
        if let Err(error) = listen(context, sweep_now).await {
            TROUBLE.note(&error);
        }
        sweep_now.notify_waiters();
        sleep(RETRY).await;
    }
}

async fn listen(context: &Context, sweep_now: &SweepNow) -> Result<(), LiveError> {
    let mut events = ExpiryEvents::subscribe(&context.live).await?;
    arm(&mut events).await?;
    TROUBLE.over();
    loop {
        let mut expired: HashMap<u32, Vec<UserId>> = HashMap::new();
        let mut next = Some(events.next().await);
        while let Some(event) = next.take() {
            match event {
                Event::Expired { shard, user } => {
                    let users = expired.entry(shard).or_default();
                    users.push(user);
                    if users.len() >= CHUNK {
                        break;
                    }
                }
                Event::Missed => sweep_now.notify_waiters(),
                Event::Reconnected => {
                    sweep_now.notify_waiters();
                    arm(&mut events).await?;
                }
            }
            next = timeout(GATHER, events.next()).await.ok();
        }
        for (shard, users) in expired {
            match context.live.claim(shard, &users).await {
                Ok(claimed) => context.counts.claimed_by_listener(claimed),
                // Nothing is lost: the deadlines stay in the live set.
                Err(_) => sweep_now.notify_waiters(),
            }
        }
    }
}

async fn arm(events: &mut ExpiryEvents) -> Result<(), LiveError> {
    if events.arm().await? {
        tracing::info!("expiry events are on");
    } else {
        tracing::warn!(
            "Redis publishes no expiry events, and does not let itself be told to; the sweeper goes on alone, which is as \
             punctual. To have them: notify-keyspace-events Ex in the server's configuration"
        );
    }
    Ok(())
}
