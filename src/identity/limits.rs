//! How often somebody may try: by address, and by account.
//!
//! The counts stand in Redis, so that all instances share them (`lua/limit.lua`). Where Redis does not answer at once, this
//! process counts by itself, by the same rule: nobody waits for Redis here, and nobody is locked out because it is away.
//!
//! A login is counted by the login name that was typed, in its folded form, whether or not an account has it: a count by
//! account would answer 429 for an e-mail address whose username was tried before, and so prove that the two belong
//! together. A client that knows both names of an account has twice the tries, and no more: an account has two names, and
//! all spellings of one are counted together. A correct login forgets the count of the tries by the name that was typed, but
//! not that of `login:total`, which bounds how many sessions are begun by one name, from however many addresses. Both are
//! asked before the password is looked at, so that a refusal tells nothing of it. A client that
//! goes on guessing keeps the owner from a *new* login by that name meanwhile, and for one interval of the limit after
//! (some seconds by default); running sessions go on. A count per address and name would let a client with many addresses
//! guess without a bound.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use super::{IdentityError, Result};
use crate::live::LiveSet;
use crate::metrics::{Counters, Registry};
use crate::model::UserId;
use crate::model::limit::{Limit, Taken};
use crate::model::login_name::fold;

/// How long Redis may take to count: far less than a password takes.
const PATIENCE: Duration = Duration::from_millis(250);
/// For how long it is not asked after it took longer.
const LEAVE_ALONE: Duration = Duration::from_secs(1);
/// The most counts that this process keeps of its own, some 5 MB. Whoever finds no room among them is let in.
const MOST_OWN: usize = 50_000;
/// Between two looks for counts of which all is given back, where there is no room.
const TIDY: Duration = Duration::from_secs(1);

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limited {
    /// Logins from one address.
    LoginAddress,
    /// Logins by one name, whether or not an account has it, since the last correct one.
    LoginAccount,
    /// All logins by one name, correct ones too.
    LoginTotal,
    /// Registrations from one address.
    RegisterAddress,
    /// Refreshes from one address.
    RefreshAddress,
    /// Refreshes of one account.
    RefreshAccount,
}

/// How many limits there are.
const LIMITS: usize = 6;

const WORDS: [&str; LIMITS] = [
    "login:address",
    "login:account",
    "login:total",
    "register:address",
    "refresh:address",
    "refresh:account",
];

/// Generous to an office behind one address.
const DEFAULTS: [&str; LIMITS] = ["60/1m", "10/1m", "60/1m", "30/5m", "600/1m", "60/1m"];

/// The figures of all limits; one that is `None` is off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Figures([Option<Limit>; LIMITS]);

impl Figures {
    /// No limits.
    pub const OFF: Self = Self([None; LIMITS]);
}

impl Default for Figures {
    fn default() -> Self {
        Self(DEFAULTS.map(|figure| figure.parse().ok()))
    }
}

/// `on`, `off`, or a list of those that differ from the defaults: `login:address=100/1m,login:account=off`.
impl FromStr for Figures {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "on" => return Ok(Self::default()),
            "off" => return Ok(Self::OFF),
            _ => {}
        }
        let mut figures = Self::default();
        let mut seen = [false; WORDS.len()];
        for part in text.split(',') {
            let (word, figure) = part.trim().split_once('=').ok_or_else(|| {
                format!("must be on, off, or a list such as login:address=100/1m,login:account=off; '{part}' is none of these")
            })?;
            let index = WORDS.iter().position(|known| *known == word);
            let index =
                index.ok_or_else(|| format!("'{word}' is no limit; the limits are {}", WORDS.join(", ")))?;
            if std::mem::replace(&mut seen[index], true) {
                return Err(format!("'{word}' stands in the list twice"));
            }
            figures.0[index] = match figure {
                "off" => None,
                figure => Some(figure.parse().map_err(|error| format!("'{word}' {error}, or off"))?),
            };
        }
        Ok(figures)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::default() { "on" } else { "as set" })
    }
}

/// Leave to go on, and after how long the next would be given: a refusal further on must not promise an earlier time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Leave(Duration);

/// The limits with their counts.
pub struct Limits {
    figures: Figures,
    live: Option<LiveSet>,
    own: Mutex<Own>,
    left_alone_until: Mutex<Option<Instant>>,
    refused: Counters<LIMITS>,
}

impl Limits {
    /// Limits of these figures, counted in Redis; without it by this process alone.
    pub fn new(figures: Figures, live: Option<LiveSet>) -> Self {
        Self {
            figures,
            live,
            own: Mutex::new(Own::new(MOST_OWN)),
            left_alone_until: Mutex::default(),
            refused: Counters::new("limit", WORDS),
        }
    }

