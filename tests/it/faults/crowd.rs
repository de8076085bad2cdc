//! The crowd: several hundred people with phones and laptops, who come and go, mostly just in time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Method;
use serde_json::json;
use tokio::time::{Instant, sleep_until};

use super::ledger::{Beat, Cut, End, Ledger, Refusal, Span, Told};
use super::world::{Addresses, TTL};
use crate::support::dice::Dice;
use crate::support::http::{Answer, try_send};
use crate::support::mint::access_token;
use crate::support::sql::Sql;

/// How long anybody waits for an answer.
const PATIENCE: Duration = Duration::from_secs(6);
/// For how long a request may still count after its client was told that it failed.
const LAG_MS: i64 = 1_000;
/// Sessions that a user can begin in a round, and anew after each block.
pub const SESSIONS: usize = 4;

/// What the crowd shares.
#[derive(Clone)]
pub struct Stage {
    pub addresses: Addresses,
    pub sql: Sql,
    pub ledger: Arc<Mutex<Ledger>>,
    pub over: Arc<AtomicBool>,
    /// What an administrator speaks by.
    pub admin: Arc<str>,
    pub round: u64,
}

impl Stage {
    pub fn sid(&self, user: i64, session: usize) -> String {
        format!("r{}u{user}s{session}", self.round)
    }
}

pub fn now() -> i64 {
    chrono::Utc::now().timestamp_millis()
}

/// One user, until the round is over.
pub async fn live(stage: Stage, user: i64, mut dice: Dice) {
    let tokens: Vec<String> =
        (0..SESSIONS).map(|session| access_token(user, &stage.sid(user, session))).collect();
    let mut one = Person { stage, user, tokens, session: 0, told: Told::default(), latest: now() };
    one.pause(dice.between(0, 1_000)).await;
    while !one.stage.over.load(Ordering::Relaxed) {
        match dice.roll(100) {
            0..86 => {
                let session = one.session.saturating_sub(usize::from(dice.percent(25)));
                let word = if dice.percent(15) { "away" } else { "online" };
                one.beat(session, word, &mut dice).await;
            }
            86..90 => one.touch(&mut dice).await,
            90..95 => one.end_session(&mut dice).await,
            95..97 => one.be_set(&mut dice).await,
            97..98 => one.be_blocked(&mut dice).await,
            _ => one.session = (one.session + 1).min(one.tokens.len() - 1),
        }
        let ttl = i64::try_from(TTL.as_millis()).unwrap();
        let wait = match dice.roll(100) {
            0..65 => dice.between(ttl / 5, ttl * 3 / 4),
            // Just around the deadline.
            65..85 => one.latest + ttl + dice.between(-25, 25) - now(),
            _ => dice.between(ttl, ttl * 2),
        };
        one.pause(wait).await;
    }
    let mut ledger = one.stage.ledger.lock().unwrap();
    ledger.insert(user, one.told);
}

struct Person {
    stage: Stage,
    user: i64,
    tokens: Vec<String>,
    /// The newest session; the one before it may still speak.
    session: usize,
    told: Told,
    latest: i64,
}

