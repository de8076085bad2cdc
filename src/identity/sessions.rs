//! Login sessions: a pair of tokens that SQL can take back.
//!
//! Access tokens are good by themselves until they expire, so whoever ends a session here must end it in presence
//! too; refresh tokens are good only while SQL knows their hash. Sessions are dated and judged by Redis's clock
//! (`identity::clock`).

use std::fmt;
use std::net::IpAddr;
use std::sync::atomic::Ordering;

use sha2::{Digest, Sha256};
use tokio::time::{Duration, Instant};

use super::limits::{Limited, Whom};
use super::password::{Passwords, Verdict};
use super::token::Kind;
use super::{Identity, IdentityError, Result, TokenError, now, rules, session_name, span_ms, token_name};
use crate::model::{Account, Millis, SessionId, SessionKey, UserId};
use crate::store::{Credentials, NewSession, PasswordHash, RefreshHash, Rotation, RotationRequest};

/// How much of a client's self-description is kept, characters.
const MAX_USER_AGENT: usize = 256;
/// How many of the hashes that were made elsewhere are looked at for the costliest.
const PACE_SAMPLE: u32 = 200;
/// How long it counts what was learnt of them: what was seen is remembered for at least as long.
const PACE_GOOD_FOR: Duration = Duration::from_mins(9);
/// When to try again where it was not learnt.
const PACE_AGAIN: Duration = Duration::from_secs(5);
/// How long SQL may take to name them: a login has its own question to ask after that, within the contract's bound.
const PACE_PATIENCE: Duration = Duration::from_millis(400);

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
    /// Older sessions of the account that ended in SQL to make room: presence must end them too.
    pub displaced: Vec<SessionId>,
}

impl Identity {
    /// Checks a name (or e-mail address) and a password, and begins a session. It takes the same time whether or not
    /// the name is known, and is counted by the name alone.
    ///
    /// # Errors
    /// [`IdentityError::NoAdministrator`], [`IdentityError::TooMany`], [`IdentityError::WrongCredentials`], [`IdentityError::Blocked`],
    /// [`IdentityError::Overloaded`], [`IdentityError::Store`].
    pub async fn login(
        &self,
        client: IpAddr,
        login: &str,
        password: &str,
        user_agent: Option<String>,
    ) -> Result<SignedIn> {
        self.login_noting(client, login, password, user_agent, &mut None).await
    }

    /// As [`Self::login`]. `known` becomes the account that the name belongs to, whatever comes of the login. It is for the
    /// security log only: no answer may depend on it.
    ///
    /// # Errors
    /// As [`Self::login`].
    pub async fn login_noting(
        &self,
        client: IpAddr,
        login: &str,
        password: &str,
        user_agent: Option<String>,
        known: &mut Option<UserId>,
    ) -> Result<SignedIn> {
        self.require_administrator().await?;
        let name = Whom::name(login);
        let leave = self.inner.limits.address(Limited::LoginAddress, client).await?;
        let leave = self.inner.limits.account(Limited::LoginAccount, &name, leave).await?;
        self.inner.limits.account(Limited::LoginTotal, &name, leave).await?;
        self.learn_pace().await;
        // Twice where the hash changed under our hands: another login may just have replaced an outdated one.
        for _ in 0..2 {
            let found = self.find(login).await?;
            *known = found.as_ref().map(|found| found.account.id);
            let (account, hash) = self.recognise(found, password).await?;
            if let Some(signed_in) = self.begin_session(account, hash, user_agent.as_deref()).await? {
                self.inner.limits.forgive(Limited::LoginAccount, &name).await;
                return Ok(signed_in);
            }
        }
        Err(IdentityError::WrongCredentials)
    }

    /// The account of this name, if there is one.
    async fn find(&self, login: &str) -> Result<Option<Credentials>> {
        Ok(if rules::could_be_login(login) { self.inner.store.credentials(login).await? } else { None })
    }

