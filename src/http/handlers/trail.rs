//! The trail of administrators: who did what to whom, and when.

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use crate::http::AppState;
use crate::http::answer::Pagination;
use crate::http::extract::AdminReader;
use crate::http::problem::Problem;
use crate::http::query::TrailParameters;
use crate::model::{Change, Millis, TrailEntry, UserId};

/// `GET admin/audit/`.
#[derive(Debug, Serialize)]
pub struct TrailAnswer {
    entries: Vec<EntryJson>,
    pagination: Pagination,
}

/// One entry: the names are those of its time, and neither account need exist any more.
#[derive(Debug, Serialize)]
struct EntryJson {
    id: i64,
    at: Millis,
    admin: PersonJson,
    address: String,
    action: &'static str,
    user: PersonJson,
    changes: Vec<Change>,
}

#[derive(Debug, Serialize)]
struct PersonJson {
    id: UserId,
    username: String,
}

impl From<TrailEntry> for EntryJson {
    fn from(entry: TrailEntry) -> Self {
        let TrailEntry { id, at, actor, deed } = entry;
        Self {
            id,
            at,
            admin: PersonJson { id: actor.user, username: actor.username },
            address: actor.address,
            action: deed.action.as_str(),
            user: PersonJson { id: deed.user, username: deed.username },
            changes: deed.changes,
        }
    }
}

/// A page of the trail, newest first.
pub async fn trail(
    State(state): State<AppState>,
    _: AdminReader,
    TrailParameters { filter, page }: TrailParameters,
) -> Result<Json<TrailAnswer>, Problem> {
    let trail = state.identity.trail(&filter, page).await?;
    let entries = trail.entries.into_iter().map(EntryJson::from).collect();
    Ok(Json(TrailAnswer { entries, pagination: Pagination::new(page, trail.total) }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::{Action, Actor, Deed};

    #[test]
    fn an_entry_says_who_did_what_to_whom() {
        let entry = TrailEntry {
            id: 3,
            at: Millis(1_768_473_000_120),
            actor: Actor { user: 1, username: "admin".into(), address: "192.0.2.1".into() },
            deed: Deed {
                action: Action::UpdateUser,
                user: 7,
                username: "ada".into(),
                changes: vec![Change::new("status", Some("active"), Some("banned"))],
            },
        };
        let expected = json!({
            "id": 3, "at": "2026-01-15T10:30:00.120Z", "admin": {"id": 1, "username": "admin"},
            "address": "192.0.2.1", "action": "update_user", "user": {"id": 7, "username": "ada"},
            "changes": [{"field": "status", "from": "active", "to": "banned"}],
        });
        assert_eq!(serde_json::to_value(EntryJson::from(entry)).unwrap(), expected);
    }
}
