//! The ends of sessions, as Redis must be told of them, on PostgreSQL.

use sqlx::{query, query_as};

use super::PgLease;
use crate::model::{Millis, SessionId, UserId};
use crate::store::rotation::{
    UNTOLD_ACCOUNTS, UNTOLD_EACH, UNTOLD_OF_ALL, UNTOLD_OF_EACH, UNTOLD_PAGE, untold_end, untold_page,
};
use crate::store::{Result, UntoldEnd, UntoldEnds};

/// Those whose end Redis was told of at `since` or later, and those of accounts that may be present of which it was not told.
pub async fn since(lease: &mut PgLease, since: Millis) -> Result<Vec<(UserId, SessionId)>> {
    let rows: Vec<(UserId, String)> = lease
        .rows(
            query_as(
                "SELECT user_id, sid FROM login_sessions WHERE end_told_at >= $1 UNION ALL \
                 SELECT s.user_id, s.sid FROM login_sessions s JOIN users u ON u.id = s.user_id \
                 WHERE s.end_untold AND u.may_be_present",
            )
            .bind(since.to_utc()),
        )
        .await?;
    Ok(rows.into_iter().filter_map(|(user, sid)| Some((user, SessionId::parse(&sid)?))).collect())
}

/// A page of those whose end Redis was not told of. Goes from account to account by the index, so that an account with many
/// costs no more than its share of the page.
pub async fn untold(lease: &mut PgLease, after: UserId) -> Result<UntoldEnds> {
    let rows: Vec<(UserId, String, bool, i64)> = lease
        .rows(
            query_as(
                "WITH RECURSIVE owner (user_id, number) AS ( \
                     SELECT min(user_id), 1::bigint FROM login_sessions WHERE end_untold AND user_id > $1 \
                     UNION ALL \
                     SELECT (SELECT min(s.user_id) FROM login_sessions s WHERE s.end_untold AND s.user_id > o.user_id), \
                         o.number + 1 \
                     FROM owner o WHERE o.user_id IS NOT NULL AND o.number < $2 \
                 ) \
                 SELECT o.user_id, s.sid, NOT u.may_be_present, (SELECT count(user_id) FROM owner) \
                 FROM owner o JOIN users u ON u.id = o.user_id \
                 CROSS JOIN LATERAL (SELECT sid FROM login_sessions \
                     WHERE user_id = o.user_id AND end_untold ORDER BY sid \
                     LIMIT (SELECT greatest($3, $4 / greatest(count(user_id), 1)) FROM owner)) AS s \
                 ORDER BY o.user_id, s.sid LIMIT $4",
            )
            .bind(after)
            .bind(UNTOLD_ACCOUNTS)
            .bind(UNTOLD_EACH)
            .bind(UNTOLD_PAGE),
        )
        .await?;
    let accounts = rows.first().map_or(0, |(.., accounts)| *accounts);
    Ok(untold_page(rows.into_iter().map(|(user, sid, blocked, _)| (user, sid, blocked)).collect(), accounts))
}

/// Those of these accounts, a bounded number of each and of all; first one of each, then the next of each.
pub async fn untold_of(lease: &mut PgLease, users: &[UserId]) -> Result<Vec<UntoldEnd>> {
    let rows: Vec<(UserId, String, bool)> = lease
        .rows(
            query_as(
                "SELECT u.id, s.sid, NOT u.may_be_present FROM users u CROSS JOIN LATERAL ( \
                     SELECT sid, row_number() OVER (ORDER BY sid) AS place FROM login_sessions \
                     WHERE user_id = u.id AND end_untold ORDER BY sid LIMIT $2) AS s \
                 WHERE u.id = ANY ($1) ORDER BY s.place LIMIT $3",
            )
            .bind(users)
            .bind(UNTOLD_OF_EACH)
            .bind(UNTOLD_OF_ALL),
        )
        .await?;
    Ok(rows.into_iter().map(untold_end).collect())
}

/// Notes that Redis was told. Waits for no lock: what another transaction holds is told again.
pub async fn told(lease: &mut PgLease, told: &[(String, Millis)]) -> Result<u64> {
    let (sids, instants): (Vec<&str>, Vec<_>) =
        told.iter().map(|(sid, at)| (sid.as_str(), at.to_utc())).unzip();
    let statement = "WITH held AS ( \
             SELECT sid FROM login_sessions WHERE sid = ANY ($1) AND end_untold AND ended_at IS NOT NULL \
             ORDER BY sid FOR UPDATE SKIP LOCKED \
         ) \
         UPDATE login_sessions s SET end_untold = false, end_told_at = t.at \
         FROM held JOIN unnest($1, $2) AS t (sid, at) ON t.sid = held.sid WHERE s.sid = held.sid";
    let done = lease.execute(query(statement).bind(&sids).bind(&instants)).await?;
    Ok(done.rows_affected())
}
