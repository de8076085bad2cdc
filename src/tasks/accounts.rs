//! Follows SQL's log of account changes into the fence: a plain `UPDATE users SET status = 'suspended'` takes the user
//! offline within a second (invariant 6).

use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use super::Context;
use crate::presence::{PresenceError, Trouble};

/// A look for its own sake, should a wake-up ever go missing.
const ROUND: Duration = Duration::from_mins(5);
const RETRY: Duration = Duration::from_millis(250);

static WATCH_TROUBLE: Trouble =
    Trouble::new("account changes are not watched for now; they wait in SQL's log");
static FOLLOW_TROUBLE: Trouble =
    Trouble::new("account changes cannot be followed for now; they wait in SQL's log");

/// `names` is told after each look: an account that was added may have a login name whose key is to be computed.
pub(super) async fn run(context: &Context, names: &Notify) {
    let mut watched = true;
    loop {
        let mut accounts = true;
        match context.store.wait_for_account_change(ROUND).await {
            Ok(woken) => {
                WATCH_TROUBLE.over();
                if !watched {
                    // The database may be another by now: one that took its place, or a dump that was restored.
                    context.presence.doubt_sql();
                }
                watched = true;
                accounts = woken.accounts;
                if woken.sessions {
                    context.presence.sessions_may_have_ended();
                }
            }
            // A watch that broke is set up anew at once; only where that fails, too, it takes its time.
            Err(error) => {
                WATCH_TROUBLE.note(&error);
                if !watched {
                    sleep(RETRY).await;
                }
                watched = false;
            }
        }
        if !accounts {
            continue;
        }
        // The wake-up is spent: until the log was followed there is nothing else to wait for.
        while let Err(error) = follow(context).await {
            FOLLOW_TROUBLE.note(&error);
            sleep(RETRY).await;
        }
        FOLLOW_TROUBLE.over();
        names.notify_one();
    }
}

async fn follow(context: &Context) -> Result<(), PresenceError> {
    let evicted = context.presence.follow_account_changes().await?;
    if evicted > 0 {
        tracing::info!(evicted, "blocked accounts were taken offline");
    }
    Ok(())
}
