//! Login names: accounts that share one, and keys that are not those of their names.

use std::time::Duration;

use anyhow::Context as _;
use tokio::time::sleep;

use super::findings::{Finding, NameTrouble};
use super::mend::Outcome;
use super::patience::patiently;
use super::patient::PAGE;
use crate::model::UserId;
use crate::store::{NAMES_AT_ONCE, NameClash, NamesInSql, Store, StoreError};

/// The service completes a key within a second; what is wrong for longer was not on its way.
const PAUSE: Duration = Duration::from_millis(1_500);
/// Suspicions that are kept: the bound of the memory that this takes.
const KEPT: usize = 10_000;

/// Everything that is wrong with login names.
pub(super) async fn find(store: &dyn Store) -> anyhow::Result<Vec<Finding>> {
    let wrong = wrong_keys(store).await;
    let wrong = wrong.context("login names cannot be read: is the schema up to date (presenced migrate)?")?;
    let troubles =
        wrong.into_iter().map(|NamesInSql { user, username, .. }| NameTrouble::Keys { user, username });
    let clashes = clashes(store).await?.into_iter().map(NameTrouble::Clash);
    Ok(troubles.chain(clashes).map(Finding::Names).collect())
}

async fn wrong_keys(store: &dyn Store) -> anyhow::Result<Vec<NamesInSql>> {
    let (mut after, mut suspected) = (0, Vec::new());
    loop {
        let page = patiently(async || store.login_names_after(after, PAGE).await).await?;
        let Some(last) = page.last() else { break };
        after = last.user;
        suspected.extend(page.iter().filter(|names| !names.are_right()).map(|names| names.user));
        if suspected.len() >= KEPT {
            break;
        }
    }
    let mut wrong = Vec::new();
    if !suspected.is_empty() {
        sleep(PAUSE).await;
    }
    for users in suspected.chunks(PAGE as usize) {
        let again = patiently(async || store.login_names(users).await).await?;
        wrong.extend(again.into_iter().filter(|names| !names.are_right()));
    }
    Ok(wrong)
}

async fn clashes(store: &dyn Store) -> anyhow::Result<Vec<NameClash>> {
    let (mut after, mut found) = (0, Vec::new());
    while found.len() < KEPT {
        let page = patiently(async || store.login_name_clashes(after, PAGE).await).await?;
        let Some(last) = page.last() else { break };
        after = last.user;
        found.extend(page);
    }
    Ok(found)
}

/// Computes wrong keys again. Which of two accounts keeps a name is not for a program to say.
pub(super) async fn mend(store: &dyn Store, findings: &[Finding]) -> Vec<Outcome> {
    let users: Vec<UserId> = findings
        .iter()
        .filter_map(|finding| match finding {
            Finding::Names(NameTrouble::Keys { user, .. }) => Some(*user),
            _ => None,
        })
        .collect();
    let mended = match compute_again(store, &users).await {
        Ok(()) => Outcome::Mended("the keys were computed again"),
        Err(error) => Outcome::Failed(error.to_string()),
    };
    let outcome = |finding: &Finding| match finding {
        Finding::Names(NameTrouble::Keys { .. }) => mended.clone(),
        _ => Outcome::ByHand,
    };
    findings.iter().map(outcome).collect()
}

async fn compute_again(store: &dyn Store, users: &[UserId]) -> Result<(), StoreError> {
    if users.is_empty() {
        return Ok(());
    }
    store.mark_login_names(users).await?;
    while store.complete_login_names(NAMES_AT_ONCE).await? > 0 {}
    Ok(())
}