    /// No limits: for whoever is no client.
    pub fn off() -> Self {
        Self::new(Figures::OFF, None)
    }

    /// The Redis that counts.
    pub(super) const fn live(&self) -> Option<&LiveSet> {
        self.live.as_ref()
    }

    pub(super) fn register(&self, registry: &mut Registry) {
        registry.counters(
            "rate_limited",
            "Requests refused because they were too many, by the limit that was reached",
            &self.refused,
        );
    }

    /// Counts a try from this address.
    ///
    /// # Errors
    /// [`IdentityError::TooMany`].
    pub(super) async fn address(&self, what: Limited, address: IpAddr) -> Result<Leave> {
        self.take(what, &of_address(address), Leave(Duration::ZERO)).await
    }

    /// Counts a try on this account, by somebody who has been given leave so far.
    ///
    /// # Errors
    /// [`IdentityError::TooMany`].
    pub(super) async fn account(&self, what: Limited, whom: &Whom, so_far: Leave) -> Result<Leave> {
        self.take(what, &whom.key(), so_far).await
    }

    /// Forgets what was counted of this account.
    pub(super) async fn forgive(&self, what: Limited, whom: &Whom) {
        if self.figures.0[what as usize].is_none() {
            return;
        }
        let name = format!("{}:{}", WORDS[what as usize], whom.key());
        if let Some(live) = self.live_now() {
            self.in_time(Box::pin(live.forgive(&name))).await;
        }
        self.own().forgive(&name);
    }

    async fn take(&self, what: Limited, whom: &str, so_far: Leave) -> Result<Leave> {
        let Some(limit) = self.figures.0[what as usize] else { return Ok(so_far) };
        let name = format!("{}:{whom}", WORDS[what as usize]);
        let shared = match self.live_now() {
            Some(live) => self.in_time(Box::pin(live.limit(&name, limit))).await,
            None => None,
        };
        let Taken { admitted, next_us } =
            shared.unwrap_or_else(|| self.own().take(name, limit, Instant::now()));
        let next = so_far.0.max(Duration::from_micros(next_us.unsigned_abs()));
        if admitted {
            return Ok(Leave(next));
        }
        self.refused.at(what as usize).inc();
        Err(IdentityError::TooMany { retry_after: next })
    }

    /// Redis, unless it was slow just now.
    fn live_now(&self) -> Option<&LiveSet> {
        let until = *self.left_alone_until.lock().unwrap_or_else(PoisonError::into_inner);
        self.live.as_ref().filter(|_| until.is_none_or(|until| Instant::now() >= until))
    }

    /// What Redis answers within the patience. The futures come boxed, for those of fred are large.
    async fn in_time<T>(
        &self,
        answer: impl Future<Output = std::result::Result<T, crate::live::LiveError>>,
    ) -> Option<T> {
        match tokio::time::timeout(PATIENCE, answer).await {
            Ok(Ok(answer)) => Some(answer),
            Ok(Err(error)) => {
                tracing::debug!(%error, "Redis does not count against the limits; this process does");
                None
            }
            Err(_) => {
                tracing::debug!("Redis is slow; this process counts against the limits for a while");
                let mut until = self.left_alone_until.lock().unwrap_or_else(PoisonError::into_inner);
                *until = Some(Instant::now() + LEAVE_ALONE);
                None
            }
        }
    }

    fn own(&self) -> std::sync::MutexGuard<'_, Own> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose tries are counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Whom {
    /// Those on an account.
    Account(UserId),
    /// Those by a login name, known or not, by a hash of its folded form: what a client sends is no part of a key.
    Name([u8; 16]),
}

impl Whom {
    /// The login name that was typed; all its spellings count as one.
    pub(super) fn name(login: &str) -> Self {
        let hash = Sha256::digest(fold(login).as_bytes());
        let mut half = [0; 16];
        half.copy_from_slice(&hash[..16]);
        Self::Name(half)
    }

    fn key(&self) -> String {
        match self {
            Self::Account(user) => user.to_string(),
            Self::Name(hash) => format!("name-{:032x}", u128::from_be_bytes(*hash)),
        }
    }
}

/// An IPv4 address, or the /64 that an IPv6 address lies in: whoever has one has all of it.
fn of_address(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => {
            format!("{}/64", Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)))
        }
    }
}

/// The counts of this process alone, for a while.
struct Own {
    most: usize,
    opened: Instant,
    /// By name, when all is given back, microseconds after `opened`.
    full_us: HashMap<String, i64>,
    tidied: Instant,
}

