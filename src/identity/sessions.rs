//! Login sessions: a pair of tokens that SQL can take back.
//!
//! Access tokens are good by themselves until they expire, so whoever ends a session here must end it in presence
//! too; refresh tokens are good only while SQL knows their hash.

use std::fmt;

use sha2::{Digest, Sha256};

use super::token::Kind;
use super::{Identity, IdentityError, Result, TokenError, now, random_name, rules, span_ms};
use crate::model::{Account, Millis, SessionId, SessionKey, UserId};
use crate::store::{NewSession, RefreshHash, Rotation, RotationRequest, Session};

/// How much of a client's self-description is kept, characters.
const MAX_USER_AGENT: usize = 256;

/// An access token and the refresh token that buys the next pair. Its `Debug` shows neither.
#[derive(Clone)]
pub struct TokenPair {
    /// Opens requests.
    pub access: String,
    /// Good for one use.
    pub refresh: String,
}

impl fmt::Debug for TokenPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenPair(…)")
    }
}

/// Somebody signed in.
#[derive(Debug, Clone)]
pub struct SignedIn {
    /// Who.
    pub account: Account,
    /// By what they speak from now on.
    pub tokens: TokenPair,
    /// The session begun.
    pub session: SessionKey,
}

impl Identity {
    /// Checks a name (or e-mail address) and a password, and begins a session. It takes the same time whether or not
    /// the name is known.
    ///
    /// # Errors
    /// [`IdentityError::WrongCredentials`], [`IdentityError::Blocked`], [`IdentityError::Overloaded`],
    /// [`IdentityError::Store`].
    pub async fn login(&self, login: &str, password: &str, user_agent: Option<String>) -> Result<SignedIn> {
        let inner = &self.inner;
        let found = if rules::could_be_login(login) { inner.store.credentials(login).await? } else { None };
        let (account, hash) = found.map(|found| (found.account, found.password_hash)).unzip();
        if let (Some(account), Some(hash)) = (&account, &hash)
            && !super::password::Passwords::can_read(hash)
        {
            tracing::warn!(
                user = account.id,
                "this account's password hash is of a kind that cannot be read here; set a new password for it"
            );
        }
        let matches = inner.passwords.verify(password.to_owned(), hash.clone()).await?;
        let Some(account) = account.filter(|_| matches) else {
            return Err(IdentityError::WrongCredentials);
        };
        if !account.may_be_present() {
            return Err(IdentityError::Blocked);
        }

        let now = now();
        let sid = SessionId::parse(&random_name()?)
            .ok_or_else(|| IdentityError::Internal("a random name is no session's".into()))?;
        let tokens = self.mint_pair(account.id, &sid, now)?;
        let begun = inner
            .store
            .create_session(&NewSession {
                sid: sid.clone(),
                user: account.id,
                refresh_hash: refresh_hash(&tokens.refresh),
                refresh_expires_at: now.plus(span_ms(inner.refresh_ttl)),
                user_agent: user_agent.map(|agent| agent.chars().take(MAX_USER_AGENT).collect()),
                // A password that was changed while this one was being checked lets nobody in.
                password_hash: hash,
                now,
            })
            .await?;
        if !begun {
            return Err(IdentityError::WrongCredentials);
        }
        Ok(SignedIn { session: SessionKey { user: account.id, sid: Some(sid) }, account, tokens })
    }

