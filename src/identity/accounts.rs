//! Accounts: made, changed and deleted by the rules of [`super::rules`].

use std::fmt;
use std::net::IpAddr;

use super::limits::Limited;
use super::{FieldErrors, Identity, IdentityError, Result};
use crate::model::{Account, AccountStatus, Actor, Role, UserId};
use crate::store::{self, AccountPatch};

/// Somebody signs up. Its `Debug` shows no password.
#[derive(Clone)]
pub struct Registration {
    /// The name wished for.
    pub username: String,
    /// The e-mail address.
    pub email: String,
    /// The password in the clear.
    pub password: String,
}

/// An account that an administrator makes. Its `Debug` shows no password.
#[derive(Clone)]
pub struct NewAccount {
    /// Name, e-mail address and password.
    pub registration: Registration,
    /// A word of [`Role`]; `user` where there is none.
    pub role: Option<String>,
    /// A word of [`AccountStatus`]; `active` where there is none.
    pub status: Option<String>,
}

/// What an administrator changes; `None` leaves a field as it is. Its `Debug` shows no password.
#[derive(Clone, Default)]
pub struct AccountEdit {
    /// New e-mail address.
    pub email: Option<String>,
    /// A word of [`Role`].
    pub role: Option<String>,
    /// A word of [`AccountStatus`].
    pub status: Option<String>,
    /// New value of the switch.
    pub is_active: Option<bool>,
    /// New password in the clear; it ends the account's sessions.
    pub password: Option<String>,
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration").field("username", &self.username).finish_non_exhaustive()
    }
}

impl fmt::Debug for NewAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NewAccount").field("username", &self.registration.username).finish_non_exhaustive()
    }
}

impl fmt::Debug for AccountEdit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccountEdit").field("role", &self.role).finish_non_exhaustive()
    }
}

impl Identity {
    /// Adds an account for whoever asks from this address: active, an ordinary user, offline.
    ///
    /// # Errors
    /// [`IdentityError::NoAdministrator`], [`IdentityError::TooMany`], [`IdentityError::Invalid`],
    /// [`IdentityError::Taken`], [`IdentityError::Overloaded`], [`IdentityError::Store`].
    pub async fn register(&self, client: IpAddr, registration: Registration) -> Result<Account> {
        self.require_administrator().await?;
        self.inner.limits.address(Limited::RegisterAddress, client).await?;
        self.create_account(NewAccount { registration, role: None, status: None }, None).await
    }

    /// Adds an account as an administrator wishes it; `by` says which, for the trail.
    ///
    /// # Errors
    /// As [`Self::register`], but for the limit.
    pub async fn create_account(&self, new: NewAccount, by: Option<&Actor>) -> Result<Account> {
        let Registration { username, email, password } = new.registration;
        let mut errors = FieldErrors::default();
        let username = errors.username(&username, &email);
        errors.email(&email);
        errors.password(&password, &username, &email);
        let role = new.role.map_or(Some(Role::User), |word| errors.word("role", &word));
        let status = new.status.map_or(Some(AccountStatus::Active), |word| errors.word("status", &word));
        errors.check()?;
        let (Some(role), Some(status)) = (role, status) else {
            return Err(IdentityError::Internal("a word was refused without a complaint".into()));
        };

        let password_hash = self.inner.passwords.hash(password).await?;
        let new = store::NewAccount { username, email, password_hash, role, status };
        Ok(self.inner.store.create_account(&new, by).await?)
    }

    /// Changes an account; `None` where there is none. A new password and a block end its sessions, which presence must
    /// hear of ([`crate::presence::PresenceService::account_changed`]).
    ///
    /// # Errors
    /// As [`Self::register`]; [`IdentityError::LastAdministrator`].
    pub async fn update_account(&self, id: UserId, edit: AccountEdit, by: &Actor) -> Result<Option<Account>> {
        let store = &self.inner.store;
        let Some(account) = store.account(id).await? else { return Ok(None) };
        let mut errors = FieldErrors::default();
        if let Some(email) = &edit.email {
            errors.email(email);
        }
        if let Some(password) = &edit.password {
            errors.password(password, &account.username, edit.email.as_ref().unwrap_or(&account.email));
        }
        let role = edit.role.and_then(|word| errors.word("role", &word));
        let status = edit.status.and_then(|word| errors.word("status", &word));
        errors.check()?;

        let password_hash = match edit.password {
            Some(password) => Some(self.inner.passwords.hash(password).await?),
            None => None,
        };
        let patch =
            AccountPatch { email: edit.email, role, status, is_active: edit.is_active, password_hash };
        Ok(store.update_account(id, &patch, Some(by)).await?)
    }

    /// Computes the keys of login names that plain SQL has left to the service; for how many accounts.
    ///
    /// # Errors
    /// [`IdentityError::Store`].
    pub async fn complete_login_names(&self) -> Result<u64> {
        let mut completed = 0;
        loop {
            match self.inner.store.complete_login_names(store::NAMES_AT_ONCE).await? {
                0 => return Ok(completed),
                more => completed += more,
            }
        }
    }

