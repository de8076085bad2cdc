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
/// The next look is at least so many times as far away as the last one took: large tables on slow disks cost SQL a twentieth
/// of one core.
const SHARE: u32 = 20;

static TROUBLE: Trouble = Trouble::new(
    "mirror and history in SQL cannot be compared for now; they are when SQL can be asked again",
);

/// How far the comparison has come.
#[derive(Debug, Default)]
struct Progress {
    /// The table, as [`Upkeep::identity`] names it; empty before the first look.
    identity: String,
    /// The last account that was compared.
    after: UserId,
    /// Whether the pass goes on without pauses until it is through.
    in_one_go: bool,
}

impl Progress {
    /// Notes what the look found; a pass without pauses begins where mirrors may have been changed without a trigger.
    fn note(&mut self, upkeep: &Upkeep) {
        if self.identity != upkeep.identity || upkeep.triggers_enabled > 0 {
            self.identity.clone_from(&upkeep.identity);
            (self.after, self.in_one_go) = (0, true);
        }
    }
}

pub(super) async fn run(context: &Context) {
    let mut progress = Progress::default();
    loop {
        let began = Instant::now();
        match look(context, &mut progress).await {
            Ok(()) => TROUBLE.over(),
            Err(error) => TROUBLE.note(&error),
        }
        sleep(EVERY.max(began.elapsed() * SHARE)).await;
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
    progress.note(&upkeep);
    let mut mended = 0;
    loop {
        let page = context.store.mend_mirrors_after(progress.after, PAGE).await?;
        mended += page.mended;
        progress.after = page.last.unwrap_or(0);
        progress.in_one_go &= page.last.is_some();
        if !progress.in_one_go {
            break;
        }
        tokio::task::yield_now().await;
    }
    if mended > 0 {
        tracing::warn!(
            count = mended,
            "users.online_status was changed by another hand, and set to where the history leads"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upkeep(identity: &str, triggers_enabled: u64) -> Upkeep {
        Upkeep { identity: identity.into(), triggers_enabled, ids_raised: false }
    }

    #[test]
    fn everything_is_compared_at_the_start_and_after_triggers_were_off_or_the_table_was_replaced() {
        let mut progress = Progress::default();
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
