//! The administrator without whom nobody gets in: made by the first start, and asked for until there is one.
//!
//! Until an account can administer, `register/` and `login/` are refused: a stranger who registers before the first start
//! is done could otherwise take the name `admin`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::{FieldErrors, Identity, IdentityError, Result};
use crate::model::{Account, AccountStatus, Role};
use crate::store::{self, AccountPatch};

/// The name of the account that the first start makes.
pub const ADMIN: &str = "admin";
/// Its e-mail address: nobody's, by RFC 2606.
const ADMIN_EMAIL: &str = "admin@presenced.invalid";
/// For how long 'there is none' is believed: a crowd of clients must not ask SQL once each.
const NONE_GOOD_FOR: Duration = Duration::from_millis(200);

/// Whether there is an administrator, as far as this process knows. Once there was one it asks no more.
#[derive(Debug, Default)]
pub(super) struct Administrators {
    seen: AtomicBool,
    /// When SQL was last asked in vain.
    asked: Mutex<Option<Instant>>,
}

impl Administrators {
    /// Notes that there is one.
    pub(super) fn note(&self) {
        self.seen.store(true, Ordering::Relaxed);
    }
}

/// What a start has found or done about the administrator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstAdministrator {
    /// The account `admin` was made, with the password given.
    Made,
    /// There is one already; the password was not used.
    Exists {
        /// The account `admin` where that can administer, else the oldest that can.
        account: Account,
        /// Whether the password given is the account's.
        password_is_its: bool,
    },
    /// There is none, and none could be made: the name or the e-mail address of the account `admin` is this account's,
    /// which cannot administer.
    NameTaken(Account),
}

