//! A crowd: users who send heartbeats all the time, to either instance in turn, and note what they are told.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::support::http::{Api, try_send};
use crate::support::mint::access_token;
use crate::support::poll::eventually;

/// Between two heartbeats of a user.
const PACE: Duration = Duration::from_millis(500);

/// One answer.
#[derive(Clone, Debug)]
pub struct Told {
    pub user: i64,
    pub begun: Instant,
    pub took: Duration,
    pub status: u16,
    /// What the user came to: `online` or `away`. That is what it said, but for its changes beyond ten a minute.
    pub word: &'static str,
    /// By Redis's clock, ms; where it was acknowledged.
    pub at: i64,
    /// The body, where it was not.
    #[allow(dead_code, reason = "it is read where a failed test prints it")]
    pub said: String,
}

/// The users, for as long as the value lives.
pub struct Crowd {
    told: Arc<Mutex<Vec<Told>>>,
    going: Arc<AtomicBool>,
    users: JoinSet<()>,
}

impl Crowd {
    /// Users `first` to `last`. Every third says `online` and `away` in turn, so that acknowledged heartbeats are
    /// transitions.
    pub fn start(apis: &[Api], first: i64, last: i64) -> Self {
        let mut crowd = Self { told: Arc::default(), going: Arc::new(true.into()), users: JoinSet::new() };
        for user in first..=last {
            let (told, going, apis) = (crowd.told.clone(), crowd.going.clone(), apis.to_vec());
            crowd.users.spawn(async move { be(user, &apis, &told, &going).await });
        }
        crowd
    }

    /// Ends it; returns when the last answer is there.
    pub async fn stop(&mut self) {
        self.going.store(false, Ordering::Relaxed);
        while self.users.join_next().await.is_some() {}
    }

    pub fn told(&self) -> Vec<Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until each of these users has been acknowledged again since `since`; how long after it the last was.
    pub async fn heard_again(&self, users: &[i64], since: Instant, bound: Duration) -> Duration {
        eventually(bound, async || {
            let told = self.told();
            let mut first: HashMap<i64, Instant> = HashMap::new();
            for beat in told.iter().filter(|beat| beat.begun >= since && beat.status == 200) {
                first.entry(beat.user).or_insert(beat.begun + beat.took);
            }
            let missing: Vec<_> = users.iter().filter(|user| !first.contains_key(user)).collect();
            if missing.is_empty() {
                return Ok(users.iter().map(|user| first[user] - since).max().unwrap_or_default());
            }
            let last = told.iter().rev().find(|beat| missing.contains(&&beat.user));
            Err(format!("{} of {} users, the last was told {last:?}", missing.len(), users.len()))
        })
        .await
    }

    /// How many acknowledged transitions the history (as the stage gives it) has no row for: lost.
    pub fn missing(&self, histories: &[Vec<String>]) -> usize {
        let told = self.told();
        let mut missing = 0;
        let mut last: HashMap<i64, &Told> = HashMap::new();
        let rows: std::collections::HashSet<(i64, &str, i64)> = histories
            .iter()
            .map(|row| (row[0].parse().unwrap(), row[2].as_str(), row[4].parse().unwrap()))
            .collect();
        for beat in told.iter().filter(|beat| turns(beat.user)) {
            // Only between two acknowledged words that differ is it known to have been a transition.
            let before = last.insert(beat.user, beat);
            if beat.status == 200
                && before.is_some_and(|before| before.status == 200 && before.word != beat.word)
                && !rows.contains(&(beat.user, beat.word, beat.at))
            {
                missing += 1;
                println!("lost: user {} {} at {}", beat.user, beat.word, beat.at);
            }
        }
        missing
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.going.store(false, Ordering::Relaxed);
    }
}

/// Whether this user says `online` and `away` in turn.
pub fn turns(user: i64) -> bool {
    user % 3 == 0
}

async fn be(user: i64, apis: &[Api], told: &Mutex<Vec<Told>>, going: &AtomicBool) {
    let token = access_token(user, &format!("device-{user}"));
    // Spread over the pace, or all would come at once.
    sleep(PACE * u32::try_from(user % 50).unwrap() / 50).await;
    let (mut turn, mut words) = (usize::try_from(user).unwrap(), ["online", "away"].into_iter().cycle());
    while going.load(Ordering::Relaxed) {
        turn += 1;
        let word = if turns(user) { words.next().unwrap() } else { "online" };
        let (begun, mut came_to) = (Instant::now(), word);
        let request = apis[turn % apis.len()]
            .request(reqwest::Method::POST, "heartbeat/", Some(&token))
            .json(&json!({"status": word}));
        let (status, at, said) = match try_send(request).await {
            Ok((status, body, _)) => {
                if let Some(kept) = ["online", "away"].into_iter().find(|word| body["online_status"] == *word)
                {
                    came_to = kept;
                }
                let at =
                    body["last_seen"].as_str().and_then(|at| chrono::DateTime::parse_from_rfc3339(at).ok());
                (status.as_u16(), at.map_or(0, |at| at.timestamp_millis()), body.to_string())
            }
            Err(error) => (0, 0, error.to_string()),
        };
        let said = if status == 200 { String::new() } else { said };
        let beat = Told { user, begun, took: begun.elapsed(), status, word: came_to, at, said };
        told.lock().unwrap_or_else(PoisonError::into_inner).push(beat);
        sleep(PACE.saturating_sub(begun.elapsed())).await;
    }
}

/// Of what some users were told between two instants: how many were refused, and the longest that an answer took.
pub fn refusals(told: &[Told], users: &[i64], from: Instant, to: Instant) -> (Vec<Told>, Duration) {
    let theirs =
        told.iter().filter(|beat| users.contains(&beat.user) && beat.begun >= from && beat.begun < to);
    let longest = theirs.clone().map(|beat| beat.took).max().unwrap_or_default();
    (theirs.filter(|beat| beat.status != 200).cloned().collect(), longest)
}
