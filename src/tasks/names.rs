//! Computes the keys of login names that the database cannot: of accounts from before the keys, in slices, and of those that
//! plain SQL adds or renames, within a second. Every instance does; each takes accounts that no other is at.

use std::collections::HashSet;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{sleep, timeout};

use super::Context;
use crate::presence::Trouble;
use crate::store::{NAMES_AT_ONCE, StoreError};

/// Periodic look, in case a change notification was missed.
const ROUND: Duration = Duration::from_mins(5);
const RETRY: Duration = Duration::from_secs(1);
/// Clashes that are logged one by one, and that are looked at for it.
const TOLD: usize = 10;
const LOOKED_AT: u32 = 1_000;

static TROUBLE: Trouble = Trouble::new(
    "login names cannot be completed for now; accounts can sign in meanwhile, and searches may miss them",
);

pub(super) async fn run(context: &Context, wanted: &Notify) {
    // Triggers may have been off while no instance ran: once, because it reads all accounts.
    while let Err(error) = context.store.mark_incomplete_login_names().await {
        TROUBLE.note(&error);
        sleep(RETRY).await;
    }
    let mut told = HashSet::new();
    let mut is_first = true;
    loop {
        match complete(context).await {
            Ok(completed) => {
                TROUBLE.over();
                if (completed > 0 || is_first)
                    && let Err(error) = tell_of_clashes(context, &mut told).await
                {
                    TROUBLE.note(&error);
                }
                is_first = false;
                let _ = timeout(ROUND, wanted.notified()).await;
            }
            Err(error) => {
                TROUBLE.note(&error);
                sleep(RETRY).await;
            }
        }
    }
}

/// Slice after slice; how many accounts there were.
async fn complete(context: &Context) -> Result<u64, StoreError> {
    let mut completed = 0;
    loop {
        match context.store.complete_login_names(NAMES_AT_ONCE).await? {
            0 => return Ok(completed),
            more => completed += more,
        }
    }
}

/// Logs each clash once, a few by name.
async fn tell_of_clashes(context: &Context, told: &mut HashSet<(i64, bool)>) -> Result<(), StoreError> {
    let mut clashes = context.store.login_name_clashes(0, LOOKED_AT).await?;
    clashes.retain(|clash| told.insert((clash.user, clash.of_username)));
    for clash in clashes.iter().take(TOLD) {
        tracing::warn!("{clash}. Give one of the two another name");
    }
    if clashes.len() > TOLD {
        tracing::warn!(
            count = clashes.len(),
            "accounts share a login name with another: presenced doctor names them"
        );
    }
    Ok(())
}
