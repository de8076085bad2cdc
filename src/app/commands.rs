//! The commands that do one thing and end.

use anyhow::Context as _;

use super::backing;
use super::cli::CreateUser;
use super::settings::{Secret, Settings};
use crate::identity::{self, Identity, Limits};
use crate::model::Escaped;
use crate::tasks::{self, Context};

/// `presenced migrate`
pub(super) async fn migrate(settings: &Settings) -> anyhow::Result<()> {
    let store =
        crate::store::open(&backing::database_url(settings), &crate::store::Options::default()).await?;
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
    Ok(())
}

/// `presenced create-user`
pub(super) async fn create_user(settings: &Settings, user: CreateUser) -> anyhow::Result<()> {
    let store = backing::store_now(settings).await?;
    let (password, made) = if user.password_stdin {
        let mut line = String::new();
        std::io::stdin().read_line(&mut line).context("cannot read the password from standard input")?;
        (line.trim_end_matches(['\r', '\n']).to_string(), false)
    } else {
        (backing::random_text()?[..20].to_string(), true)
    };
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

/// `presenced check-offline-users`: the successor of the management command of that name.
pub(super) async fn check_offline_users(settings: &Settings) -> anyhow::Result<()> {
    let redis = backing::redis_for_a_command(settings).await?;
    let outcome = async {
        let store = backing::store_now(settings).await?;
        let live = &redis.live;
        tokio::time::timeout(backing::REDIS_PATIENCE, live.ready()).await.context(backing::NO_REDIS)??;
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
    println!("online now: {}", context.live.online_count().await?);
    Ok(())
}
