//! Login sessions and refresh tokens on PostgreSQL.
//!
//! Who changes a session holds its account first, where that matters too, then the session's row, its tokens last.

use chrono::{DateTime, Utc};
use sqlx::{query, query_as};

use super::{PgLease, begin};
use crate::model::{Millis, SessionId, UserId};
use crate::store::rotation::{KEEP_ENDED_SESSIONS_MS, Presented, may_rotate};
use crate::store::rows::SessionRow;
use crate::store::texts::user_agent;
use crate::store::{NewSession, Result, Rotation, RotationRequest, Session};

/// Adds the session where the account may be present and still is what its password was checked against. The row is held
/// against a block and a change of password until the session is there for that change to end.
pub async fn create(lease: &mut PgLease, new: &NewSession) -> Result<bool> {
    begin(lease).await?;
    let added = lease
        .execute(
            query(
                "INSERT INTO login_sessions (sid, user_id, created_at, last_used_at, user_agent) \
                 SELECT $1, id, $3, $3, $4 FROM users \
                 WHERE id = $2 AND may_be_present AND ($5::text IS NULL OR password_hash = $5) FOR SHARE",
            )
            .bind(new.sid.as_str())
            .bind(new.user)
            .bind(new.now.to_utc())
            .bind(new.user_agent.as_deref().map(user_agent))
            .bind(new.password_hash.as_ref().map(|hash| &hash.0)),
        )
        .await?;
    if added.rows_affected() > 0 {
        lease
            .execute(
                query("INSERT INTO refresh_tokens (token_hash, sid, expires_at) VALUES ($1, $2, $3)")
                    .bind(&new.refresh_hash[..])
                    .bind(new.sid.as_str())
                    .bind(new.refresh_expires_at.to_utc()),
            )
            .await?;
    }
    // After the account, which a block holds before it comes to the sessions.
    lease
        .execute(
            query(
                "DELETE FROM login_sessions WHERE sid IN (SELECT sid FROM login_sessions s WHERE user_id = $1 \
                 AND created_at < $2 AND (ended_at < $2 OR ended_at IS NULL AND NOT EXISTS \
                 (SELECT FROM refresh_tokens t WHERE t.sid = s.sid AND t.expires_at >= $2)) ORDER BY sid FOR UPDATE)",
            )
            .bind(new.user)
            .bind(new.now.plus(-KEEP_ENDED_SESSIONS_MS).to_utc()),
        )
        .await?;
    lease.commit().await?;
    Ok(added.rows_affected() > 0)
}

pub async fn of_user(lease: &mut PgLease, user: UserId, now: Millis) -> Result<Vec<Session>> {
    let rows: Vec<SessionRow> = lease
        .rows(
            query_as(
                "SELECT sid, created_at, last_used_at, user_agent FROM login_sessions s \
                 WHERE user_id = $1 AND ended_at IS NULL \
                 AND EXISTS (SELECT FROM refresh_tokens t WHERE t.sid = s.sid AND t.expires_at > $2) \
                 ORDER BY created_at DESC, sid",
            )
            .bind(user)
            .bind(now.to_utc()),
        )
        .await?;
    Ok(rows.into_iter().filter_map(SessionRow::into_session).collect())
}

