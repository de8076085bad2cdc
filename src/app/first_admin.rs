//! The account `admin` of the first start: made where no account can administer, and what the operator must know of it.
//!
//! A password that was chosen and not used, one that was generated and could not be shown, and a name that another account
//! has are all logged with what to do: until there is an administrator nobody can register or sign in.

use std::io::Write as _;
use std::sync::Arc;

use anyhow::Context as _;

use super::settings::{Secret, Settings};
use super::{backing, exposure};
use crate::identity::{FirstAdministrator, Identity};
use crate::model::Account;
use crate::store::Store;

/// How the password is had again.
const RESET: &str = "presenced reset-password --username admin";

/// The account `admin`, made just now.
pub(super) struct Admin {
    /// Its password, where that was made up here.
    pub(super) password: Option<String>,
}

impl Admin {
    /// What standard output says of the password.
    pub(super) fn shown(&self) -> &str {
        self.password.as_deref().unwrap_or("as PRESENCE_ADMIN_PASSWORD has it")
    }

    /// Prints the password, for a start that has announced itself already.
    pub(super) fn print(&self) {
        let mut out = std::io::stdout().lock();
        if let Err(error) = writeln!(out, "admin password: {}", self.shown()).and_then(|()| out.flush()) {
            not_shown(&error, Some(self));
        }
    }
}

/// Logs that standard output takes nothing, which is no reason to end.
pub(super) fn not_shown(error: &std::io::Error, admin: Option<&Admin>) {
    match admin.and_then(|admin| admin.password.as_deref()) {
        Some(_) => tracing::error!(
            %error,
            "the generated password of the account 'admin' could not be shown, because standard output cannot be written: \
             set a new one with: {RESET}"
        ),
        None => {
            tracing::warn!(%error, "the address could not be shown, because standard output cannot be written");
        }
    }
}

/// Makes the account `admin` where no account can administer; `None` where it made none.
pub(super) async fn ensure(
    settings: &Settings,
    store: &Arc<dyn Store>,
    identity: &Identity,
) -> anyhow::Result<Option<Admin>> {
    let made_up = backing::random_text()?[..20].to_string();
    let chosen = settings.admin_password.as_ref().map(Secret::reveal);
    let outcome = identity
        .ensure_admin(chosen.unwrap_or(&made_up), chosen.is_some())
        .await
        .context("the account 'admin' could not be made")?;
    match outcome {
        FirstAdministrator::Made if chosen.is_some() => Ok(Some(Admin { password: None })),
        FirstAdministrator::Made => {
            exposure::note_generated_password(settings, store).await?;
            tracing::info!(
                "the account 'admin' was made, and its generated password printed once on standard output; if that is lost, \
                 set a new one with: {RESET}"
            );
            Ok(Some(Admin { password: Some(made_up) }))
        }
        FirstAdministrator::Exists { account, password_is_its } => {
            if chosen.is_some() && !password_is_its {
                tracing::warn!(
                    "PRESENCE_ADMIN_PASSWORD was not used, because there is an administrator already: {}. To set a new \
                     password: presenced reset-password --username '{}'",
                    described(&account),
                    account.username.escape_debug()
                );
            }
            Ok(None)
        }
        FirstAdministrator::NameTaken(account) => {
            let why = format!(
                "there is no administrator, and the account 'admin' cannot be made, because its name or e-mail address is \
                 that of {}: register/ and login/ answer 503 until there is one. Make one under another name: presenced \
                 create-user --username NAME --email ADDRESS --role admin",
                described(&account)
            );
            tracing::error!("{why}");
            let _ = writeln!(std::io::stdout().lock(), "no administrator: {why}");
            Ok(None)
        }
    }
}

fn described(account: &Account) -> String {
    let Account { id, username, role, status, .. } = account;
    format!("'{}' (id {id}, {role}, {status})", username.escape_debug())
}