/// Checks a password for the account `admin` by the rules for all.
///
/// # Errors
/// What is wrong with the field `password`.
pub fn check_admin_password(password: &str) -> std::result::Result<(), FieldErrors> {
    let mut errors = FieldErrors::default();
    errors.password(password, ADMIN, ADMIN_EMAIL);
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

impl Identity {
    /// Lets pass once there is an administrator.
    ///
    /// # Errors
    /// [`IdentityError::NoAdministrator`], [`IdentityError::Store`].
    pub(super) async fn require_administrator(&self) -> Result<()> {
        let administrators = &self.inner.administrators;
        if administrators.seen.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut asked = administrators.asked.lock().await;
        if administrators.seen.load(Ordering::Relaxed) {
            return Ok(());
        }
        if asked.is_some_and(|at| at.elapsed() < NONE_GOOD_FOR) {
            return Err(IdentityError::NoAdministrator);
        }
        if self.inner.store.administrator().await?.is_some() {
            administrators.note();
            return Ok(());
        }
        *asked = Some(Instant::now());
        Err(IdentityError::NoAdministrator)
    }

    /// Makes the account `admin` with this password where no account can administer. `chosen`: by the operator, who must
    /// learn whether the password was used.
    ///
    /// # Errors
    /// [`IdentityError::Invalid`] for a password that the rules refuse, [`IdentityError::Store`].
    pub async fn ensure_admin(&self, password: &str, chosen: bool) -> Result<FirstAdministrator> {
        if let Some(account) = self.inner.store.administrator().await? {
            return self.administrator_exists(account, password, chosen).await;
        }
        check_admin_password(password).map_err(IdentityError::Invalid)?;
        let new = store::NewAccount {
            username: ADMIN.into(),
            email: ADMIN_EMAIL.into(),
            password_hash: self.inner.passwords.hash(password.into()).await?,
            role: Role::Admin,
            status: AccountStatus::Active,
        };
        match self.inner.store.create_account(&new, None).await.map_err(IdentityError::from) {
            Ok(_) => {
                self.inner.administrators.note();
                Ok(FirstAdministrator::Made)
            }
            Err(IdentityError::Taken { field }) => {
                // Another instance may have been faster at the same first start.
                if let Some(account) = self.inner.store.administrator().await? {
                    return self.administrator_exists(account, password, chosen).await;
                }
                let name = if field == "email" { ADMIN_EMAIL } else { ADMIN };
                match self.inner.store.credentials(name).await? {
                    Some(found) => Ok(FirstAdministrator::NameTaken(found.account)),
                    None => Err(IdentityError::Taken { field }),
                }
            }
            Err(error) => Err(error),
        }
    }

    async fn administrator_exists(
        &self,
        account: Account,
        password: &str,
        chosen: bool,
    ) -> Result<FirstAdministrator> {
        self.inner.administrators.note();
        let named = self.inner.store.credentials(ADMIN).await?;
        let named = named.filter(|found| found.account.role == Role::Admin && found.account.may_be_present());
        let (account, hash) = match named {
            Some(found) => (found.account, Some(found.password_hash)),
            None => (account, None),
        };
        let password_is_its = match hash {
            Some(hash) if chosen => {
                self.inner.passwords.verify(password.to_owned(), Some(hash)).await?.is_right()
            }
            _ => false,
        };
        Ok(FirstAdministrator::Exists { account, password_is_its })
    }

    /// Sets a new password for the account of this login name, which ends its sessions; `None` where there is no such
    /// account.
    ///
    /// # Errors
    /// [`IdentityError::Invalid`], [`IdentityError::Overloaded`], [`IdentityError::Store`].
    pub async fn reset_password(&self, login: &str, password: &str) -> Result<Option<Account>> {
        let Some(found) = self.inner.store.credentials(login).await? else { return Ok(None) };
        let account = found.account;
        let mut errors = FieldErrors::default();
        errors.password(password, &account.username, &account.email);
        errors.check()?;
        let hash = self.inner.passwords.hash(password.to_owned()).await?;
        let patch = AccountPatch { password_hash: Some(hash), ..AccountPatch::default() };
        Ok(self.inner.store.update_account(account.id, &patch, None).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::super::stage::{HERE, empty, registration};
    use super::super::{NewAccount, Registration};
    use super::*;

    fn taken_by(made: FirstAdministrator) -> Account {
        match made {
            FirstAdministrator::NameTaken(account) => account,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn until_there_is_an_administrator_nobody_registers_or_logs_in() {
        let identity = empty().await;
        for _ in 0..2 {
            let refused = identity.register(HERE, registration("admin")).await;
            assert!(matches!(refused, Err(IdentityError::NoAdministrator)));
            let refused = identity.login(HERE, "admin", "whatever it is", None).await;
            assert!(matches!(refused, Err(IdentityError::NoAdministrator)));
        }
        assert_eq!(identity.ensure_admin("a chosen password", true).await.unwrap(), FirstAdministrator::Made);
        identity.register(HERE, registration("ada")).await.unwrap();
        let signed_in = identity.login(HERE, "admin", "a chosen password", None).await.unwrap();
        assert_eq!(signed_in.account.role, Role::Admin);
    }

    #[tokio::test]
    async fn a_second_start_says_whether_the_password_is_that_of_the_account() {
        let identity = empty().await;
        assert!(matches!(identity.ensure_admin("root", true).await, Err(IdentityError::Invalid(_))));
        assert_eq!(identity.ensure_admin("a chosen password", true).await.unwrap(), FirstAdministrator::Made);
        for (password, is_its) in [("a chosen password", true), ("another password", false)] {
            let found = identity.ensure_admin(password, true).await.unwrap();
            let FirstAdministrator::Exists { account, password_is_its } = found else { panic!("{found:?}") };
            assert_eq!((account.username.as_str(), password_is_its), ("admin", is_its));
        }
        assert!(identity.login(HERE, "admin", "another password", None).await.is_err());
    }

    #[tokio::test]
    async fn an_ordinary_account_with_the_name_or_the_address_of_the_administrator_is_named() {
        for (name, email) in [("ADMIN", "x@example.com"), ("eve", "Admin@Presenced.invalid")] {
            let identity = empty().await;
            let registration = Registration { email: email.into(), ..registration(name) };
            let new =
                |registration, role: &str| NewAccount { registration, role: Some(role.into()), status: None };
            identity.create_account(new(registration, "user"), None).await.unwrap();
            let taken = taken_by(identity.ensure_admin("a chosen password", true).await.unwrap());
            assert_eq!(taken.username, name);
            assert!(matches!(
                identity.login(HERE, name, "no", None).await,
                Err(IdentityError::NoAdministrator)
            ));
            let root = super::super::stage::registration("root");
            identity.create_account(new(root, "admin"), None).await.unwrap();
            tokio::time::sleep(NONE_GOOD_FOR).await;
            assert!(matches!(
                identity.login(HERE, name, "no", None).await,
                Err(IdentityError::WrongCredentials)
            ));
        }
    }

    #[tokio::test]
    async fn a_password_is_reset_by_either_name_and_keeps_to_the_rules() {
        let identity = empty().await;
        identity.ensure_admin("a chosen password", true).await.unwrap();
        let session = identity.login(HERE, "admin", "a chosen password", None).await.unwrap();
        assert_eq!(identity.reset_password("nobody", "a new password").await.unwrap(), None);
        assert!(matches!(identity.reset_password("admin", "12345678").await, Err(IdentityError::Invalid(_))));
        let account = identity.reset_password("ADMIN@presenced.invalid", "a new password").await.unwrap();
        assert_eq!(account.unwrap().username, "admin");
        assert!(identity.refresh(HERE, &session.tokens.refresh).await.is_err(), "its sessions have ended");
        identity.login(HERE, "admin", "a new password", None).await.unwrap();
    }
}