pub async fn rotate(lease: &mut PgLease, request: &RotationRequest) -> Result<Rotation> {
    let now = request.now.to_utc();
    let sid = request.sid.as_str();
    begin(lease).await?;
    let alive: Option<(i32,)> = lease
        .row(
            query_as("SELECT 1 FROM login_sessions WHERE sid = $1 AND user_id = $2 AND ended_at IS NULL FOR UPDATE")
                .bind(sid)
                .bind(request.user),
        )
        .await?;
    if alive.is_none() {
        lease.commit().await?;
        return Ok(Rotation::Ended);
    }
    let held: Option<(Option<DateTime<Utc>>,)> = lease
        .row(
            query_as("SELECT used_at FROM refresh_tokens WHERE token_hash = $1 AND sid = $2")
                .bind(&request.presented[..])
                .bind(sid),
        )
        .await?;
    let presented = match held {
        None => Presented::Unknown,
        Some((None,)) => Presented::Unused,
        Some((Some(at),)) => Presented::Used(Millis::from_utc(at)),
    };
    if !may_rotate(presented, request.now, request.grace_ms) {
        end_in_transaction(lease, request.user, Some(&request.sid), request.now).await?;
        lease.commit().await?;
        return Ok(Rotation::Reused);
    }
    if presented == Presented::Unused {
        lease
            .execute(
                query("UPDATE refresh_tokens SET used_at = $2 WHERE token_hash = $1")
                    .bind(&request.presented[..])
                    .bind(now),
            )
            .await?;
    }
    // A token that is gone from here was used long ago: that is all that need be known of it.
    lease
        .execute(
            query("DELETE FROM refresh_tokens WHERE sid = $1 AND (used_at < $2 OR expires_at < $2)")
                .bind(sid)
                .bind(request.now.plus(-request.grace_ms).to_utc()),
        )
        .await?;
    lease
        .execute(
            query("INSERT INTO refresh_tokens (token_hash, sid, expires_at) VALUES ($1, $2, $3)")
                .bind(&request.successor[..])
                .bind(sid)
                .bind(request.successor_expires_at.to_utc()),
        )
        .await?;
    lease
        .execute(
            query("UPDATE login_sessions SET last_used_at = GREATEST(last_used_at, $2) WHERE sid = $1")
                .bind(sid)
                .bind(now),
        )
        .await?;
    lease.commit().await?;
    Ok(Rotation::Rotated)
}

/// Ends one session of the user, or all, and names those that were alive.
pub async fn end(
    lease: &mut PgLease,
    user: UserId,
    sid: Option<&SessionId>,
    now: Millis,
) -> Result<Vec<SessionId>> {
    begin(lease).await?;
    let ended = end_in_transaction(lease, user, sid, now).await?;
    lease.commit().await?;
    Ok(ended)
}

async fn end_in_transaction(
    lease: &mut PgLease,
    user: UserId,
    sid: Option<&SessionId>,
    now: Millis,
) -> Result<Vec<SessionId>> {
    // Locked in one order, so that two that end all sessions of a user do not wait in a circle.
    let alive: Vec<(String,)> = lease
        .rows(
            query_as(
                "SELECT sid FROM login_sessions WHERE user_id = $1 AND ($2::text IS NULL OR sid = $2) \
                 AND ended_at IS NULL ORDER BY sid FOR UPDATE",
            )
            .bind(user)
            .bind(sid.map(SessionId::as_str)),
        )
        .await?;
    if alive.is_empty() {
        return Ok(Vec::new());
    }
    let sids: Vec<String> = alive.into_iter().map(|(sid,)| sid).collect();
    lease
        .execute(
            query("UPDATE login_sessions SET ended_at = $2 WHERE sid = ANY ($1)")
                .bind(&sids)
                .bind(now.to_utc()),
        )
        .await?;
    lease.execute(query("DELETE FROM refresh_tokens WHERE sid = ANY ($1)").bind(&sids)).await?;
    Ok(sids.iter().filter_map(|sid| SessionId::parse(sid)).collect())
}

pub async fn has_ended(lease: &mut PgLease, user: UserId, sid: &SessionId) -> Result<bool> {
    let row: Option<(bool,)> = lease
        .row(
            query_as("SELECT ended_at IS NOT NULL FROM login_sessions WHERE sid = $1 AND user_id = $2")
                .bind(sid.as_str())
                .bind(user),
        )
        .await?;
    Ok(row.is_some_and(|(ended,)| ended))
}

pub async fn ended_since(lease: &mut PgLease, since: Millis) -> Result<Vec<(UserId, SessionId)>> {
    let rows: Vec<(UserId, String)> = lease
        .rows(
            query_as("SELECT user_id, sid FROM login_sessions WHERE ended_at >= $1 ORDER BY ended_at")
                .bind(since.to_utc()),
        )
        .await?;
    Ok(rows.into_iter().filter_map(|(user, sid)| Some((user, SessionId::parse(&sid)?))).collect())
}

pub async fn ended_of(
    lease: &mut PgLease,
    users: &[UserId],
    since: Millis,
) -> Result<Vec<(UserId, SessionId)>> {
    let rows: Vec<(UserId, String)> = lease
        .rows(
            query_as("SELECT user_id, sid FROM login_sessions WHERE user_id = ANY ($1) AND ended_at >= $2")
                .bind(users)
                .bind(since.to_utc()),
        )
        .await?;
    Ok(rows.into_iter().filter_map(|(user, sid)| Some((user, SessionId::parse(&sid)?))).collect())
}
