//! Lists of users: one answer for all who ask the same at the same time, made once, with a mark by which a client that has it
//! already is told so.
//!
//! The statement that reads the page reads the accounts of those who ask as well: whoever has lost a role since gets no
//! answer of it, and no request asks SQL twice.
//!
//! A search or a filter reads every account, and each user can ask for another one every time. So a user has one of these
//! under way and a few that wait for it; more are 429. A list that several users share counts once, for one of them. The
//! store bounds how many run at once in all.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use sha2::{Digest, Sha256};

use super::answer::{ListName, UserPage, View};
use super::cursor::Cursor;
use super::per_user::{PerUser, Place as UserPlace, TooMany};
use super::problem::Problem;
use crate::model::{Account, OnlineCursor, Place, Role, UserId};
use crate::presence::{ListQuery, Listing, PresenceError, PresenceService, Reading, Shared, Unanswered};

/// A client asks each time, and is told where nothing has changed; nobody between keeps anything.
static CACHE: HeaderValue = HeaderValue::from_static("private, no-cache");

/// How long a list may take before those who ask for it meanwhile begin another: many times what one takes that counts
/// nothing. With it a database that hangs is said to be away in as good time as ever.
const HEAD_START: Duration = Duration::from_millis(100);

/// How many searches and filtered lists of one user run at once.
const SCANS_AT_ONCE: usize = 1;
/// How many more of them wait for that: a search field that asks with every letter typed has some on its way.
const SCANS_WAITING: usize = 4;
/// How long they wait: with it a database that hangs is said to be away within the contract's bound.
const SCAN_WAITS: Duration = Duration::from_millis(300);

/// What is asked. Who asks is no part of it, but where the answer hangs on that beyond what is shown of each user.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Question {
    /// All users who match.
    Users(ListQuery, Place<UserId>),
    /// Who is online.
    Online(Place<OnlineCursor>),
}

impl Question {
    /// Whether the answer reads every account.
    const fn is_scan(&self) -> bool {
        match self {
            Self::Users(query, _) => query.is_narrowed(),
            Self::Online(_) => false,
        }
    }
}

/// Somebody who asks.
#[derive(Debug, Clone, Copy)]
struct Asker {
    user: UserId,
    /// Whether this is for administrators alone.
    administers: bool,
}

/// A list as it goes out. Clones share the bytes.
#[derive(Debug, Clone)]
pub struct ListAnswer {
    body: Bytes,
    tag: HeaderValue,
}

/// Answers lists; clones share one inside.
#[derive(Clone)]
pub struct Lists(Shared<Question, Asker, Result<ListAnswer, Problem>>);

impl Lists {
    /// Lists as `presence` has them.
    pub fn new(presence: PresenceService) -> Self {
        let inner = Arc::new((presence, PerUser::new(SCANS_AT_ONCE, SCANS_WAITING)));
        Self(Shared::new(HEAD_START, move |question, askers| {
            let inner = Arc::clone(&inner);
            async move {
                let (presence, scans) = &*inner;
                // Held until the answer is there, or its work is cancelled because every client has hung up.
                let _scan = match place(scans, &question, &askers).await {
                    Ok(place) => place,
                    Err(problem) => return askers.iter().map(|_| Err(problem.clone())).collect(),
                };
                answer(presence, &question, &askers).await
            }
            .boxed()
        }))
    }

    /// A list as `user` may see it.
    ///
    /// # Errors
    /// 401 where there is no such account any more, 403 where it may not see this, 429 where the user asks for too many
    /// searches at once, 503.
    pub async fn for_user(&self, question: Question, user: UserId) -> Result<ListAnswer, Problem> {
        self.ask(question, Asker { user, administers: false }).await
    }

    /// A list for an administrator: as [`Self::for_user`], and 403 for everybody else.
    pub async fn for_admin(&self, question: Question, user: UserId) -> Result<ListAnswer, Problem> {
        self.ask(question, Asker { user, administers: true }).await
    }

    async fn ask(&self, question: Question, asker: Asker) -> Result<ListAnswer, Problem> {
        self.0.ask(question, asker).await.unwrap_or_else(|unanswered| match unanswered {
            Unanswered::TooManyWait => Err(PresenceError::Overloaded.into()),
            Unanswered::Panicked => Err(Problem::internal()),
        })
    }
}

/// Takes a permit for a scan from one of the users who share it: from one who has a free permit where possible, so that a
/// user does not wait for the searches of another. `None` where the question is no scan.
async fn place(scans: &PerUser, question: &Question, askers: &[Asker]) -> Result<Option<UserPlace>, Problem> {
    if !question.is_scan() {
        return Ok(None);
    }
    if let Some(place) = askers.iter().find_map(|asker| scans.try_enter(asker.user)) {
        return Ok(Some(place));
    }
    for asker in askers {
        match tokio::time::timeout(SCAN_WAITS, scans.enter(asker.user)).await {
            Ok(Ok(place)) => return Ok(Some(place)),
            Ok(Err(TooMany)) => {}
            Err(_) => return Err(PresenceError::Overloaded.into()),
        }
    }
    Err(Problem::too_many_at_once())
}