    /// The account that was found, if this is its password, and the hash by which it now stands. Takes the same time where
    /// none was found.
    async fn recognise(&self, found: Option<Credentials>, password: &str) -> Result<(Account, PasswordHash)> {
        let inner = &self.inner;
        let (account, hash) = found.map(|found| (found.account, found.password_hash)).unzip();
        if let (Some(account), Some(hash)) = (&account, &hash)
            && let Err(reason) = Passwords::can_read(hash)
        {
            tracing::warn!(
                user = account.id,
                "this account's password hash cannot be used: {reason}; set a new password for the account"
            );
        }
        let verdict = inner.passwords.verify(password.to_owned(), hash.clone()).await?;
        let (Some(account), Some(hash), true) = (account, hash, verdict.is_right()) else {
            return Err(IdentityError::WrongCredentials);
        };
        if !account.may_be_present() {
            return Err(IdentityError::Blocked);
        }
        let hash = match verdict {
            Verdict::RightAndOutdated => self.renew_hash(account.id, hash, password).await,
            _ => hash,
        };
        Ok((account, hash))
    }

    /// Replaces an outdated hash by one of ours, and returns that by which the account stands then, as far as is known
    /// here. A login does not fail because of it: the next one tries again.
    async fn renew_hash(&self, user: UserId, old: PasswordHash, password: &str) -> PasswordHash {
        let renewed = async {
            let new = self.inner.passwords.hash(password.to_owned()).await?;
            let replaced = self.inner.store.replace_password_hash(user, &old, &new).await?;
            Ok::<_, IdentityError>(replaced.then_some(new))
        };
        match renewed.await {
            Ok(Some(new)) => {
                tracing::info!(user, "an outdated password hash has been replaced");
                new
            }
            // Somebody else changed it: no session begins by the old one, and the login looks again.
            Ok(None) => old,
            Err(error) => {
                tracing::warn!(%error, user, "an outdated password hash stays until the next login");
                old
            }
        }
    }

    /// Begins a session, if the account still stands by this hash.
    async fn begin_session(
        &self,
        account: Account,
        hash: PasswordHash,
        user_agent: Option<&str>,
    ) -> Result<Option<SignedIn>> {
        let sid = SessionId::parse(&session_name()?)
            .ok_or_else(|| IdentityError::Internal("a random name is no session's".into()))?;
        let tokens = self.mint_pair(account.id, &sid, now())?;
        let now = self.inner.session_clock.now().await;
        let new = NewSession {
            sid: sid.clone(),
            user: account.id,
            refresh_hash: refresh_hash(&tokens.refresh),
            refresh_expires_at: now.plus(span_ms(self.inner.refresh_ttl)),
            user_agent: user_agent.map(|agent| agent.chars().take(MAX_USER_AGENT).collect()),
            // A password that was changed while this one was being checked lets nobody in.
            password_hash: Some(hash),
            most_alive: self.inner.sessions.most_alive,
            now,
        };
        let begun = self.inner.store.create_session(&new).await?;
        let session = SessionKey { user: account.id, sid: Some(sid) };
        Ok(begun.map(|begun| SignedIn { account, tokens, session, displaced: begun.displaced }))
    }

    /// Learns how long a hash that was made elsewhere takes to verify, before the first login and now and then: until
    /// then nobody is answered, so that not even the first refusal after a start tells a known name from an unknown one.
    async fn learn_pace(&self) {
        let learnt = &self.inner.pace_learnt;
        let mut next = match learnt.try_lock() {
            Ok(next) => next,
            // Somebody is at it. What was learnt before is good enough meanwhile, and no crowd gathers here.
            Err(_) if self.inner.pace_is_known.load(Ordering::Relaxed) => return,
            Err(_) => learnt.lock().await,
        };
        if next.is_some_and(|next| Instant::now() < next) {
            return;
        }
        let learn = async {
            let asked =
                tokio::time::timeout(PACE_PATIENCE, self.inner.store.foreign_hashes(PACE_SAMPLE)).await;
            let Ok(hashes) = asked else { return Err(IdentityError::Internal("SQL is slow".into())) };
            let hashes = hashes?;
            self.inner.passwords.learn_pace(hashes).await
        };
        let good_for = match learn.await {
            Ok(()) => {
                self.inner.pace_is_known.store(true, Ordering::Relaxed);
                PACE_GOOD_FOR
            }
            Err(error) => {
                tracing::debug!(%error, "how long the hashes of others take is not known yet");
                PACE_AGAIN
            }
        };
        *next = Some(Instant::now() + good_for);
    }

