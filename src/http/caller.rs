//! What is known of a request's caller, for the layers around its handler: the bound on requests at once, and the
//! security log.
//!
//! Only an extractor learns who the caller is, and it runs within the handler. So each request carries a slot that the
//! extractor fills, and that `front` and the layers look into afterwards.

use std::sync::{Arc, OnceLock};

use axum::http::Extensions;

use super::per_user::{PerUser, Place};
use super::problem::Problem;
use crate::model::UserId;

/// The caller of one request, once the token has been verified. Clones share one inside; the caller's place among the
/// requests at once is free again when the last clone is dropped.
#[derive(Debug, Clone, Default)]
pub struct CallerSlot(Arc<OnceLock<(UserId, Option<Place>)>>);

impl CallerSlot {
    /// The caller, if a good token was shown.
    pub fn user(&self) -> Option<UserId> {
        self.0.get().map(|(user, _)| *user)
    }

    /// Notes the caller of a request, and counts the request against the bound for each user. A request that several
    /// extractors look at counts once.
    ///
    /// # Errors
    /// 429 where the user has too many requests under way.
    pub fn note(extensions: &Extensions, user: UserId, requests: &PerUser) -> Result<(), Problem> {
        let Some(Self(slot)) = extensions.get::<Self>() else { return Ok(()) };
        if slot.get().is_none() {
            let place = requests.try_enter(user);
            let outcome = place.as_ref().map(drop).ok_or_else(Problem::too_many_at_once);
            let _ = slot.set((user, place));
            return outcome;
        }
        Ok(())
    }
}