    /// Deletes an account with its sessions and its history; whether there was one.
    ///
    /// # Errors
    /// [`IdentityError::LastAdministrator`], [`IdentityError::Store`].
    pub async fn delete_account(&self, id: UserId, by: &Actor) -> Result<bool> {
        Ok(self.inner.store.delete_account(id, Some(by)).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::stage::{self, HERE, identity, registration};
    use super::*;

    #[tokio::test]
    async fn a_new_account_is_active_and_an_ordinary_user() {
        let identity = identity().await;
        let account = identity.register(HERE, registration("ada")).await.unwrap();
        assert_eq!(
            (account.role, account.status, account.is_active),
            (Role::User, AccountStatus::Active, true)
        );
        assert_eq!(identity.account(account.id).await.unwrap(), Some(account));
    }

    #[tokio::test]
    async fn every_bad_field_is_named_at_once() {
        let new = NewAccount {
            registration: Registration {
                username: "a\0".into(),
                email: "x".into(),
                password: "short".into(),
            },
            role: Some("god".into()),
            status: Some("gone".into()),
        };
        let Err(IdentityError::Invalid(errors)) = identity().await.create_account(new, None).await else {
            panic!()
        };
        assert_eq!(errors.0.keys().collect::<Vec<_>>(), ["email", "password", "role", "status", "username"]);
        assert_eq!(errors.0["role"], ["must be one of user, admin"]);
        assert_eq!(errors.0["status"], ["must be one of active, pending, inactive, suspended, banned"]);
    }

    async fn taken(identity: &Identity, name: &str, email: &str) -> &'static str {
        let again = Registration { email: email.into(), ..registration(name) };
        match identity.register(HERE, again).await {
            Err(IdentityError::Taken { field }) => field,
            other => panic!("{name} {email}: {other:?}"),
        }
    }

    #[tokio::test]
    async fn a_name_or_an_address_is_one_account_s_only_however_it_is_written() {
        let identity = identity().await;
        identity.register(HERE, registration("ada")).await.unwrap();
        identity.register(HERE, registration("straße")).await.unwrap();
        for (name, email, field) in [
            ("ADA", "other@example.com", "username"),
            ("Ａda", "other@example.com", "username"),
            ("STRASSE", "other@example.com", "username"),
            ("bob", "ADA@example.com", "email"),
            ("bob", "ada@example\u{ff0e}com", "email"),
            ("bob", "STRASSE@example.com", "email"),
        ] {
            assert_eq!(taken(&identity, name, email).await, field, "{name} {email}");
        }
    }

    /// U+212A (KELVIN SIGN) folds to 'k'.
    #[tokio::test]
    async fn an_address_is_nobody_else_s_username_in_any_spelling() {
        let identity = identity().await;
        let kim = Registration { email: "kim@outlook.com".into(), ..registration("victim") };
        identity.register(HERE, kim).await.unwrap();
        let own = "\u{212a}im@outloo\u{212a}.com";
        assert_eq!(taken(&identity, "kim@outlook.com", own).await, "username");
        assert_eq!(taken(&identity, "KIM@outlook.com", "kim@outlook.com").await, "username");
    }

    #[tokio::test]
    async fn an_address_that_somebody_signs_in_with_as_a_username_cannot_be_claimed() {
        let identity = identity().await;
        let own = Registration { username: "ada@example.com".into(), ..registration("ada") };
        let ada = identity.register(HERE, own).await.unwrap();
        let eve = identity.register(HERE, registration("eve")).await.unwrap();
        let move_to = async |id, email: &str| {
            let edit = AccountEdit { email: Some(email.into()), ..AccountEdit::default() };
            identity.update_account(id, edit, &stage::admin()).await
        };
        move_to(ada.id, "ada@elsewhere.com").await.unwrap().unwrap();
        for email in ["ada@example.com", "ADA@Example.com", "ada@exampl\u{212f}.com"] {
            assert_eq!(taken(&identity, "bob", email).await, "email");
            let claim = move_to(eve.id, email).await;
            assert!(matches!(claim, Err(IdentityError::Taken { field: "email" })), "{email}: {claim:?}");
        }
        assert!(move_to(ada.id, "ada@example.com").await.unwrap().is_some(), "its own it may take back");
    }

    #[tokio::test]
    async fn a_new_password_and_a_block_end_every_session_and_nothing_else_does() {
        let identity = identity().await;
        let ada = identity.register(HERE, registration("ada")).await.unwrap();
        let by = stage::admin();
        let login =
            async |password| identity.login(HERE, "ada", password, None).await.unwrap().tokens.refresh;
        let edit = async |edit| identity.update_account(ada.id, edit, &by).await.unwrap().unwrap();
        let (phone, laptop) = (login("ada's password").await, login("ada's password").await);

        edit(AccountEdit {
            role: Some("user".into()),
            status: Some("pending".into()),
            ..AccountEdit::default()
        })
        .await;
        let phone = identity.refresh(HERE, &phone).await.unwrap().refresh;
        edit(AccountEdit { password: Some("another password".into()), ..AccountEdit::default() }).await;
        for token in [phone, laptop] {
            assert!(matches!(identity.refresh(HERE, &token).await, Err(IdentityError::SessionEnded)));
        }

        let tablet = login("another password").await;
        edit(AccountEdit { is_active: Some(false), ..AccountEdit::default() }).await;
        assert!(matches!(identity.refresh(HERE, &tablet).await, Err(IdentityError::Blocked)));
        edit(AccountEdit { is_active: Some(true), ..AccountEdit::default() }).await;
        assert!(matches!(identity.refresh(HERE, &tablet).await, Err(IdentityError::SessionEnded)));
        assert!(identity.update_account(99, AccountEdit::default(), &by).await.unwrap().is_none());
    }

    #[test]
    fn no_debug_shows_a_password() {
        let new = NewAccount { registration: registration("ada"), role: None, status: None };
        let edit = AccountEdit { password: Some("ada's password".into()), ..AccountEdit::default() };
        let shown = format!("{:?} {new:?} {edit:?}", new.registration);
        assert!(!shown.contains("password"), "{shown}");
    }
}