    /// Spends a refresh token for the next pair.
    ///
    /// # Errors
    /// [`IdentityError::Token`], [`IdentityError::SessionEnded`] (also where the account is gone),
    /// [`IdentityError::Blocked`], [`IdentityError::Store`]. [`IdentityError::RefreshReused`] has ended the session in
    /// SQL: the caller must end it in presence, so that its access tokens die at once.
    pub async fn refresh(&self, refresh: &str) -> Result<TokenPair> {
        let inner = &self.inner;
        let now = now();
        let who = inner.keyring.verify(refresh, Kind::Refresh, now)?;
        // Every refresh token minted here names its session.
        let sid = who.sid.clone().ok_or(TokenError::Elsewhere)?;
        let account = inner.store.account(who.user).await?.ok_or(IdentityError::SessionEnded)?;
        if !account.may_be_present() {
            return Err(IdentityError::Blocked);
        }
        let tokens = self.mint_pair(who.user, &sid, now)?;
        let request = RotationRequest {
            sid,
            user: who.user,
            presented: refresh_hash(refresh),
            successor: refresh_hash(&tokens.refresh),
            successor_expires_at: now.plus(span_ms(inner.refresh_ttl)),
            now,
            grace_ms: span_ms(inner.refresh_grace),
        };
        match inner.store.rotate_refresh(&request).await? {
            Rotation::Rotated => Ok(tokens),
            Rotation::Reused => Err(IdentityError::RefreshReused(who)),
            Rotation::Ended => Err(IdentityError::SessionEnded),
        }
    }

    /// Ends the caller's session for a logout, if the refresh token is good and of that very session; otherwise ends
    /// nothing. Ending an ended one is no error, so that a logout which got half way can be repeated.
    ///
    /// # Errors
    /// [`IdentityError::Token`], [`IdentityError::ForeignRefresh`] (also where the caller's token names no session),
    /// [`IdentityError::Store`].
    pub async fn revoke(&self, caller: &SessionKey, refresh: &str) -> Result<()> {
        let now = now();
        let named = self.inner.keyring.verify(refresh, Kind::Refresh, now)?;
        match &named.sid {
            Some(sid) if named == *caller => {
                self.inner.store.end_session(caller.user, sid, now).await?;
                Ok(())
            }
            _ => Err(IdentityError::ForeignRefresh),
        }
    }

    /// The user's sessions that are alive, newest first.
    pub async fn sessions(&self, user: UserId) -> Result<Vec<Session>> {
        Ok(self.inner.store.sessions(user, now()).await?)
    }

    /// Ends one session of the user; whether it was alive.
    pub async fn end_session(&self, user: UserId, sid: &SessionId) -> Result<bool> {
        Ok(self.inner.store.end_session(user, sid, now()).await?)
    }

    /// Ends every session of the user that is alive, and names them.
    pub async fn end_sessions(&self, user: UserId) -> Result<Vec<SessionId>> {
        Ok(self.inner.store.end_sessions(user, now()).await?)
    }

    fn mint_pair(&self, user: UserId, sid: &SessionId, now: Millis) -> Result<TokenPair> {
        let mint = |kind, ttl| {
            self.inner
                .keyring
                .mint(kind, user, sid, &random_name()?, now, span_ms(ttl))
                .map_err(|error| IdentityError::Internal(format!("a token was not signed: {error}")))
        };
        Ok(TokenPair {
            access: mint(Kind::Access, self.inner.access_ttl)?,
            refresh: mint(Kind::Refresh, self.inner.refresh_ttl)?,
        })
    }
}