async fn answer(
    presence: &PresenceService,
    question: &Question,
    askers: &[Asker],
) -> Vec<Result<ListAnswer, Problem>> {
    let mut ids: Vec<UserId> = askers.iter().map(|asker| asker.user).collect();
    ids.sort_unstable();
    ids.dedup();
    match question {
        Question::Users(query, place) => {
            let reading = presence.list(query, *place, &ids).await;
            each(reading, askers, query.status.is_some(), |reading, view| {
                render(&UserPage::new(ListName::Results, reading, place, view))
            })
        }
        Question::Online(place) => {
            let reading = presence.online(*place, &ids).await;
            each(reading, askers, false, |reading, view| {
                render(&UserPage::new(ListName::OnlineUsers, reading, place, view))
            })
        }
    }
}

/// To each asker what is his to see; each view is made once, if anybody gets it.
fn each<C: Cursor>(
    reading: Result<Reading<Listing<C>>, PresenceError>,
    askers: &[Asker],
    by_status: bool,
    make: impl Fn(&Reading<Listing<C>>, View) -> Result<ListAnswer, Problem>,
) -> Vec<Result<ListAnswer, Problem>> {
    let reading = match reading {
        Ok(reading) => reading,
        Err(error) => {
            let problem = Problem::from(error);
            return askers.iter().map(|_| Err(problem.clone())).collect();
        }
    };
    let accounts: HashMap<UserId, &Account> =
        reading.value.askers.iter().map(|account| (account.id, account)).collect();
    let (mut public, mut whole) = (None, None);
    let answers = askers.iter().map(|asker| {
        let account = accounts.get(&asker.user).ok_or_else(Problem::account_gone)?;
        let view = view(account, *asker, by_status)?;
        let answer = if view == View::Whole { &mut whole } else { &mut public };
        answer.get_or_insert_with(|| make(&reading, view)).clone()
    });
    answers.collect()
}

fn view(account: &Account, asker: Asker, by_status: bool) -> Result<View, Problem> {
    let is_admin = account.role == Role::Admin;
    if asker.administers && !(is_admin && account.may_be_present()) {
        return Err(Problem::admins_only());
    }
    // To filter by what one may not see would show it.
    if by_status && !is_admin {
        return Err(Problem::admins_only_parameter("status"));
    }
    Ok(if is_admin { View::Whole } else { View::Public })
}

fn render(page: &UserPage<'_>) -> Result<ListAnswer, Problem> {
    let body = page.to_bytes().map_err(|error| {
        tracing::error!(%error, "a list could not be written");
        Problem::internal()
    })?;
    let digest = Sha256::digest(&body);
    let half: [u8; 16] = digest[..16].try_into().unwrap_or_default();
    let tag = format!("\"{:032x}\"", u128::from_be_bytes(half));
    let tag = HeaderValue::try_from(tag).map_err(|_| Problem::internal())?;
    Ok(ListAnswer { body: body.into(), tag })
}

impl ListAnswer {
    /// The answer to a request with these headers: 304 and no body where they say that the client has it.
    pub fn respond(self, request: &HeaderMap) -> Response {
        let has_it = request.get_all(header::IF_NONE_MATCH).iter().any(|known| names(known, &self.tag));
        let mut response = if has_it {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            let json = HeaderValue::from_static("application/json");
            ([(header::CONTENT_TYPE, json)], Body::from(self.body)).into_response()
        };
        let headers = response.headers_mut();
        headers.insert(header::ETAG, self.tag);
        headers.insert(header::CACHE_CONTROL, CACHE.clone());
        headers.insert(header::VARY, HeaderValue::from_static("authorization"));
        response
    }
}

/// Whether a field of `If-None-Match` names the tag (RFC 9110, section 13.1.2; a weak one counts as well there).
fn names(known: &HeaderValue, tag: &HeaderValue) -> bool {
    let Ok(known) = known.to_str() else { return false };
    let mut tags = known.split(',').map(str::trim);
    tags.any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known).as_bytes() == tag.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::testing::parts;

    async fn ask(known: &[&str]) -> (u16, HeaderMap, usize) {
        let answer = ListAnswer { body: "[]".into(), tag: HeaderValue::from_static("\"5e\"") };
        let mut request = HeaderMap::new();
        for known in known {
            request.append(header::IF_NONE_MATCH, known.parse().unwrap());
        }
        let response = answer.respond(&request);
        let length = axum::body::HttpBody::size_hint(response.body()).exact().unwrap();
        let (status, headers, _) = parts(response).await;
        (status, headers, usize::try_from(length).unwrap())
    }

    #[tokio::test]
    async fn who_has_it_already_is_told_so_without_a_body() {
        for known in [&["\"5e\""][..], &["*"], &["W/\"5e\""], &["\"a\", \"5e\""], &["\"a\"", "\"5e\""]] {
            let (status, headers, length) = ask(known).await;
            assert_eq!((status, length), (304, 0), "{known:?}");
            assert_eq!(headers["etag"], "\"5e\"");
            assert_eq!(
                (&headers["cache-control"], &headers["vary"]),
                (&CACHE, &"authorization".parse().unwrap())
            );
        }
        for known in [&[][..], &["\"a\""], &["5e"], &["\"5E\""], &["\"5e"], &[""]] {
            let (status, headers, length) = ask(known).await;
            assert_eq!((status, length), (200, 2), "{known:?}");
            assert_eq!((&headers["etag"], &headers["cache-control"]), (&"\"5e\"".parse().unwrap(), &CACHE));
            assert_eq!(headers["content-type"], "application/json");
        }
    }
}