impl Person {
    /// The time between two requests is the subject here, not a wait for something.
    async fn pause(&self, ms: i64) {
        let until = Instant::now() + Duration::from_millis(u64::try_from(ms.max(1)).unwrap());
        while Instant::now() < until && !self.stage.over.load(Ordering::Relaxed) {
            sleep_until(until.min(Instant::now() + Duration::from_millis(200))).await;
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        token: &str,
        body: Option<serde_json::Value>,
        dice: &mut Dice,
    ) -> (Span, Option<Answer>) {
        let api = {
            let addresses = self.stage.addresses.read().unwrap();
            addresses[usize::try_from(dice.roll(addresses.len() as u64)).unwrap()].clone()
        };
        let mut request = api.request(method, path, Some(token)).timeout(PATIENCE);
        if let Some(body) = body {
            request = request.json(&body);
        }
        let from = now();
        let answer = try_send(request).await.ok();
        let is_clear = answer.as_ref().is_some_and(|(status, ..)| !status.is_server_error());
        // What was given up may still have been on its way.
        let to = now() + if is_clear { 1 } else { LAG_MS };
        (Span { from, to }, answer)
    }

    async fn beat(&mut self, session: usize, word: &str, dice: &mut Dice) {
        let body = json!({"status": word});
        let token = self.tokens[session].clone();
        let (asked, answer) = self.send(Method::POST, "heartbeat/", &token, Some(body), dice).await;
        match answer {
            Some((status, body, _)) if status == 200 => {
                let at = body["last_seen"].as_str().unwrap();
                let at = chrono::DateTime::parse_from_rfc3339(at).unwrap().timestamp_millis();
                self.latest = at;
                self.told.beats.push(Beat { at, session });
                self.told.sent.push(asked.from);
            }
            Some((status, ..)) if status == 401 || status == 403 => {
                self.told.refusals.push(Refusal { asked, session, status: status.as_u16() });
                if status == 401 {
                    self.session = (self.session + 1).min(self.tokens.len() - 1);
                }
            }
            _ => self.fail(asked),
        }
    }

    /// Another request, which counts as activity but does not say when.
    async fn touch(&mut self, dice: &mut Dice) {
        let token = self.tokens[self.session].clone();
        let (asked, answer) = self.send(Method::GET, "me/", &token, None, dice).await;
        // Where Redis was too slow, SQL may have let the reader in, and the activity may count after the answer.
        self.told.doubts.push(Span { to: asked.to + LAG_MS, ..asked });
        if answer.is_none_or(|(status, ..)| status.is_server_error()) {
            self.told.failures.push(asked);
        }
    }

    async fn end_session(&mut self, dice: &mut Dice) {
        let session = self.session;
        let (token, sid) = (self.tokens[session].clone(), self.stage.sid(self.user, session));
        let path = format!("me/sessions/{sid}/");
        let (asked, answer) = self.send(Method::DELETE, &path, &token, None, dice).await;
        let acknowledged = answer.as_ref().is_some_and(|(status, ..)| *status == 204);
        // It may have counted as an activity of the session that it ended.
        self.told.doubts.push(asked);
        self.told.ends.push(End { session, asked, acknowledged });
        if answer.is_none_or(|(status, ..)| status.is_server_error()) {
            self.told.failures.push(asked);
        }
        self.session = (session + 1).min(self.tokens.len() - 1);
    }

    /// An administrator sets the status.
    async fn be_set(&mut self, dice: &mut Dice) {
        let path = format!("admin/users/{}/set-online-status/", self.user);
        let word = ["offline", "online", "away"][usize::try_from(dice.roll(3)).unwrap()];
        let admin = self.stage.admin.clone();
        let (asked, answer) =
            self.send(Method::POST, &path, &admin, Some(json!({"status": word})), dice).await;
        self.told.edits.push(asked);
        if answer.is_none_or(|(status, ..)| status.is_server_error()) {
            self.told.administration.push(asked);
        }
    }

    /// The account is suspended by plain SQL, and let in again after a while.
    async fn be_blocked(&mut self, dice: &mut Dice) {
        let user = self.user;
        let set = |status: &str| format!("UPDATE users SET status = '{status}' WHERE id = {user}");
        let from = now();
        let done = self.stage.sql.try_run(&set("suspended")).await;
        let stands_from = now();
        self.pause(dice.between(200, 1_800)).await;
        let session = self.session;
        self.beat(session, "online", dice).await;
        let until = now();
        while self.stage.sql.try_run(&set("active")).await.is_none() {
            self.pause(100).await;
        }
        if done.is_some() {
            self.told.blocked.push(Span { from: stands_from, to: until });
        }
        let below = self.tokens.len();
        self.told.cuts.push(Cut { below, from, stands_from: done.map(|_| stands_from) });
        self.begin_anew().await;
        self.told.perhaps_blocked.push(Span { from, to: now() + 2_000 });
    }

    /// New sessions, which SQL knows; one of the old ones may be tried once more.
    async fn begin_anew(&mut self) {
        let (user, round, first) = (self.user, self.stage.round, self.tokens.len());
        let last = first + SESSIONS - 1;
        let insert = format!(
            "INSERT INTO login_sessions (sid, user_id, created_at, last_used_at) SELECT 'r{round}u{user}s' || s, {user}, \
             now(), now() FROM generate_series({first}, {last}) s ON CONFLICT DO NOTHING"
        );
        while self.stage.sql.try_run(&insert).await.is_none() {
            self.pause(100).await;
        }
        self.tokens.extend((first..=last).map(|number| access_token(user, &self.stage.sid(user, number))));
        self.session = first;
    }

    fn fail(&mut self, asked: Span) {
        self.told.doubts.push(asked);
        self.told.failures.push(asked);
    }
}
