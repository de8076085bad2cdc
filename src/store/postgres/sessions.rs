//! Login sessions and refresh tokens on PostgreSQL.
//!
//! A transaction that changes a session locks its account first, where that matters too, then the session's row, its tokens
//! last; several sessions in the order of their names.

use chrono::{DateTime, Utc};
use sqlx::{query, query_as};

use super::{PgLease, begin, trail};
use crate::model::{Millis, Page, SessionId, UserId};
use crate::store::rotation::{
    ENDED_AT_ONCE, FORGOTTEN_AT_ONCE, KEEP_ENDED_SESSIONS_MS, Presented, may_rotate,
};
use crate::store::rows::SessionRow;
use crate::store::texts::user_agent;
use crate::store::{
    Begun, Ended, NewSession, Result, Rotation, RotationRequest, Session, SessionEnd, SessionList,
};

/// Adds the session where the account may be present and still is what its password was checked against. The account's row
/// is locked against a block and a change of password, which then end this session too, and against another login, so that
/// two at once do not both find room for one.
pub async fn create(lease: &mut PgLease, new: &NewSession) -> Result<Option<Begun>> {
    begin(lease).await?;
    let added = lease
        .execute(
            query(
                "INSERT INTO login_sessions (sid, user_id, created_at, last_used_at, user_agent) \
                 SELECT $1, id, $3, $3, $4 FROM users \
                 WHERE id = $2 AND may_be_present AND ($5::text IS NULL OR password_hash = $5) FOR NO KEY UPDATE",
            )
            .bind(new.sid.as_str())
            .bind(new.user)
            .bind(new.now.to_utc())
            .bind(new.user_agent.as_deref().map(user_agent))
            .bind(new.password_hash.as_ref().map(|hash| &hash.0)),
        )
        .await?;
    if added.rows_affected() == 0 {
        lease.commit().await?;
        return Ok(None);
    }
    lease
        .execute(
            query("INSERT INTO refresh_tokens (token_hash, sid, expires_at) VALUES ($1, $2, $3)")
                .bind(&new.refresh_hash[..])
                .bind(new.sid.as_str())
                .bind(new.refresh_expires_at.to_utc()),
        )
        .await?;
    let most = i64::from(new.most_alive.max(1));
    let mut begun = Begun::default();
    if forget_old_ones(lease, new, most).await? > most {
        begun.displaced = make_room(lease, new, most).await?;
    }
    lease.commit().await?;
    Ok(Some(begun))
}

/// Deletes sessions of the account that ended or ran out long ago, a bounded number; returns how many are not ended, counted
/// no further than one above `most`.
async fn forget_old_ones(lease: &mut PgLease, new: &NewSession, most: i64) -> Result<i64> {
    // Skips rows that another transaction holds: the next login comes to them. Never one of whose end Redis is not told.
    let statement = "WITH ended AS ( \
             SELECT sid FROM login_sessions WHERE user_id = $1 AND ended_at < $2 \
             AND NOT end_untold AND (end_told_at IS NULL OR end_told_at < $2) \
             ORDER BY ended_at LIMIT $3 FOR UPDATE SKIP LOCKED \
         ), run_out AS ( \
             SELECT sid FROM login_sessions s WHERE user_id = $1 AND ended_at IS NULL AND created_at < $2 \
             AND NOT EXISTS (SELECT FROM refresh_tokens t WHERE t.sid = s.sid AND t.expires_at >= $2) \
             ORDER BY created_at LIMIT $3 FOR UPDATE SKIP LOCKED \
         ), forgotten AS ( \
             DELETE FROM login_sessions WHERE sid IN (SELECT sid FROM ended UNION ALL SELECT sid FROM run_out) \
         ) \
         SELECT count(*) FROM (SELECT FROM login_sessions WHERE user_id = $1 AND ended_at IS NULL LIMIT $4) AS open";
    let row: Option<(i64,)> = lease
        .row(
            query_as(statement)
                .bind(new.user)
                .bind(new.now.plus(-KEEP_ENDED_SESSIONS_MS).to_utc())
                .bind(FORGOTTEN_AT_ONCE)
                .bind(most + 1),
        )
        .await?;
    Ok(row.map_or(0, |(open,)| open))
}