    /// Spends a refresh token for the next pair.
    ///
    /// # Errors
    /// [`IdentityError::TooMany`], [`IdentityError::Token`], [`IdentityError::SessionEnded`] (also where the account is gone),
    /// [`IdentityError::Blocked`], [`IdentityError::Store`]. [`IdentityError::RefreshReused`] and
    /// [`IdentityError::SessionTooOld`] have ended the session in SQL: the caller must end it in presence, so that its access
    /// tokens die at once.
    pub async fn refresh(&self, client: IpAddr, refresh: &str) -> Result<TokenPair> {
        let inner = &self.inner;
        let leave = inner.limits.address(Limited::RefreshAddress, client).await?;
        let who = inner.keyring.verify(refresh, Kind::Refresh, now())?;
        // Every refresh token minted here names its session.
        let sid = who.sid.clone().ok_or(TokenError::Elsewhere)?;
        // Only now is it known to be his.
        inner.limits.account(Limited::RefreshAccount, &Whom::Account(who.user), leave).await?;
        let account = inner.store.account(who.user).await?.ok_or(IdentityError::SessionEnded)?;
        if !account.may_be_present() {
            return Err(IdentityError::Blocked);
        }
        let tokens = self.mint_pair(who.user, &sid, now())?;
        let now = inner.session_clock.now().await;
        let request = RotationRequest {
            sid,
            user: who.user,
            presented: refresh_hash(refresh),
            successor: refresh_hash(&tokens.refresh),
            successor_expires_at: now.plus(span_ms(inner.refresh_ttl)),
            begun_since: inner.sessions.max_age.map(|age| now.plus(span_ms(age).saturating_neg())),
            now,
            grace_ms: span_ms(inner.refresh_grace),
        };
        match inner.store.rotate_refresh(&request).await? {
            Rotation::Rotated => Ok(tokens),
            Rotation::Reused => Err(IdentityError::RefreshReused(who)),
            Rotation::TooOld => Err(IdentityError::SessionTooOld(who)),
            Rotation::Ended => Err(IdentityError::SessionEnded),
        }
    }

