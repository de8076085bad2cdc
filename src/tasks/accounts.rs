//! Follows SQL's log of account changes into the fence: a plain `UPDATE users SET status = 'suspended'` takes the user
//! offline within a second (invariant 6).

use std::time::Duration;

use tokio::time::sleep;

use super::Context;
use crate::presence::Trouble;

/// A look for its own sake, should a wake-up ever go missing.
const ROUND: Duration = Duration::from_mins(5);
const RETRY: Duration = Duration::from_millis(250);

pub(super) async fn run(context: &Context) {
    static TROUBLE: Trouble =
        Trouble::new("account changes cannot be followed for now; they wait in SQL's log");
    loop {
        let lost = context.store.wait_for_account_change(ROUND).await.err();
        match context.presence.follow_account_changes().await {
            Ok(evicted) => {
                TROUBLE.over();
                if evicted > 0 {
                    tracing::info!(evicted, "blocked accounts were taken offline");
                }
            }
            Err(error) => {
                TROUBLE.note(&error);
                sleep(RETRY).await;
            }
        }
        if let Some(error) = lost {
            TROUBLE.note(&error);
            sleep(RETRY).await;
        }
    }
}