/// Ends what the account has too much of: those that have run out first, then the oldest.
async fn make_room(lease: &mut PgLease, new: &NewSession, most: i64) -> Result<Vec<SessionId>> {
    let surplus: Vec<(String,)> = lease
        .rows(
            query_as(
                "WITH open AS MATERIALIZED ( \
                     SELECT sid, created_at, EXISTS ( \
                         SELECT FROM refresh_tokens t WHERE t.sid = s.sid AND t.expires_at > $3) AS alive \
                     FROM login_sessions s WHERE user_id = $1 AND ended_at IS NULL ORDER BY created_at, sid LIMIT $4 + $5 \
                 ), surplus AS MATERIALIZED ( \
                     SELECT sid FROM open WHERE sid <> $2 ORDER BY alive, created_at, sid \
                     LIMIT greatest((SELECT count(*) FROM open) - $4, 0) \
                 ) \
                 SELECT sid FROM login_sessions WHERE sid IN (SELECT sid FROM surplus) AND ended_at IS NULL \
                 ORDER BY sid FOR UPDATE",
            )
            .bind(new.user)
            .bind(new.sid.as_str())
            .bind(new.now.to_utc())
            .bind(most)
            .bind(ENDED_AT_ONCE),
        )
        .await?;
    end_rows(lease, surplus, new.now).await
}

/// A session of the user that is alive.
macro_rules! alive_of_user {
    () => {
        " FROM login_sessions s WHERE user_id = $1 AND ended_at IS NULL \
         AND EXISTS (SELECT FROM refresh_tokens t WHERE t.sid = s.sid AND t.expires_at > $2) "
    };
}

pub async fn of_user(lease: &mut PgLease, user: UserId, now: Millis, page: Page) -> Result<SessionList> {
    let count = query_as(concat!("SELECT count(*)", alive_of_user!()));
    let row: Option<(i64,)> = lease.row(count.bind(user).bind(now.to_utc())).await?;
    let total = row.map_or(0, |(total,)| total);
    let mut sessions: Vec<Session> = Vec::new();
    if page.offset() < total {
        let select = query_as(concat!(
            "SELECT sid, created_at, last_used_at, user_agent",
            alive_of_user!(),
            "ORDER BY created_at DESC, sid DESC LIMIT $3 OFFSET $4"
        ));
        let rows: Vec<SessionRow> = lease
            .rows(select.bind(user).bind(now.to_utc()).bind(i64::from(page.size)).bind(page.offset()))
            .await?;
        sessions = rows.into_iter().filter_map(SessionRow::into_session).collect();
    }
    Ok(SessionList { sessions, total })
}

pub async fn rotate(lease: &mut PgLease, request: &RotationRequest) -> Result<Rotation> {
    let now = request.now.to_utc();
    let sid = request.sid.as_str();
    begin(lease).await?;
    let alive: Option<(DateTime<Utc>,)> = lease
        .row(
            query_as(
                "SELECT created_at FROM login_sessions WHERE sid = $1 AND user_id = $2 AND ended_at IS NULL FOR UPDATE",
            )
            .bind(sid)
            .bind(request.user),
        )
        .await?;
    let Some((created_at,)) = alive else {
        lease.commit().await?;
        return Ok(Rotation::Ended);
    };
    if request.begun_since.is_some_and(|since| Millis::from_utc(created_at) < since) {
        end_rows(lease, vec![(sid.to_owned(),)], request.now).await?;
        lease.commit().await?;
        return Ok(Rotation::TooOld);
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
        end_rows(lease, vec![(sid.to_owned(),)], request.now).await?;
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

/// Ends one session of the user, or all that are alive, and records it where an administrator does it.
pub async fn end(lease: &mut PgLease, end: &SessionEnd<'_>) -> Result<Ended> {
    begin(lease).await?;
    let ended = end_in_transaction(lease, end).await;
    lease.finish(ended).await
}

async fn end_in_transaction(lease: &mut PgLease, end: &SessionEnd<'_>) -> Result<Ended> {
    // Locked in one order, so that two that end sessions of a user do not wait in a circle.
    let alive: Vec<(String,)> = lease
        .rows(
            query_as(
                "SELECT sid FROM login_sessions WHERE user_id = $1 AND ($2::text IS NULL OR sid = $2) \
                 AND ended_at IS NULL ORDER BY sid LIMIT $3 FOR UPDATE",
            )
            .bind(end.user)
            .bind(end.sid.map(SessionId::as_str))
            .bind(ENDED_AT_ONCE),
        )
        .await?;
    let more = alive.len() as u64 >= ENDED_AT_ONCE.unsigned_abs();
    let sids = end_rows(lease, alive, end.now).await?;
    if let Some((by, username)) = end.by
        && (end.sid.is_none() || !sids.is_empty())
    {
        trail::add(lease, by, &end.deed(username, &sids)).await?;
    }
    Ok(Ended { sids, more })
}

/// Ends sessions whose rows this transaction has locked.
async fn end_rows(lease: &mut PgLease, rows: Vec<(String,)>, now: Millis) -> Result<Vec<SessionId>> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let sids: Vec<String> = rows.into_iter().map(|(sid,)| sid).collect();
    lease
        .execute(
            query("UPDATE login_sessions SET ended_at = $2, end_untold = true WHERE sid = ANY ($1)")
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
