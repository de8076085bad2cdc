//! Login sessions as their users and administrators see them and end them, and the bounds that end them by themselves.

use std::time::Duration;

use super::token::Kind;
use super::{Identity, IdentityError, Result, now};
use crate::model::{Actor, Page, SessionId, SessionKey, UserId};
use crate::store::{SessionEnd, SessionList};

/// How many sessions an account may have, and how old one may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionPolicy {
    /// The most that are alive; a login beyond that ends the oldest. At least 1.
    pub most_alive: u32,
    /// A refresh of an older session ends it; `None` for no bound.
    pub max_age: Option<Duration>,
}

impl SessionPolicy {
    /// The most that are alive, by default.
    pub const MOST: u32 = 50;
}

impl Default for SessionPolicy {
    fn default() -> Self {
        Self { most_alive: Self::MOST, max_age: None }
    }
}

impl Identity {
    /// Ends the caller's session for a logout, if the refresh token is good and of that very session; otherwise ends
    /// nothing. Ending an ended one is no error, so that a logout which got half way can be repeated.
    ///
    /// # Errors
    /// [`IdentityError::Token`], [`IdentityError::ForeignRefresh`] (also where the caller's token names no session),
    /// [`IdentityError::Store`].
    pub async fn revoke(&self, caller: &SessionKey, refresh: &str) -> Result<()> {
        let named = self.inner.keyring.verify(refresh, Kind::Refresh, now())?;
        match &named.sid {
            Some(sid) if named == *caller => self.end_session(caller.user, sid, None).await.map(drop),
            _ => Err(IdentityError::ForeignRefresh),
        }
    }

    /// A page of the user's sessions that are alive, newest first.
    pub async fn sessions(&self, user: UserId, page: Page) -> Result<SessionList> {
        Ok(self.inner.store.sessions(user, self.inner.session_clock.now().await, page).await?)
    }

    /// Ends one session of the user; whether it was alive. `by` says which administrator does it, and the username of the
    /// account, for the trail.
    ///
    /// # Errors
    /// [`IdentityError::Unrecorded`], [`IdentityError::Store`]: then nothing has ended.
    pub async fn end_session(
        &self,
        user: UserId,
        sid: &SessionId,
        by: Option<(&Actor, &str)>,
    ) -> Result<bool> {
        let now = self.inner.session_clock.now().await;
        let ended = self.inner.store.end_sessions(&SessionEnd { user, sid: Some(sid), now, by }).await?;
        Ok(!ended.sids.is_empty())
    }

    /// Ends every session of the user that is alive, and names them. `by` as in [`Self::end_session`].
    ///
    /// # Errors
    /// [`IdentityError::Unrecorded`], [`IdentityError::Store`]: then the rest is alive still.
    pub async fn end_sessions(&self, user: UserId, by: Option<(&Actor, &str)>) -> Result<Vec<SessionId>> {
        let now = self.inner.session_clock.now().await;
        let mut sids = Vec::new();
        loop {
            let ended = self.inner.store.end_sessions(&SessionEnd { user, sid: None, now, by }).await?;
            sids.extend(ended.sids);
            if !ended.more {
                return Ok(sids);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sessions::SignedIn;
    use super::super::stage::{HERE, identity_with, registration};
    use super::*;

    #[tokio::test]
    async fn a_login_beyond_the_most_ends_the_oldest_session_and_a_refresh_beyond_the_age_its_own() {
        let policy = SessionPolicy { most_alive: 2, max_age: Some(Duration::ZERO) };
        let identity = identity_with(policy).await;
        identity.register(HERE, registration("ada")).await.unwrap();
        let mut sessions = Vec::new();
        for expected in [0, 0, 1, 1] {
            let signed_in = identity.login(HERE, "ada", "ada's password", None).await.unwrap();
            assert_eq!(signed_in.displaced.len(), expected);
            if let Some(displaced) = signed_in.displaced.first() {
                assert_eq!(signed_in.displaced.len() + 1, sessions.len(), "{displaced}");
                let oldest: SignedIn = sessions.remove(0);
                assert_eq!(Some(displaced), oldest.session.sid.as_ref());
                let refused = identity.refresh(HERE, &oldest.tokens.refresh).await;
                assert!(matches!(refused, Err(IdentityError::SessionEnded)));
            }
            sessions.push(signed_in);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let newest = sessions.pop().unwrap();
        match identity.refresh(HERE, &newest.tokens.refresh).await {
            Err(IdentityError::SessionTooOld(who)) => assert_eq!(who, newest.session),
            other => panic!("{other:?}"),
        }
        let refused = identity.refresh(HERE, &newest.tokens.refresh).await;
        assert!(matches!(refused, Err(IdentityError::SessionEnded)));
    }
}
