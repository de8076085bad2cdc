//! Query strings: pages and filters, taken as they are or refused by name; nothing is silently clamped, and nothing is
//! silently ignored: a filter whose name is misspelt would show everybody.
//!
//! A path that takes parameters reads them by an extractor of this module. [`refuse_any`] is the layer around all others.

use std::collections::BTreeSet;
use std::str::FromStr;

use axum::extract::{FromRequestParts, Request, State};
use axum::http::Method;
use axum::http::request::Parts;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::cursor::Cursor;
use super::problem::Problem;
use crate::identity::{FieldErrors, TrailFilter};
use crate::model::account::UnknownWord;
use crate::model::page::MAX_PER_PAGE;
use crate::model::{AccountStatus, OnlineCursor, OnlineStatus, Page, Place, UserId};

/// Items a page where the client does not say.
const DEFAULT_PER_PAGE: u32 = 50;
/// The longest `search`, characters: no username or e-mail address is longer.
const MAX_SEARCH: usize = 254;

/// How many unknown parameters are named, and how much of each name, characters.
const NAMED: (usize, usize) = (8, 64);

/// Refuses every parameter.
///
/// # Errors
/// 400 that names them.
pub fn none(query: Option<&str>) -> Result<(), Problem> {
    match query {
        None | Some("") => Ok(()),
        query => Parameters::parse(query).done(),
    }
}

/// The layer around every path: refuses parameters where none are taken. `own` says that `GET` on this path reads its own.
pub async fn refuse_any(State(own): State<bool>, request: Request, next: Next) -> Response {
    let reads_its_own = own && matches!(*request.method(), Method::GET | Method::HEAD);
    match none(request.uri().query().filter(|_| !reads_its_own)) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// `page` or `cursor`, and `per_page`, in the list of who is online.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnlineParameters(pub Place<OnlineCursor>);

/// A part of the list of all users, and what that is narrowed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListParameters {
    /// `page` or `cursor`, and `per_page`.
    pub place: Place<UserId>,
    /// `search`, unless empty.
    pub search: Option<String>,
    /// `status`, unless empty.
    pub status: Option<AccountStatus>,
    /// `online_status`, unless empty.
    pub online_status: Option<OnlineStatus>,
}

/// `page` and `per_page` of a list that takes nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageParameters(pub Page);

/// A page of the trail and what it is narrowed to: `user`, `admin` (ids) and `action`.
#[derive(Debug, Clone, Copy)]
pub struct TrailParameters {
    /// `page` and `per_page`.
    pub page: Page,
    /// The rest.
    pub filter: TrailFilter,
}