impl Own {
    fn new(most: usize) -> Self {
        let now = Instant::now();
        Self { most, opened: now, full_us: HashMap::new(), tidied: now }
    }

    fn take(&mut self, name: String, limit: Limit, now: Instant) -> Taken {
        let now_us =
            i64::try_from(now.saturating_duration_since(self.opened).as_micros()).unwrap_or(i64::MAX);
        if self.full_us.len() >= self.most && !self.full_us.contains_key(&name) {
            if now.saturating_duration_since(self.tidied) >= TIDY {
                self.tidied = now;
                self.full_us.retain(|_, full_us| *full_us > now_us);
            }
            if self.full_us.len() >= self.most {
                return Taken { admitted: true, next_us: 0 };
            }
        }
        let full_us = self.full_us.entry(name).or_insert(now_us);
        let (taken, after) = limit.take(*full_us, now_us);
        *full_us = after;
        taken
    }

    fn forgive(&mut self, name: &str) {
        self.full_us.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_and_bad_ones_refused_by_name() {
        assert_eq!("on".parse(), Ok(Figures::default()));
        assert_eq!("off".parse(), Ok(Figures::OFF));
        assert!(Figures::default().0.iter().all(Option::is_some));
        let some: Figures = "login:address=5/10s, refresh:account=off".parse().unwrap();
        assert_eq!(some.0[0], "5/10s".parse().ok());
        assert_eq!((some.0[1], some.0[5]), (Figures::default().0[1], None));
        for (bad, must_say) in [
            ("", "must be on, off, or a list"),
            ("On", "must be on, off, or a list"),
            ("login:address=1/1s,", "must be on, off, or a list"),
            ("login=1/1s", "the limits are login:address"),
            ("login:account=ten", "'login:account' must be a count and a time"),
            ("login:account=0/1m", "'login:account' must be a count and a time"),
            ("login:account=1/1m,login:account=2/1m", "twice"),
        ] {
            let said = bad.parse::<Figures>().unwrap_err();
            assert!(said.contains(must_say), "{bad}: {said}");
        }
    }

    #[test]
    fn an_address_counts_as_what_one_client_has() {
        for (address, counts_as) in [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
            ("2001:db8:1:2::", "2001:db8:1:2::/64"),
            ("::1", "::/64"),
        ] {
            assert_eq!(of_address(address.parse().unwrap()), counts_as);
        }
    }

    #[test]
    fn a_name_is_no_part_of_a_key_and_its_spelling_does_not_count() {
        let key = Whom::name("Kim Straße\n").key();
        assert_eq!(key, Whom::name("\u{212a}im STRASSE\n").key());
        assert!(
            key.len() == 37 && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'),
            "{key}"
        );
        assert_ne!(Whom::name("17").key(), Whom::Account(17).key());
    }

    #[test]
    fn a_flood_of_names_takes_bounded_room_and_blocks_nobody() {
        let mut own = Own::new(100);
        let limit: Limit = "1/10s".parse().unwrap();
        let now = Instant::now();
        for index in 0..1_000 {
            assert!(own.take(format!("{index}"), limit, now).admitted);
        }
        assert_eq!(own.full_us.len(), 100);
        assert!(!own.take("7".into(), limit, now).admitted, "whoever is counted stays counted");
        let later = now + Duration::from_secs(11);
        assert!(own.take("new".into(), limit, later).admitted);
        assert!(!own.take("new".into(), limit, later).admitted, "there is room again");
        assert_eq!(own.full_us.len(), 1);
        own.forgive("new");
        assert!(own.take("new".into(), limit, later).admitted);
    }

    #[tokio::test]
    async fn without_redis_this_process_counts_and_says_the_longer_of_two_times() {
        let limits = Limits::new("login:address=1/1h,login:account=1/1m".parse().unwrap(), None);
        let address = "192.0.2.7".parse().unwrap();
        let leave = limits.address(Limited::LoginAddress, address).await.unwrap();
        let ada = Whom::Account(1);
        let leave = limits.account(Limited::LoginAccount, &ada, leave).await.unwrap();
        let refused = limits.account(Limited::LoginAccount, &ada, leave).await;
        let Err(IdentityError::TooMany { retry_after }) = refused else { panic!("{refused:?}") };
        assert!(retry_after > Duration::from_mins(59), "the address comes later: {retry_after:?}");
        limits.forgive(Limited::LoginAccount, &ada).await;
        assert!(limits.account(Limited::LoginAccount, &ada, leave).await.is_ok());
        assert!(limits.address(Limited::LoginAddress, address).await.is_err());
        assert!(Limits::off().address(Limited::LoginAddress, address).await.is_ok());
    }
}