    fn mint_pair(&self, user: UserId, sid: &SessionId, now: Millis) -> Result<TokenPair> {
        let mint = |kind, ttl| {
            self.inner
                .keyring
                .mint(kind, user, sid, &token_name()?, now, span_ms(ttl))
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
    use super::super::stage::{HERE, admin, identity, registration};
    use super::*;
    use crate::model::Page;

    const ALL: Page = Page { number: 1, size: 1_000 };

    #[tokio::test]
    async fn a_login_by_name_or_address_speaks_for_its_account() {
        let identity = identity().await;
        let ada = identity.register(HERE, registration("ada")).await.unwrap();
        for name in ["ada", "ADA", "ada@example.com"] {
            let signed_in =
                identity.login(HERE, name, "ada's password", Some("x".repeat(999))).await.unwrap();
            assert_eq!(signed_in.account, ada);
            assert_eq!(identity.verify_access(&signed_in.tokens.access), Ok(signed_in.session.clone()));
            assert_eq!(identity.verify_access(&signed_in.tokens.refresh), Err(TokenError::Kind));
            assert_eq!(signed_in.session.sid.unwrap().as_str().len(), 10);
        }
        let sessions = identity.sessions(ada.id, ALL).await.unwrap().sessions;
        assert_eq!(sessions.len(), 3);
        assert_eq!(sessions[0].user_agent.as_ref().unwrap().len(), MAX_USER_AGENT);
    }

    #[tokio::test]
    async fn wrong_credentials_are_told_from_a_blocked_account_only_to_who_knows_the_password() {
        let identity = identity().await;
        let ada = identity.register(HERE, registration("ada")).await.unwrap();
        let wrong = [("ada", "no"), ("bob", "ada's password"), ("", ""), ("a\0da", "ada's password")];
        for (name, password) in wrong {
            let error = identity.login(HERE, name, password, None).await.unwrap_err();
            assert!(matches!(error, IdentityError::WrongCredentials), "{name:?}");
        }
        let edit = AccountEdit { status: Some("suspended".into()), ..AccountEdit::default() };
        identity.update_account(ada.id, edit, &admin()).await.unwrap();
        assert!(matches!(
            identity.login(HERE, "ada", "no", None).await,
            Err(IdentityError::WrongCredentials)
        ));
        assert!(matches!(
            identity.login(HERE, "ada", "ada's password", None).await,
            Err(IdentityError::Blocked)
        ));
    }

    #[tokio::test]
    async fn a_refresh_token_buys_one_pair_and_its_second_use_ends_the_session() {
        let identity = identity().await;
        identity.register(HERE, registration("ada")).await.unwrap();
        let first = identity.login(HERE, "ada", "ada's password", None).await.unwrap();
        let second = identity.refresh(HERE, &first.tokens.refresh).await.unwrap();
        assert_eq!(identity.verify_access(&second.access), Ok(first.session.clone()));
        assert!(matches!(
            identity.refresh(HERE, &second.access).await,
            Err(IdentityError::Token(TokenError::Kind))
        ));

        match identity.refresh(HERE, &first.tokens.refresh).await {
            Err(IdentityError::RefreshReused(who)) => assert_eq!(who, first.session),
            other => panic!("{other:?}"),
        }
        assert!(matches!(identity.refresh(HERE, &second.refresh).await, Err(IdentityError::SessionEnded)));
    }

    #[tokio::test]
    async fn a_blocked_or_deleted_account_refreshes_nothing() {
        let identity = identity().await;
        let ada = identity.register(HERE, registration("ada")).await.unwrap();
        let session = identity.login(HERE, "ada", "ada's password", None).await.unwrap();
        let edit = AccountEdit { is_active: Some(false), ..AccountEdit::default() };
        identity.update_account(ada.id, edit, &admin()).await.unwrap();
        assert!(matches!(identity.refresh(HERE, &session.tokens.refresh).await, Err(IdentityError::Blocked)));
        assert!(identity.delete_account(ada.id, &admin()).await.unwrap());
        assert!(matches!(
            identity.refresh(HERE, &session.tokens.refresh).await,
            Err(IdentityError::SessionEnded)
        ));
    }

    #[tokio::test]
    async fn only_the_callers_own_refresh_token_logs_out() {
        let identity = identity().await;
        for name in ["ada", "bob"] {
            identity.register(HERE, registration(name)).await.unwrap();
        }
        let phone = identity.login(HERE, "ada", "ada's password", None).await.unwrap();
        let laptop = identity.login(HERE, "ada", "ada's password", None).await.unwrap();
        let bob = identity.login(HERE, "bob", "bob's password", None).await.unwrap();
        for foreign in [&laptop, &bob] {
            let refused = identity.revoke(&phone.session, &foreign.tokens.refresh).await;
            assert!(matches!(refused, Err(IdentityError::ForeignRefresh)));
        }
        let nameless = SessionKey { sid: None, ..phone.session.clone() };
        let refused = identity.revoke(&nameless, &phone.tokens.refresh).await;
        assert!(matches!(refused, Err(IdentityError::ForeignRefresh)));
        let refused = identity.revoke(&phone.session, &phone.tokens.access).await;
        assert!(matches!(refused, Err(IdentityError::Token(TokenError::Kind))));
        assert_eq!(identity.sessions(phone.account.id, ALL).await.unwrap().total, 2, "nothing has ended");

        identity.revoke(&phone.session, &phone.tokens.refresh).await.unwrap();
        identity.revoke(&phone.session, &phone.tokens.refresh).await.unwrap();
        assert!(matches!(
            identity.refresh(HERE, &phone.tokens.refresh).await,
            Err(IdentityError::SessionEnded)
        ));
        identity.refresh(HERE, &laptop.tokens.refresh).await.unwrap();
        let sid = phone.session.sid.as_ref().unwrap();
        assert!(!identity.end_session(phone.account.id, sid, None).await.unwrap());
        let ended = identity.end_sessions(phone.account.id, None).await.unwrap();
        assert_eq!(ended, [laptop.session.sid.unwrap()]);
    }
}