impl<S: Send + Sync> FromRequestParts<S> for PageParameters {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut parameters = Parameters::parse(parts.uri.query());
        let page = parameters.page();
        parameters.done()?;
        Ok(Self(page))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for TrailParameters {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut parameters = Parameters::parse(parts.uri.query());
        let page = parameters.page();
        let filter = TrailFilter {
            user: parameters.id("user"),
            actor: parameters.id("admin"),
            action: parameters.word("action"),
        };
        parameters.done()?;
        Ok(Self { page, filter })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for OnlineParameters {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut parameters = Parameters::parse(parts.uri.query());
        let place = parameters.place();
        parameters.done()?;
        Ok(Self(place))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for ListParameters {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut parameters = Parameters::parse(parts.uri.query());
        let list = Self {
            place: parameters.place(),
            search: parameters.search(),
            status: parameters.word("status"),
            online_status: parameters.word("online_status"),
        };
        parameters.done()?;
        Ok(list)
    }
}

/// The parameters of a query string, and what is wrong with those looked at so far.
struct Parameters {
    pairs: Vec<(String, String)>,
    /// The names that were looked at: all that this request takes.
    known: Vec<&'static str>,
    errors: FieldErrors,
}

impl Parameters {
    fn parse(query: Option<&str>) -> Self {
        let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect();
        Self { pairs, known: Vec::new(), errors: FieldErrors::default() }
    }

    fn take(&mut self, name: &'static str) -> Option<String> {
        self.known.push(name);
        let mut values = self.pairs.iter().filter(|(key, _)| key == name).map(|(_, value)| value.clone());
        let (value, another) = (values.next(), values.next());
        if another.is_some() {
            self.errors.add(name, "must be given once");
        }
        value
    }

    fn page(&mut self) -> Page {
        Page {
            number: self.number("page", 1, u32::MAX).unwrap_or(1),
            size: self.number("per_page", DEFAULT_PER_PAGE, MAX_PER_PAGE).unwrap_or(DEFAULT_PER_PAGE),
        }
    }

    fn place<C: Cursor>(&mut self) -> Place<C> {
        let has_page = self.pairs.iter().any(|(key, _)| key == "page");
        let page = self.page();
        // Empty is what a client sends who begins.
        let Some(text) = self.take("cursor").filter(|text| !text.is_empty()) else { return page.into() };
        if has_page {
            self.errors.add("cursor", "cannot be given together with 'page': leave one of the two out");
            return page.into();
        }
        let Some(cursor) = C::read(&text) else {
            let wrong = "must be the 'next_cursor' of an earlier answer of this list: begin without one";
            self.errors.add("cursor", wrong);
            return page.into();
        };
        Place::After(cursor, page.size)
    }

    fn number(&mut self, name: &'static str, default: u32, max: u32) -> Option<u32> {
        let Some(text) = self.take(name) else { return Some(default) };
        // `parse` would take a sign.
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = text.parse::<u32>().ok().filter(|number| digits && (1..=max).contains(number));
        if number.is_none() {
            self.errors.add(name, format!("must be a whole number from 1 to {max}"));
        }
        number
    }

    /// An account's id. Empty is what a form sends for 'all'.
    fn id(&mut self, name: &'static str) -> Option<UserId> {
        let text = self.take(name).filter(|text| !text.is_empty())?;
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        let id = text.parse().ok().filter(|id| digits && *id > 0);
        if id.is_none() {
            self.errors.add(name, "must be the id of an account: a positive whole number");
        }
        id
    }

    fn search(&mut self) -> Option<String> {
        let search = self.take("search").filter(|search| !search.is_empty())?;
        if search.chars().count() > MAX_SEARCH {
            self.errors.add("search", format!("must be at most {MAX_SEARCH} characters long"));
        }
        if search.chars().any(char::is_control) {
            self.errors.add("search", "must not contain control characters");
        }
        Some(search)
    }

    /// A word of a closed list. Empty is what a form sends for 'all'.
    fn word<T: FromStr<Err = UnknownWord>>(&mut self, name: &'static str) -> Option<T> {
        let word = self.take(name).filter(|word| !word.is_empty())?;
        word.parse().map_err(|unknown: UnknownWord| self.errors.add(name, unknown.to_string())).ok()
    }

    /// All that this request takes has been looked at.
    fn done(mut self) -> Result<(), Problem> {
        let names: BTreeSet<&str> = self.pairs.iter().map(|(name, _)| name.as_str()).collect();
        let unknown = names.into_iter().filter(|name| !self.known.contains(name));
        let takes = if self.known.is_empty() { "none".to_owned() } else { self.known.join(", ") };
        for name in unknown.take(NAMED.0) {
            let shown: String = name.chars().take(NAMED.1).collect();
            self.errors.add(shown, format!("is no parameter of this request, which takes {takes}"));
        }
        if self.errors.is_empty() { Ok(()) } else { Err(Problem::bad_request(self.errors)) }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::Request;
    use axum::response::IntoResponse;
    use serde_json::json;

    use super::super::testing;
    use super::*;
    use crate::model::Millis;

    async fn parse(query: &str) -> Result<ListParameters, Problem> {
        let (mut parts, ()) = Request::get(format!("/?{query}")).body(()).unwrap().into_parts();
        ListParameters::from_request_parts(&mut parts, &()).await
    }

    #[tokio::test]
    async fn what_is_not_asked_for_has_its_default() {
        let plain = ListParameters {
            place: Page { number: 1, size: 50 }.into(),
            search: None,
            status: None,
            online_status: None,
        };
        for query in ["", "&&", "search=&status=&online_status=", "cursor=", "cursor=&page=1"] {
            assert_eq!(parse(query).await, Ok(plain.clone()), "{query}");
        }
    }

    #[tokio::test]
    async fn everything_is_read() {
        let query = "page=3&per_page=1000&search=%25a_%2B+b&status=banned&online_status=away";
        let read = ListParameters {
            place: Page { number: 3, size: 1000 }.into(),
            search: Some("%a_+ b".into()),
            status: Some(AccountStatus::Banned),
            online_status: Some(OnlineStatus::Away),
        };
        assert_eq!(parse(query).await, Ok(read));
        let last = Page { number: u32::MAX, size: 50 };
        assert_eq!(parse("page=4294967295").await.unwrap().place, last.into());
        let behind = parse(&format!("per_page=7&cursor={}", 12.write())).await.unwrap();
        assert_eq!(behind.place, Place::After(12, 7));
    }

    #[tokio::test]
    async fn a_bad_value_is_named_and_never_clamped() {
        let long = format!("search={}", "x".repeat(255));
        let cursor = 12.write();
        let (both, twice) = (format!("cursor={cursor}&page=1"), format!("cursor={cursor}&cursor={cursor}"));
        let others = format!("cursor={}", OnlineCursor { deadline: Millis(5), user: 12 }.write());
        let table = [
            ("page=0", "page"),
            ("page=-1", "page"),
            ("page=%2B1", "page"),
            ("page=", "page"),
            ("page=x", "page"),
            ("page=1.5", "page"),
            ("page=4294967296", "page"),
            ("page=99999999999999999999999999", "page"),
            ("page=1&page=2", "page"),
            ("per_page=0", "per_page"),
            ("per_page=1001", "per_page"),
            ("per_page=all", "per_page"),
            ("search=a%00b", "search"),
            (long.as_str(), "search"),
            ("status=gone", "status"),
            ("status=ACTIVE", "status"),
            ("status=active&status=active", "status"),
            ("online_status=busy", "online_status"),
            ("cursor=12", "cursor"),
            ("cursor=%00", "cursor"),
            (both.as_str(), "cursor"),
            (twice.as_str(), "cursor"),
            (others.as_str(), "cursor"),
        ];
        for (query, name) in table {
            let problem = parse(query).await.unwrap_err().into_response();
            let (status, _, body) = testing::parts(problem).await;
            assert_eq!(status, 400, "{query}");
            let errors = body["errors"].as_object().unwrap();
            assert_eq!(errors.keys().collect::<Vec<_>>(), [name], "{query}");
        }
    }

    #[tokio::test]
    async fn an_unknown_parameter_is_named_with_those_that_are_taken() {
        let long = format!("{}=1", "x".repeat(999));
        let table = [
            ("serach=ada", "serach"),
            ("_=5&page=1", "_"),
            ("Page=1", "Page"),
            ("online=1&online=2", "online"),
            ("=1", ""),
            ("nothing", "nothing"),
            (long.as_str(), &long[..64]),
        ];
        let takes = "is no parameter of this request, which takes page, per_page, cursor, search, status, online_status";
        for (query, name) in table {
            let problem = parse(query).await.unwrap_err().into_response();
            let (status, _, body) = testing::parts(problem).await;
            assert_eq!((status, &body["errors"]), (400, &json!({name: [takes]})), "{query}");
        }
        let many = (0..500).map(|number| format!("{number}=")).collect::<Vec<_>>().join("&");
        let (_, _, body) = testing::parts(none(Some(&many)).unwrap_err().into_response()).await;
        assert_eq!(body["errors"].as_object().unwrap().len(), NAMED.0);
        assert_eq!(body["errors"]["0"], json!(["is no parameter of this request, which takes none"]));
        assert_eq!((none(None), none(Some(""))), (Ok(()), Ok(())));
    }

    #[tokio::test]
    async fn every_bad_value_is_named_at_once() {
        let problem = parse("page=0&per_page=0&online_status=busy").await.unwrap_err().into_response();
        let (_, _, body) = testing::parts(problem).await;
        assert_eq!(
            body["errors"],
            json!({
                "page": ["must be a whole number from 1 to 4294967295"],
                "per_page": ["must be a whole number from 1 to 1000"],
                "online_status": ["must be one of online, away, offline"],
            })
        );
    }
}
