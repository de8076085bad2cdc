//! A database in memory, as far as identity's own tests ask it. The real ones have the conformance suite.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;

use super::{Identity, Registration, Settings};
use crate::model::{Account, Millis, OnlineStatus, Page, SessionId, Transition, UserId};
use crate::store::{
    AccountChanges, AccountFilter, AccountList, AccountPatch, ChangeCursor, Credentials, MirrorRow,
    NewAccount, NewSession, RecordOutcome, RefreshHash, Rotation, RotationRequest, Session, Standing, Store,
    StoreError,
};

type Result<T> = std::result::Result<T, StoreError>;

/// Identity over an empty database, without grace for refresh tokens.
pub fn identity() -> Identity {
    let settings = Settings {
        access_ttl: Duration::from_mins(15),
        refresh_ttl: Duration::from_hours(1),
        refresh_grace: Duration::ZERO,
        secret: "a secret of more than thirty-two bytes!".into(),
        trusted_secrets: Vec::new(),
    };
    Identity::new(Arc::new(FakeStore::default()), &settings)
}

/// `ada`, `ada@example.com`, `ada's password`.
pub fn registration(name: &str) -> Registration {
    Registration {
        username: name.into(),
        email: format!("{name}@example.com"),
        password: format!("{name}'s password"),
    }
}

#[derive(Default)]
struct FakeStore {
    accounts: Mutex<Vec<Credentials>>,
    sessions: Mutex<Vec<FakeSession>>,
}

struct FakeSession {
    user: UserId,
    public: Session,
    refresh: RefreshHash,
    ended: bool,
}

#[async_trait]
impl Store for FakeStore {
    async fn create_account(&self, new: &NewAccount) -> Result<Account> {
        let mut accounts = self.accounts.lock().unwrap();
        for other in accounts.iter() {
            if other.account.username.eq_ignore_ascii_case(&new.username) {
                return Err(StoreError::Taken { field: "username" });
            }
            if other.account.email.eq_ignore_ascii_case(&new.email) {
                return Err(StoreError::Taken { field: "email" });
            }
        }
        let account = Account {
            id: i64::try_from(accounts.len()).unwrap() + 1,
            username: new.username.clone(),
            email: new.email.clone(),
            role: new.role,
            status: new.status,
            is_active: true,
            mirror: OnlineStatus::Offline,
            last_seen: None,
        };
        accounts.push(Credentials { account: account.clone(), password_hash: new.password_hash.clone() });
        Ok(account)
    }
    async fn has_accounts(&self) -> Result<bool> {
        Ok(!self.accounts.lock().unwrap().is_empty())
    }
    async fn account(&self, id: UserId) -> Result<Option<Account>> {
        let accounts = self.accounts.lock().unwrap();
        Ok(accounts.iter().find(|row| row.account.id == id).map(|row| row.account.clone()))
    }
    async fn credentials(&self, login: &str) -> Result<Option<Credentials>> {
        let accounts = self.accounts.lock().unwrap();
        let by = |field: fn(&Account) -> &str| {
            accounts.iter().find(|row| field(&row.account).eq_ignore_ascii_case(login)).cloned()
        };
        Ok(by(|account| &account.username).or_else(|| by(|account| &account.email)))
    }
    async fn update_account(&self, id: UserId, patch: &AccountPatch) -> Result<Option<Account>> {
        let mut accounts = self.accounts.lock().unwrap();
        let Some(row) = accounts.iter_mut().find(|row| row.account.id == id) else { return Ok(None) };
        let account = &mut row.account;
        account.email = patch.email.clone().unwrap_or_else(|| account.email.clone());
        account.role = patch.role.unwrap_or(account.role);
        account.status = patch.status.unwrap_or(account.status);
        account.is_active = patch.is_active.unwrap_or(account.is_active);
        if let Some(hash) = &patch.password_hash {
            row.password_hash = hash.clone();
        }
        Ok(Some(row.account.clone()))
    }
    async fn delete_account(&self, id: UserId) -> Result<bool> {
        let mut accounts = self.accounts.lock().unwrap();
        let before = accounts.len();
        accounts.retain(|row| row.account.id != id);
        Ok(accounts.len() < before)
    }
    async fn create_session(&self, new: &NewSession) -> Result<bool> {
        let public = Session {
            sid: new.sid.clone(),
            created_at: new.now,
            last_used_at: new.now,
            user_agent: new.user_agent.clone(),
        };
        let session = FakeSession { user: new.user, public, refresh: new.refresh_hash, ended: false };
        self.sessions.lock().unwrap().push(session);
        Ok(true)
    }
    async fn sessions(&self, user: UserId, _now: Millis) -> Result<Vec<Session>> {
        let sessions = self.sessions.lock().unwrap();
        let alive = sessions.iter().filter(|session| session.user == user && !session.ended);
        Ok(alive.map(|session| session.public.clone()).collect())
    }
    async fn rotate_refresh(&self, request: &RotationRequest) -> Result<Rotation> {
        let mut sessions = self.sessions.lock().unwrap();
        let found = sessions.iter_mut().find(|session| {
            session.user == request.user && session.public.sid == request.sid && !session.ended
        });
        let Some(session) = found else { return Ok(Rotation::Ended) };
        if session.refresh == request.presented {
            session.refresh = request.successor;
            return Ok(Rotation::Rotated);
        }
        session.ended = true;
        Ok(Rotation::Reused)
    }
    async fn end_session(&self, user: UserId, sid: &SessionId, _now: Millis) -> Result<bool> {
        let mut sessions = self.sessions.lock().unwrap();
        let found = sessions.iter_mut().find(|session| session.user == user && session.public.sid == *sid);
        Ok(found.is_some_and(|session| !std::mem::replace(&mut session.ended, true)))
    }
    async fn end_sessions(&self, user: UserId, _now: Millis) -> Result<Vec<SessionId>> {
        let mut sessions = self.sessions.lock().unwrap();
        let alive = sessions.iter_mut().filter(|session| session.user == user && !session.ended);
        Ok(alive
            .map(|session| {
                session.ended = true;
                session.public.sid.clone()
            })
            .collect())
    }

