//! The commands that do one thing and end.

use std::sync::Arc;

use anyhow::Context as _;

use super::cli::{CreateUser, ResetPassword};
use super::settings::{Secret, Settings};
use super::{backing, exposure};
use crate::identity::{self, Identity, Limits};
use crate::live::LiveSet;
use crate::model::Escaped;
use crate::model::login_name::are_equal;
use crate::store::{NAMES_AT_ONCE, Store};
use crate::tasks::{self, Context};

/// `presenced migrate`
pub(super) async fn migrate(settings: &Settings) -> anyhow::Result<()> {
    let store = backing::store(settings).await?;
    let applied = store.migrate().await.context("the schema could not be brought up to date")?;
    if applied.is_empty() {
        println!("the schema is up to date");
    }
    for name in applied {
        println!("applied: {name}");
    }
    let wrong = store.mend_counts().await.context("the numbers of accounts could not be looked at")?;
    if wrong > 0 {
        println!("put right: {wrong} numbers of accounts");
    }
    complete_login_names(&store).await.context(
        "the schema is up to date, but the login names could not be completed: run this again, or start an instance",
    )
}

/// Clashes that are told one by one.
const CLASHES_TOLD: u32 = 100;

/// Computes the keys of login names that the database could not, and names the accounts that share one.
async fn complete_login_names(store: &Arc<dyn Store>) -> anyhow::Result<()> {
    store.mark_incomplete_login_names().await?;
    let mut completed = 0;
    loop {
        match store.complete_login_names(NAMES_AT_ONCE).await? {
            0 => break,
            more => completed += more,
        }
    }
    if completed > 0 {
        println!("login names completed: {completed} accounts");
    }
    let clashes = store.login_name_clashes(0, CLASHES_TOLD).await?;
    for clash in &clashes {
        println!("clash: {clash}. Nothing is lost: give one of the two another name");
    }
    if clashes.len() >= CLASHES_TOLD as usize {
        println!("clashes: {CLASHES_TOLD} are named here, and there may be more: presenced doctor");
    }
    Ok(())
}

/// `presenced create-user`
pub(super) async fn create_user(settings: &Settings, user: CreateUser) -> anyhow::Result<()> {
    let store = backing::store_now(settings).await?;
    let (password, made) = new_password(user.password_stdin)?;
    // No token is signed here.
    let settings = settings.tokens.identity(&Secret::new(backing::random_text()?))?;
    let identity = Identity::new(store, &settings, Limits::off());
    let account = identity
        .create_account(
            identity::NewAccount {
                registration: identity::Registration {
                    username: user.username,
                    email: user.email,
                    password: password.clone(),
                },
                role: Some(user.role),
                status: Some(user.status),
            },
            None,
        )
        .await?;
    println!(
        "created: {} (id {}, {}, {})",
        Escaped(&account.username),
        account.id,
        account.role,
        account.status
    );
    if made {
        println!("password: {password}");
    }
    Ok(())
}

/// A password: from standard input, or made up here, which the second value says.
fn new_password(from_stdin: bool) -> anyhow::Result<(String, bool)> {
    if !from_stdin {
        return Ok((backing::random_text()?[..20].to_string(), true));
    }
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("cannot read the password from standard input")?;
    Ok((line.trim_end_matches(['\r', '\n']).to_string(), false))
}

/// `presenced reset-password`
pub(super) async fn reset_password(settings: &Settings, account: ResetPassword) -> anyhow::Result<()> {
    let store = backing::store_now(settings).await?;
    let (password, made) = new_password(account.password_stdin)?;
    // No token is signed here.
    let identity = settings.tokens.identity(&Secret::new(backing::random_text()?))?;
    let identity = Identity::new(store.clone(), &identity, Limits::off());
    let Some(found) = identity.reset_password(&account.username, &password).await? else {
        anyhow::bail!(
            "there is no account with the name or e-mail address '{}'",
            account.username.escape_debug()
        );
    };
    if made && are_equal(&found.username, identity::ADMIN) {
        exposure::note_generated_password(settings, &store).await?;
    }
    println!(
        "new password set: {} (id {}, {}, {}); its sessions have ended",
        found.username.escape_debug(),
        found.id,
        found.role,
        found.status
    );
    if !found.may_be_present() {
        println!("the account is blocked, so it still cannot sign in");
    }
    if made {
        println!("password: {password}");
    }
    Ok(())
}

/// `presenced check-offline-users`: the successor of the management command of that name.
pub(super) async fn check_offline_users(settings: &Settings) -> anyhow::Result<()> {
    let redis = backing::redis_for_a_command(settings).await?;
    let outcome = async {
        let store = backing::store_now(settings).await?;
        let live = &redis.live;
        tokio::time::timeout(backing::REDIS_PATIENCE, live.ready()).await.context(backing::NO_REDIS)??;
        belong(live, &store).await?;
        let context = backing::context(settings, live, &store);
        let checked = check(&context).await;
        // It may have taken a turn at the stream, under a name that nobody will use again.
        let _ = live.resign().await;
        checked
    }
    .await;
    redis.close().await;
    outcome
}

/// Makes sure that Redis and SQL are of one installation.
pub(super) async fn belong(live: &LiveSet, store: &Arc<dyn Store>) -> anyhow::Result<()> {
    let id = store.installation().await.context("the installation's id could not be read")?;
    tokio::time::timeout(backing::REDIS_PATIENCE, live.belong_to(&id)).await.context(backing::NO_REDIS)??;
    Ok(())
}

async fn check(context: &Context) -> anyhow::Result<()> {
    // Nothing is claimed before somebody has looked at a Redis that was restarted.
    Box::pin(context.presence.restore_fence()).await?;
    let swept = tasks::sweep_once(&context.live).await?;
    println!("deadlines passed: {}, taken offline now: {}", swept.passed, swept.claimed);
    if swept.strays > 0 {
        println!("members of the live set that were no user ids, dropped: {}", swept.strays);
    }
    let reconciled = tasks::reconcile_once(context).await?;
    println!(
        "present in SQL: {}, unknown to Redis and declared offline: {}",
        reconciled.present_in_sql, reconciled.declared
    );
    if let Some(wait) = reconciled.too_early {
        println!(
            "nobody can be missed yet: this Redis has been heard for less than PRESENCE_TTL; again in {} s",
            wait.as_secs() + 1
        );
    }
    let drained = tasks::drain_all(context).await?;
    println!("transitions written to SQL: {}, history rows added: {}", drained.transitions, drained.recorded);
    if drained.others_at_it {
        println!("a running service has transitions in hand and writes them itself");
    }
    if drained.users_held > 0 {
        println!(
            "another transaction in the database holds the rows of {} user(s): their transitions wait in Redis for it to end",
            drained.users_held
        );
    }
    println!("online now: {}", context.live.online_count().await?);
    Ok(())
}
