//! The trail of administrators on SQLite, and the rule that one of them is always left.

use sqlx::{QueryBuilder, query, query_as};

use super::SqliteLease;
use crate::model::{Actor, Deed, Page, TrailEntry, UserId};
use crate::store::rows::{TrailRow, convert};
use crate::store::{Result, StoreError, Trail, TrailFilter};

pub use crate::store::administrators::refuse_the_last;

/// Adds an entry. Where that fails the action must not be taken, whatever the reason.
pub async fn add(lease: &mut SqliteLease, by: &Actor, deed: &Deed) -> Result<()> {
    let statement = "INSERT INTO admin_actions (actor_id, actor_username, address, action, user_id, username, changes) \
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";
    let insert = query(statement)
        .bind(by.user)
        .bind(&by.username)
        .bind(&by.address)
        .bind(deed.action.as_str())
        .bind(deed.user)
        .bind(&deed.username)
        .bind(serde_json::json!(deed.changes).to_string());
    lease.execute(insert).await.map(drop).map_err(StoreError::unrecorded)
}

/// One page, newest first, and how many entries match.
pub async fn list(lease: &mut SqliteLease, filter: &TrailFilter, page: Page) -> Result<Trail> {
    let mut count = QueryBuilder::new("SELECT count(*) FROM admin_actions");
    push_matching(&mut count, filter);
    let (total,): (i64,) = lease.row(count.build_query_as()).await?.unwrap_or_default();
    let mut entries: Vec<TrailEntry> = Vec::new();
    if page.offset() < total {
        let mut rows = QueryBuilder::new(
            "SELECT id, at, actor_id, actor_username, address, action, user_id, username, changes FROM admin_actions",
        );
        push_matching(&mut rows, filter);
        rows.push(" ORDER BY id DESC LIMIT ").push_bind(i64::from(page.size));
        rows.push(" OFFSET ").push_bind(page.offset());
        entries = convert(lease.rows::<TrailRow>(rows.build_query_as()).await?)?;
    }
    Ok(Trail { entries, total })
}

fn push_matching(sql: &mut QueryBuilder<sqlx::Sqlite>, filter: &TrailFilter) {
    sql.push(" WHERE 1");
    if let Some(user) = filter.user {
        sql.push(" AND user_id = ").push_bind(user);
    }
    if let Some(actor) = filter.actor {
        sql.push(" AND actor_id = ").push_bind(actor);
    }
    if let Some(action) = filter.action {
        sql.push(" AND action = ").push_bind(action.as_str());
    }
}

/// Who may administer now; nobody else writes while a transaction of the one writer lasts.
pub async fn administrators(lease: &mut SqliteLease, may_become_less: bool) -> Result<Vec<UserId>> {
    if !may_become_less {
        return Ok(Vec::new());
    }
    let rows: Vec<(UserId,)> =
        lease.rows(query_as("SELECT id FROM users WHERE role = 'admin' AND may_be_present")).await?;
    Ok(rows.into_iter().map(|(id,)| id).collect())
}
