//! The upkeep of SQL, which other applications write to as well (invariants 11 and 12).
//!
//! Triggers put back what another application writes to the columns of presence. This loop is the second line, for what
//! triggers do not see: a restored dump, or triggers that were disabled. It compares mirrors with their histories, a page at
//! a time, and all of them at the start and after a trigger was off or the table was replaced. It looks after the triggers
//! and the sequence of account ids as well.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Context;
use crate::model::UserId;
use crate::presence::Trouble;
use crate::store::{StoreError, Upkeep};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(2);
/// Accounts that are compared at each look: up to so many, a mirror that differs is right again within [`EVERY`].
const PAGE: u32 = 5_000;
/// After a full page the next one is at least so many times as far away as this one took: large tables on slow disks cost
/// SQL a twentieth of one core.
const SHARE: u32 = 20;

static TROUBLE: Trouble = Trouble::new(
    "mirror and history in SQL cannot be compared for now; they are when SQL can be asked again",
);

/// How far the comparison has come.
#[derive(Debug)]
struct Progress {
    /// The table, as [`Upkeep::identity`] names it; empty before the first look.
    identity: String,
    /// The largest id of an account that was ever seen. A dump that is restored, or a table that is truncated, sets the
    /// sequence of ids back; tokens of accounts that are lost by that may be good still.
    largest_id: UserId,
    /// The last account that was compared.
    after: UserId,
    /// Whether the pass goes on without pauses until it is through.
    in_one_go: bool,
    /// When the next page is compared.
    due: Instant,
}

impl Progress {
    fn begin() -> Self {
        let (identity, due) = (String::new(), Instant::now());
        Self { identity, largest_id: 0, after: 0, in_one_go: false, due }
    }

    /// Notes what the look found; a pass without pauses begins where mirrors may have been changed without a trigger.
    fn note(&mut self, upkeep: &Upkeep) {
        if self.identity != upkeep.identity || upkeep.triggers_enabled > 0 {
            self.identity.clone_from(&upkeep.identity);
            (self.after, self.in_one_go) = (0, true);
        }
        self.largest_id = self.largest_id.max(upkeep.largest_id);
    }
}

pub(super) async fn run(context: &Context) {
    let mut progress = Progress::begin();
    loop {
        match look(context, &mut progress).await {
            Ok(()) => TROUBLE.over(),
            Err(error) => TROUBLE.note(&error),
        }
        sleep(EVERY).await;
    }
}

async fn look(context: &Context, progress: &mut Progress) -> Result<(), StoreError> {
    let upkeep = context.store.upkeep().await?;
    if upkeep.triggers_enabled > 0 {
        tracing::warn!(
            count = upkeep.triggers_enabled,
            "triggers of presenced in the database were disabled, or did not fire for replicated rows: they are enabled again"
        );
    }
    if upkeep.ids_raised {
        tracing::info!("the sequence of account ids lay behind the accounts and was raised");
    }
    if upkeep.largest_id < progress.largest_id {
        context.store.raise_user_id_sequence(progress.largest_id).await?;
        tracing::warn!(
            largest = progress.largest_id,
            "ids that had been given to accounts would have been given again: the sequence of ids was raised past them"
        );
    }
    progress.note(&upkeep);
    if progress.in_one_go || progress.due <= Instant::now() {
        compare(context, progress).await?;
    }
    Ok(())
}

/// Compares the next page of accounts, or all that are left of the pass.
async fn compare(context: &Context, progress: &mut Progress) -> Result<(), StoreError> {
    let began = Instant::now();
    let mut mended = 0;
    loop {
        let page = context.store.mend_mirrors_after(progress.after, PAGE).await?;
        mended += page.mended;
        // Fewer accounts than a page holds: the next pass begins at once.
        progress.after = page.last.filter(|_| page.is_full).unwrap_or(0);
        progress.due = if page.is_full { Instant::now() + began.elapsed() * SHARE } else { began };
        progress.in_one_go &= page.is_full;
        if !progress.in_one_go {
            break;
        }
        tokio::task::yield_now().await;
    }
    if mended > 0 {
        tracing::warn!(
            count = mended,
            "users.online_status was changed by another application, and set to where the history leads"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upkeep(identity: &str, triggers_enabled: u64) -> Upkeep {
        Upkeep { identity: identity.into(), triggers_enabled, ..Upkeep::default() }
    }

    #[tokio::test]
    async fn everything_is_compared_at_the_start_and_after_triggers_were_off_or_the_table_was_replaced() {
        let mut progress = Progress::begin();
        for (found, in_one_go) in
            [(upkeep("a", 0), true), (upkeep("a", 0), false), (upkeep("a", 1), true), (upkeep("b", 0), true)]
        {
            (progress.after, progress.in_one_go) = (5, false);
            progress.note(&found);
            assert_eq!(
                (progress.after, progress.in_one_go),
                (if in_one_go { 0 } else { 5 }, in_one_go),
                "{found:?}"
            );
        }
    }
}
