//! The security log: who signed in and who failed to, and what administrators did, in the log and in the metrics.
//!
//! A line names accounts by their ids and never holds what was typed as a login name: it may be a password that went into
//! the wrong field. Successes are `info`, failures `warn`. Failures cost a client nothing, so their lines are
//! bounded: beyond ten a second they are counted, and one line says how many were left out. The metrics count all.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use tokio::time::Instant;

use super::caller::CallerSlot;
use super::client::{Peer, TrustedProxies};
use crate::identity::IdentityError;
use crate::metrics::{Counter, Counters, Registry};
use crate::model::{Action, UserId};

/// Where the paths of the administration begin.
pub(super) const ADMINISTRATION: &str = "/api/users/admin/";
/// Lines about failures in each [`PERIOD`].
const LINES: u32 = 10;
/// For how long [`LINES`] are counted.
const PERIOD: Duration = Duration::from_secs(1);

/// What came of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoginOutcome {
    /// A session has begun.
    Ok,
    /// No such account, or not its password.
    WrongCredentials,
    /// The account may not sign in.
    Blocked,
    /// Too many logins from the address or to the account.
    RateLimited,
    /// Too many passwords wait to be checked.
    Overloaded,
    /// Redis, SQL or the service itself failed.
    Unavailable,
}

impl LoginOutcome {
    /// The words of the label `outcome`, in the order of the variants.
    const WORDS: [&str; 6] =
        ["ok", "wrong_credentials", "blocked", "rate_limited", "overloaded", "unavailable"];

    const fn as_str(self) -> &'static str {
        Self::WORDS[self as usize]
    }
}

impl From<&IdentityError> for LoginOutcome {
    fn from(error: &IdentityError) -> Self {
        match error {
            IdentityError::WrongCredentials => Self::WrongCredentials,
            IdentityError::Blocked => Self::Blocked,
            IdentityError::TooMany { .. } => Self::RateLimited,
            IdentityError::Overloaded => Self::Overloaded,
            _ => Self::Unavailable,
        }
    }
}

/// The words of the label `action`: the actions in their order, actions without a label of their own, and requests that were refused with
/// 403.
const ACTIONS: [&str; 7] = [
    Action::ALL[0].as_str(),
    Action::ALL[1].as_str(),
    Action::ALL[2].as_str(),
    Action::ALL[3].as_str(),
    Action::ALL[4].as_str(),
    "other",
    "refused",
];
const OTHER: usize = 5;
const REFUSED: usize = 6;

/// Writes and counts; clones share one inside.
#[derive(Debug, Clone)]
pub struct SecurityLog {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    logins: Counters<6>,
    reused: Counter,
    actions: Counters<7>,
    failures: Budget,
}

impl Default for SecurityLog {
    fn default() -> Self {
        Self {
            inner: Arc::new(Inner {
                logins: Counters::new("outcome", LoginOutcome::WORDS),
                reused: Counter::default(),
                actions: Counters::new("action", ACTIONS),
                failures: Budget::default(),
            }),
        }
    }
}

impl SecurityLog {
    /// Enters what is counted here.
    pub fn register(&self, registry: &mut Registry) {
        let inner = &self.inner;
        registry.counters("logins", "Logins by what came of them", &inner.logins);
        registry.counter(
            "refresh_tokens_reused",
            "Refresh tokens that were used again after the grace, which ends their sessions",
            &inner.reused,
        );
        registry.counters(
            "admin_actions",
            "What administrators did by the API; refused are requests of callers who are no administrators",
            &inner.actions,
        );
    }

    /// A login; `user` is the account that the typed name belongs to, where there is one.
    pub fn login(&self, outcome: LoginOutcome, user: Option<UserId>, address: IpAddr) {
        self.inner.logins.at(outcome as usize).inc();
        if outcome == LoginOutcome::Ok {
            tracing::info!(user, %address, "login");
        } else if self.admits_failure() {
            tracing::warn!(outcome = outcome.as_str(), user, %address, "login failed");
        }
    }

    /// A registration, or one that came to nothing because there were too many.
    pub fn registration(&self, made: Result<UserId, &IdentityError>, address: IpAddr) {
        match made {
            Ok(user) => tracing::info!(user, %address, "registration"),
            Err(IdentityError::TooMany { .. }) if self.admits_failure() => {
                tracing::warn!(outcome = LoginOutcome::RateLimited.as_str(), %address, "registration failed");
            }
            Err(_) => {}
        }
    }

    /// A logout.
    pub fn logout(&self, is_done: bool, user: UserId, address: IpAddr) {
        if is_done {
            tracing::info!(user, %address, "logout");
        } else if self.admits_failure() {
            tracing::warn!(user, %address, "logout failed");
        }
    }

    /// A refresh token that was used again after the grace: its session has been ended.
    pub fn refresh_reused(&self, user: UserId, address: IpAddr) {
        self.inner.reused.inc();
        if self.admits_failure() {
            tracing::warn!(user, %address, "a refresh token was used twice; its session has been ended");
        }
    }

    fn administration(&self, deed: &AdminRequest, admin: Option<UserId>, status: StatusCode) {
        let AdminRequest { action, user, address } = deed;
        let (label, index) = match action {
            Some(action) => (action.as_str(), *action as usize),
            None => (ACTIONS[OTHER], OTHER),
        };
        let status = status.as_u16();
        if status < 400 {
            self.inner.actions.at(index).inc();
            tracing::info!(action = label, admin, user, %address, status, "administration");
            return;
        }
        if status == 403 {
            self.inner.actions.at(REFUSED).inc();
        }
        if self.admits_failure() {
            tracing::warn!(action = label, caller = admin, user, %address, status, "administration refused");
        }
    }

