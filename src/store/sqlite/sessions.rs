//! Login sessions and refresh tokens on SQLite.

use chrono::{DateTime, Utc};
use sqlx::{query, query_as};

use super::{SqliteLease, begin, json_ids, text};
use crate::model::{Millis, SessionId, UserId};
use crate::store::rotation::{KEEP_ENDED_SESSIONS_MS, Presented, may_rotate};
use crate::store::rows::SessionRow;
use crate::store::texts::user_agent;
use crate::store::{NewSession, Result, Rotation, RotationRequest, Session};

/// Adds the session where the account may be present and still is what its password was checked against.
pub async fn create(lease: &mut SqliteLease, new: &NewSession) -> Result<bool> {
    begin(lease).await?;
    lease
        .execute(
            query(
                "DELETE FROM login_sessions WHERE user_id = ?1 AND created_at < ?2 AND (ended_at < ?2 OR ended_at IS NULL \
                 AND NOT EXISTS (SELECT 1 FROM refresh_tokens t WHERE t.sid = login_sessions.sid AND t.expires_at >= ?2))",
            )
            .bind(new.user)
            .bind(text(new.now.plus(-KEEP_ENDED_SESSIONS_MS))),
        )
        .await?;
    let added = lease
        .execute(
            query(
                "INSERT INTO login_sessions (sid, user_id, created_at, last_used_at, user_agent) \
                 SELECT ?1, id, ?3, ?3, ?4 FROM users WHERE id = ?2 AND may_be_present \
                 AND (?5 IS NULL OR password_hash = ?5)",
            )
            .bind(new.sid.as_str())
            .bind(new.user)
            .bind(text(new.now))
            .bind(new.user_agent.as_deref().map(user_agent))
            .bind(new.password_hash.as_ref().map(|hash| &hash.0)),
        )
        .await?;
    if added.rows_affected() > 0 {
        lease
            .execute(
                query("INSERT INTO refresh_tokens (token_hash, sid, expires_at) VALUES (?1, ?2, ?3)")
                    .bind(&new.refresh_hash[..])
                    .bind(new.sid.as_str())
                    .bind(text(new.refresh_expires_at)),
            )
            .await?;
    }
    lease.commit().await?;
    Ok(added.rows_affected() > 0)
}

pub async fn of_user(lease: &mut SqliteLease, user: UserId, now: Millis) -> Result<Vec<Session>> {
    let rows: Vec<SessionRow> = lease
        .rows(
            query_as(
                "SELECT sid, created_at, last_used_at, user_agent FROM login_sessions s \
                 WHERE user_id = ?1 AND ended_at IS NULL \
                 AND EXISTS (SELECT 1 FROM refresh_tokens t WHERE t.sid = s.sid AND t.expires_at > ?2) \
                 ORDER BY created_at DESC, sid",
            )
            .bind(user)
            .bind(text(now)),
        )
        .await?;
    Ok(rows.into_iter().filter_map(SessionRow::into_session).collect())
}

pub async fn rotate(lease: &mut SqliteLease, request: &RotationRequest) -> Result<Rotation> {
    let sid = request.sid.as_str();
    begin(lease).await?;
    let alive: Option<(i64,)> = lease
        .row(
            query_as("SELECT 1 FROM login_sessions WHERE sid = ?1 AND user_id = ?2 AND ended_at IS NULL")
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
            query_as("SELECT used_at FROM refresh_tokens WHERE token_hash = ?1 AND sid = ?2")
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
                query("UPDATE refresh_tokens SET used_at = ?2 WHERE token_hash = ?1")
                    .bind(&request.presented[..])
                    .bind(text(request.now)),
            )
            .await?;
    }
    // A token that is gone from here was used long ago: that is all that need be known of it.
    lease
        .execute(
            query("DELETE FROM refresh_tokens WHERE sid = ?1 AND (used_at < ?2 OR expires_at < ?2)")
                .bind(sid)
                .bind(text(request.now.plus(-request.grace_ms))),
        )
        .await?;
    lease
        .execute(
            query("INSERT INTO refresh_tokens (token_hash, sid, expires_at) VALUES (?1, ?2, ?3)")
                .bind(&request.successor[..])
                .bind(sid)
                .bind(text(request.successor_expires_at)),
        )
        .await?;
    lease
        .execute(
            query("UPDATE login_sessions SET last_used_at = max(last_used_at, ?2) WHERE sid = ?1")
                .bind(sid)
                .bind(text(request.now)),
        )
        .await?;
    lease.commit().await?;
    Ok(Rotation::Rotated)
}

/// Ends one session of the user, or all, and names those that were alive.
pub async fn end(
    lease: &mut SqliteLease,
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
    lease: &mut SqliteLease,
    user: UserId,
    sid: Option<&SessionId>,
    now: Millis,
) -> Result<Vec<SessionId>> {
    let ended: Vec<(String,)> = lease
        .rows(
            query_as(
                "UPDATE login_sessions SET ended_at = ?3 \
                 WHERE user_id = ?1 AND (?2 IS NULL OR sid = ?2) AND ended_at IS NULL RETURNING sid",
            )
            .bind(user)
            .bind(sid.map(SessionId::as_str))
            .bind(text(now)),
        )
        .await?;
    let sids: Vec<String> = ended.into_iter().map(|(sid,)| sid).collect();
    lease
        .execute(
            query("DELETE FROM refresh_tokens WHERE sid IN (SELECT value FROM json_each(?1))")
                .bind(serde_json::json!(sids).to_string()),
        )
        .await?;
    Ok(sids.iter().filter_map(|sid| SessionId::parse(sid)).collect())
}

pub async fn has_ended(lease: &mut SqliteLease, user: UserId, sid: &SessionId) -> Result<bool> {
    let row: Option<(bool,)> = lease
        .row(
            query_as("SELECT ended_at IS NOT NULL FROM login_sessions WHERE sid = ?1 AND user_id = ?2")
                .bind(sid.as_str())
                .bind(user),
        )
        .await?;
    Ok(row.is_some_and(|(ended,)| ended))
}

pub async fn ended_since(lease: &mut SqliteLease, since: Millis) -> Result<Vec<(UserId, SessionId)>> {
    let rows: Vec<(UserId, String)> = lease
        .rows(
            query_as("SELECT user_id, sid FROM login_sessions WHERE ended_at >= ?1 ORDER BY ended_at")
                .bind(text(since)),
        )
        .await?;
    Ok(rows.into_iter().filter_map(|(user, sid)| Some((user, SessionId::parse(&sid)?))).collect())
}

pub async fn ended_of(
    lease: &mut SqliteLease,
    users: &[UserId],
    since: Millis,
) -> Result<Vec<(UserId, SessionId)>> {
    let rows: Vec<(UserId, String)> = lease
        .rows(
            query_as(
                "SELECT user_id, sid FROM login_sessions \
                 WHERE user_id IN (SELECT value FROM json_each(?1)) AND ended_at >= ?2",
            )
            .bind(json_ids(users))
            .bind(text(since)),
        )
        .await?;
    Ok(rows.into_iter().filter_map(|(user, sid)| Some((user, SessionId::parse(&sid)?))).collect())
}
