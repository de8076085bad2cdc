//! The handlers, one file per noun. Each reads as its row of the contract: take, do, answer.

pub mod admin;
pub mod health;
pub mod identity;
pub mod presence;

use super::AppState;
use crate::model::{SessionId, SessionKey, UserId};
use crate::presence::PresenceError;

/// Tells presence that sessions have ended in SQL, so that their access tokens die at once; goes on to the last even
/// if one fails.
async fn leave_all(
    state: &AppState,
    user: UserId,
    sids: impl IntoIterator<Item = SessionId>,
) -> Result<(), PresenceError> {
    let mut outcome = Ok(());
    for sid in sids {
        let left = state.presence.leave(&SessionKey { user, sid: Some(sid) }).await;
        outcome = outcome.and(left);
    }
    outcome
}
