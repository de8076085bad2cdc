//! The listener: hears expiry events and claims what they name.
//!
//! An event is a wake-up. Missed ones cost nothing but a look: the sweeper is told, and the loop goes on. Each server tells of
//! its own keys alone, so there is a listener at each primary, as they come and go.

use std::collections::HashMap;
use std::time::Duration;

use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::{Context, SweepNow};
use crate::live::{Event, ExpiryEvents, LiveError, Primary};
use crate::model::UserId;
use crate::presence::{Share, Trouble};

/// Events claimed together.
const CHUNK: usize = 500;
/// How long the first event of a call waits for others.
const GATHER: Duration = Duration::from_millis(5);
const RETRY: Duration = Duration::from_secs(1);

static TROUBLE: Trouble = Trouble::new("the listener cannot reach Redis; the sweeper must do");

pub(super) async fn run(context: &Context, sweep_now: &SweepNow) {
    let mut primaries = context.live.primaries();
    let mut listeners = JoinSet::new();
    let mut at: HashMap<Primary, AbortHandle> = HashMap::new();
    loop {
        let now = primaries.now();
        at.retain(|primary, listener| {
            let stays = now.contains(primary);
            if !stays {
                listener.abort();
            }
            stays
        });
        for primary in now {
            at.entry(primary.clone()).or_insert_with(|| {
                let (context, sweep_now) = (context.clone(), sweep_now.clone());
                listeners.spawn(async move { stay(&context, &primary, &sweep_now).await })
            });
        }
        tokio::select! {
            () = primaries.changed() => {}
            Some(ended) = listeners.join_next() => if let Err(error) = ended && error.is_panic() {
                // The loop dies of it, and the process with the loop.
                std::panic::resume_unwind(error.into_panic());
            },
        }
    }
}

/// Listens at one primary, for as long as it is one.
async fn stay(context: &Context, primary: &Primary, sweep_now: &SweepNow) {
    let mut trouble = TROUBLE.share();
    loop {
        if let Err(error) = listen(context, primary, sweep_now, &mut trouble).await {
            trouble.note(&error);
        }
        sweep_now.notify_waiters();
        sleep(RETRY).await;
    }
}

async fn listen(
    context: &Context,
    primary: &Primary,
    sweep_now: &SweepNow,
    trouble: &mut Share<'_>,
) -> Result<(), LiveError> {
    let mut events = ExpiryEvents::subscribe(&context.live, primary).await?;
    arm(&mut events, primary).await?;
    trouble.over();
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
                    arm(&mut events, primary).await?;
                    trouble.over();
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

async fn arm(events: &mut ExpiryEvents, primary: &Primary) -> Result<(), LiveError> {
    if events.arm().await? {
        tracing::info!(%primary, "expiry events are on");
    } else {
        tracing::warn!(
            %primary,
            "Redis publishes no expiry events, and does not let itself be told to; the sweeper goes on alone, which is as \
             punctual. To have them: notify-keyspace-events Ex in the server's configuration"
        );
    }
    Ok(())
}