    /// Whether one more line about a failure may be written now.
    fn admits_failure(&self) -> bool {
        match self.inner.failures.take(Instant::now()) {
            Taken::Admitted => true,
            Taken::LeftOut => false,
            Taken::FirstLeftOut { until } => {
                let log = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep_until(until).await;
                    let left_out = log.inner.failures.left_out();
                    tracing::warn!(
                        left_out,
                        "more failed logins, or refused requests, than are logged one by one; the metrics count all"
                    );
                });
                false
            }
        }
    }
}

/// How many lines about failures may be written.
#[derive(Debug, Default)]
struct Budget(Mutex<Period>);

#[derive(Debug, Default)]
struct Period {
    ends: Option<Instant>,
    written: u32,
    left_out: u64,
}

#[derive(Debug, PartialEq, Eq)]
enum Taken {
    Admitted,
    LeftOut,
    /// The first since [`Budget::left_out`] was asked: it is to be asked again then.
    FirstLeftOut {
        until: Instant,
    },
}

impl Budget {
    fn take(&self, now: Instant) -> Taken {
        let mut period = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ends = match period.ends {
            Some(ends) if now < ends => ends,
            _ => {
                (period.ends, period.written) = (Some(now + PERIOD), 0);
                now + PERIOD
            }
        };
        if period.written < LINES {
            period.written += 1;
            return Taken::Admitted;
        }
        period.left_out += 1;
        if period.left_out == 1 { Taken::FirstLeftOut { until: ends } } else { Taken::LeftOut }
    }

    /// How many were left out since this was asked last.
    fn left_out(&self) -> u64 {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).left_out)
    }
}

/// What a request to the administration asks for.
#[derive(Debug, PartialEq, Eq)]
struct AdminRequest {
    /// `None` for an action without a label of its own.
    action: Option<Action>,
    /// The account that the path names, if it names one.
    user: Option<UserId>,
    address: IpAddr,
}

/// The layer around every path of the administration: what changes something is logged whatever comes of it; what reads only
/// where it was refused with 403. It works within what is carried to its end, so a client that hangs up hides nothing.
pub async fn administration(
    State((log, proxies)): State<(SecurityLog, TrustedProxies)>,
    request: Request,
    next: Next,
) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let (action, user) = asked(request.method(), request.uri().path());
    let peer = request.extensions().get::<Peer>().map(|peer| peer.0.ip());
    let address = peer.map(|peer| proxies.client(peer, request.headers()));
    let caller = request.extensions().get::<CallerSlot>().cloned();
    let response = next.run(request).await;
    if let Some(address) = address
        && (!reads || response.status() == StatusCode::FORBIDDEN)
    {
        let deed = AdminRequest { action, user, address };
        log.administration(&deed, caller.and_then(|caller| caller.user()), response.status());
    }
    response
}

/// The action of a request, and the account that it concerns.
fn asked(method: &Method, path: &str) -> (Option<Action>, Option<UserId>) {
    let below = path.strip_prefix(ADMINISTRATION).unwrap_or_default();
    let parts: Vec<&str> = below.trim_end_matches('/').split('/').collect();
    let action = match (method.as_str(), &parts[..]) {
        ("POST", ["users"]) => Some(Action::CreateUser),
        ("PATCH", ["users", _]) => Some(Action::UpdateUser),
        ("DELETE", ["users", _]) => Some(Action::DeleteUser),
        ("POST", ["users", _, "set-online-status"]) => Some(Action::SetOnlineStatus),
        ("DELETE", ["users", _, "sessions"] | ["users", _, "sessions", _]) => Some(Action::EndSessions),
        _ => None,
    };
    (action, parts.get(1).and_then(|id| id.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_failures_writes_a_few_lines_a_second_and_says_how_many_it_left_out() {
        let (budget, now) = (Budget::default(), Instant::now());
        for _ in 0..LINES {
            assert_eq!(budget.take(now), Taken::Admitted);
        }
        assert_eq!(budget.take(now), Taken::FirstLeftOut { until: now + PERIOD });
        for _ in 0..99 {
            assert_eq!(budget.take(now + PERIOD / 2), Taken::LeftOut);
        }
        let next = now + PERIOD;
        assert_eq!(budget.take(next), Taken::Admitted);
        assert_eq!(budget.left_out(), 100);
        for _ in 1..LINES {
            assert_eq!(budget.take(next), Taken::Admitted);
        }
        assert_eq!(budget.take(next), Taken::FirstLeftOut { until: next + PERIOD });
        assert_eq!((budget.left_out(), budget.left_out()), (1, 0));
    }

    #[test]
    fn every_change_by_an_administrator_has_its_label() {
        let table = [
            ("POST", "users/", Some(Action::CreateUser), None),
            ("PATCH", "users/7", Some(Action::UpdateUser), Some(7)),
            ("DELETE", "users/7/", Some(Action::DeleteUser), Some(7)),
            ("POST", "users/7/set-online-status/", Some(Action::SetOnlineStatus), Some(7)),
            ("DELETE", "users/7/sessions/", Some(Action::EndSessions), Some(7)),
            ("DELETE", "users/7/sessions/abc", Some(Action::EndSessions), Some(7)),
            ("GET", "users/7/", None, Some(7)),
            ("POST", "something/new/", None, None),
            ("PATCH", "users/x%1b/", Some(Action::UpdateUser), None),
        ];
        for (method, below, action, user) in table {
            let method = method.parse().unwrap();
            assert_eq!(asked(&method, &format!("{ADMINISTRATION}{below}")), (action, user), "{below}");
        }
    }
}