fn refresh_hash(refresh: &str) -> RefreshHash {
    Sha256::digest(refresh.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::super::AccountEdit;
    use super::super::stage::{admin, identity, registration};
    use super::*;

    #[tokio::test]
    async fn a_login_by_name_or_address_speaks_for_its_account() {
        let identity = identity().await;
        let ada = identity.register(registration("ada")).await.unwrap();
        for name in ["ada", "ADA", "ada@example.com"] {
            let signed_in = identity.login(name, "ada's password", Some("x".repeat(999))).await.unwrap();
            assert_eq!(signed_in.account, ada);
            assert_eq!(identity.verify_access(&signed_in.tokens.access), Ok(signed_in.session.clone()));
            assert_eq!(identity.verify_access(&signed_in.tokens.refresh), Err(TokenError::Kind));
            assert_eq!(signed_in.session.sid.unwrap().as_str().len(), 22);
        }
        let sessions = identity.sessions(ada.id).await.unwrap();
        assert_eq!(sessions.len(), 3);
        assert_eq!(sessions[0].user_agent.as_ref().unwrap().len(), MAX_USER_AGENT);
    }

    #[tokio::test]
    async fn wrong_credentials_are_told_from_a_blocked_account_only_to_who_knows_the_password() {
        let identity = identity().await;
        let ada = identity.register(registration("ada")).await.unwrap();
        let wrong = [("ada", "no"), ("bob", "ada's password"), ("", ""), ("a\0da", "ada's password")];
        for (name, password) in wrong {
            let error = identity.login(name, password, None).await.unwrap_err();
            assert!(matches!(error, IdentityError::WrongCredentials), "{name:?}");
        }
        let edit = AccountEdit { status: Some("suspended".into()), ..AccountEdit::default() };
        identity.update_account(ada.id, edit, &admin()).await.unwrap();
        assert!(matches!(identity.login("ada", "no", None).await, Err(IdentityError::WrongCredentials)));
        assert!(matches!(identity.login("ada", "ada's password", None).await, Err(IdentityError::Blocked)));
    }

    #[tokio::test]
    async fn a_refresh_token_buys_one_pair_and_its_second_use_ends_the_session() {
        let identity = identity().await;
        identity.register(registration("ada")).await.unwrap();
        let first = identity.login("ada", "ada's password", None).await.unwrap();
        let second = identity.refresh(&first.tokens.refresh).await.unwrap();
        assert_eq!(identity.verify_access(&second.access), Ok(first.session.clone()));
        assert!(matches!(
            identity.refresh(&second.access).await,
            Err(IdentityError::Token(TokenError::Kind))
        ));

        match identity.refresh(&first.tokens.refresh).await {
            Err(IdentityError::RefreshReused(who)) => assert_eq!(who, first.session),
            other => panic!("{other:?}"),
        }
        assert!(matches!(identity.refresh(&second.refresh).await, Err(IdentityError::SessionEnded)));
    }

    #[tokio::test]
    async fn a_blocked_or_deleted_account_refreshes_nothing() {
        let identity = identity().await;
        let ada = identity.register(registration("ada")).await.unwrap();
        let session = identity.login("ada", "ada's password", None).await.unwrap();
        let edit = AccountEdit { is_active: Some(false), ..AccountEdit::default() };
        identity.update_account(ada.id, edit, &admin()).await.unwrap();
        assert!(matches!(identity.refresh(&session.tokens.refresh).await, Err(IdentityError::Blocked)));
        assert!(identity.delete_account(ada.id, &admin()).await.unwrap());
        assert!(matches!(identity.refresh(&session.tokens.refresh).await, Err(IdentityError::SessionEnded)));
    }

    #[tokio::test]
    async fn only_the_callers_own_refresh_token_logs_out() {
        let identity = identity().await;
        for name in ["ada", "bob"] {
            identity.register(registration(name)).await.unwrap();
        }
        let phone = identity.login("ada", "ada's password", None).await.unwrap();
        let laptop = identity.login("ada", "ada's password", None).await.unwrap();
        let bob = identity.login("bob", "bob's password", None).await.unwrap();
        for foreign in [&laptop, &bob] {
            let refused = identity.revoke(&phone.session, &foreign.tokens.refresh).await;
            assert!(matches!(refused, Err(IdentityError::ForeignRefresh)));
        }
        let nameless = SessionKey { sid: None, ..phone.session.clone() };
        let refused = identity.revoke(&nameless, &phone.tokens.refresh).await;
        assert!(matches!(refused, Err(IdentityError::ForeignRefresh)));
        let refused = identity.revoke(&phone.session, &phone.tokens.access).await;
        assert!(matches!(refused, Err(IdentityError::Token(TokenError::Kind))));
        assert_eq!(identity.sessions(phone.account.id).await.unwrap().len(), 2, "nothing has ended");

        identity.revoke(&phone.session, &phone.tokens.refresh).await.unwrap();
        identity.revoke(&phone.session, &phone.tokens.refresh).await.unwrap();
        assert!(matches!(identity.refresh(&phone.tokens.refresh).await, Err(IdentityError::SessionEnded)));
        identity.refresh(&laptop.tokens.refresh).await.unwrap();
        assert!(!identity.end_session(phone.account.id, phone.session.sid.as_ref().unwrap()).await.unwrap());
        assert_eq!(identity.end_sessions(phone.account.id).await.unwrap(), [laptop.session.sid.unwrap()]);
    }
}