    // What identity never asks.

    async fn migrate(&self) -> Result<Vec<String>> {
        unimplemented!()
    }
    async fn ping(&self) -> Result<()> {
        unimplemented!()
    }
    fn statements(&self) -> u64 {
        unimplemented!()
    }
    async fn accounts(&self, _: &[UserId]) -> Result<Vec<Account>> {
        unimplemented!()
    }
    async fn list_accounts(&self, _: &AccountFilter, _: Page) -> Result<AccountList> {
        unimplemented!()
    }
    async fn list_present_in_mirror(&self, _: Millis, _: Page) -> Result<AccountList> {
        unimplemented!()
    }
    async fn standings(&self, _: &[UserId]) -> Result<Vec<(UserId, Standing)>> {
        unimplemented!()
    }
    async fn blocked_after(&self, _: UserId, _: u32) -> Result<Vec<UserId>> {
        unimplemented!()
    }
    async fn change_cursor(&self) -> Result<ChangeCursor> {
        unimplemented!()
    }
    async fn account_changes(&self, _: &ChangeCursor) -> Result<AccountChanges> {
        unimplemented!()
    }
    async fn wait_for_account_change(&self, _: Duration) -> Result<()> {
        unimplemented!()
    }
    async fn session_has_ended(&self, _: UserId, _: &SessionId) -> Result<bool> {
        unimplemented!()
    }
    async fn sessions_ended_since(&self, _: Millis) -> Result<Vec<(UserId, SessionId)>> {
        unimplemented!()
    }
    async fn record(&self, _: u32, _: &[Transition]) -> Result<RecordOutcome> {
        unimplemented!()
    }
    async fn touch_last_seen(&self, _: &[(UserId, Millis)]) -> Result<u64> {
        unimplemented!()
    }
    async fn present_in_mirror_after(&self, _: UserId, _: u32) -> Result<Vec<MirrorRow>> {
        unimplemented!()
    }
}
