//! The ends of sessions, as Redis must be told of them, on SQLite.

use sqlx::{query, query_as};

use super::{SqliteLease, json_ids, text};
use crate::model::{Millis, SessionId, UserId};
use crate::store::rotation::{
    UNTOLD_ACCOUNTS, UNTOLD_EACH, UNTOLD_OF_ALL, UNTOLD_OF_EACH, UNTOLD_PAGE, untold_end, untold_page,
};
use crate::store::{Result, UntoldEnd, UntoldEnds};

/// Those whose end Redis was told of at `since` or later, and those of accounts that may be present of which it was not told.
pub async fn since(lease: &mut SqliteLease, since: Millis) -> Result<Vec<(UserId, SessionId)>> {
    let rows: Vec<(UserId, String)> = lease
        .rows(
            query_as(
                "SELECT user_id, sid FROM login_sessions WHERE end_told_at >= ?1 UNION ALL \
                 SELECT s.user_id, s.sid FROM login_sessions s JOIN users u ON u.id = s.user_id \
                 WHERE s.end_untold AND u.may_be_present",
            )
            .bind(text(since)),
        )
        .await?;
    Ok(rows.into_iter().filter_map(|(user, sid)| Some((user, SessionId::parse(&sid)?))).collect())
}

/// What limits the untold ends of an account `u` to the first `share`: the name of the one behind them. No name has a
/// character as large as the last one of Unicode.
macro_rules! behind_the_share {
    ($share:literal) => {
        concat!(
            "coalesce((SELECT sid FROM login_sessions WHERE user_id = u.id AND end_untold ORDER BY sid LIMIT 1 OFFSET ",
            $share,
            "), char(1114111))"
        )
    };
}

/// A page of those whose end Redis was not told of. Goes from account to account by the index, so that an account with many
/// costs no more than its share of the page.
pub async fn untold(lease: &mut SqliteLease, after: UserId) -> Result<UntoldEnds> {
    let rows: Vec<(UserId, String, bool, i64)> = lease
        .rows(
            query_as(concat!(
                "WITH RECURSIVE owner (user_id, number) AS ( \
                     SELECT min(user_id), 1 FROM login_sessions WHERE end_untold AND user_id > ?1 \
                     UNION ALL \
                     SELECT (SELECT min(s.user_id) FROM login_sessions s WHERE s.end_untold AND s.user_id > o.user_id), \
                         o.number + 1 \
                     FROM owner o WHERE o.user_id IS NOT NULL AND o.number < ?2 \
                 ), owners AS MATERIALIZED (SELECT user_id FROM owner WHERE user_id IS NOT NULL) \
                 SELECT u.id, s.sid, NOT u.may_be_present, (SELECT count(*) FROM owners) \
                 FROM owners o JOIN users u ON u.id = o.user_id \
                 JOIN login_sessions s ON s.user_id = u.id AND s.end_untold AND s.sid < ",
                behind_the_share!("(SELECT max(?3, ?4 / count(*)) FROM owners)"),
                " ORDER BY u.id, s.sid LIMIT ?4"
            ))
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
pub async fn untold_of(lease: &mut SqliteLease, users: &[UserId]) -> Result<Vec<UntoldEnd>> {
    let rows: Vec<(UserId, String, bool)> = lease
        .rows(
            query_as(concat!(
                "SELECT u.id, s.sid, NOT u.may_be_present FROM json_each(?1) j JOIN users u ON u.id = j.value \
                 JOIN login_sessions s ON s.user_id = u.id AND s.end_untold AND s.sid < ",
                behind_the_share!("?2"),
                " ORDER BY row_number() OVER (PARTITION BY u.id ORDER BY s.sid) LIMIT ?3"
            ))
            .bind(json_ids(users))
            .bind(UNTOLD_OF_EACH)
            .bind(UNTOLD_OF_ALL),
        )
        .await?;
    Ok(rows.into_iter().map(untold_end).collect())
}

/// Notes that Redis was told.
pub async fn told(lease: &mut SqliteLease, told: &[(String, Millis)]) -> Result<u64> {
    let told: Vec<(&str, String)> = told.iter().map(|(sid, at)| (sid.as_str(), text(*at))).collect();
    let statement = "UPDATE login_sessions SET end_untold = 0, end_told_at = t.at \
                     FROM (SELECT value ->> 0 AS sid, value ->> 1 AS at FROM json_each(?1)) AS t \
                     WHERE login_sessions.sid = t.sid AND end_untold AND ended_at IS NOT NULL";
    let done = lease.execute(query(statement).bind(serde_json::json!(told).to_string())).await?;
    Ok(done.rows_affected())
}
