//! Passwords: argon2id, off the async threads and never more at once than the machine bears.
//!
//! A hash costs some 20 MiB and 20 ms of a core on purpose, so a burst of logins could starve every heartbeat. Hence
//! the bounds: as many at once as there are cores to spare, and a queue that is short in number and in time. Hashes that
//! Django made verify too (`stored`), and cost what they say; refusals then take their time (`pace`).

mod argon;
mod pace;
mod stored;

use std::sync::Arc;
use std::time::{Duration, Instant};

use argon2::password_hash::{self, PasswordHasher, phc};

use super::workers::{Bounds, Refused, Workers};
use super::{IdentityError, Result};
use crate::store::PasswordHash;
use argon::argon2;
use pace::Pace;
use stored::Stored;

pub use stored::Unreadable;

/// How our own hashes begin; the databases have an index of all others ([`crate::store::Store::foreign_hashes`]).
#[cfg(test)]
const OWN_PREFIX: &str = "$argon2id$v=19$m=19456,t=2,p=1$";

/// What is verified where there is no account, so that it takes as long: these parameters, and an output that no
/// password has but by a chance of 2^-256.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5IGlzIGhvbWU$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// How many may wait for each one that runs.
const QUEUE: usize = 256;
/// How long one may wait.
const PATIENCE: Duration = Duration::from_secs(5);

/// Hashes and verifies passwords.
pub struct Passwords {
    workers: Workers,
    pace: Arc<Pace>,
}

/// What the verification of a password came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is another.
    Wrong,
    /// It is the one.
    Right,
    /// It is the one, and its hash is not as we make them: weaker, or made elsewhere.
    RightAndOutdated,
}

impl Verdict {
    /// Whether the password is the one.
    pub const fn is_right(self) -> bool {
        !matches!(self, Self::Wrong)
    }
}

impl Passwords {
    /// As many at once as cores to spare: all but one, but at least one.
    pub fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let at_once = cores.saturating_sub(1).max(1);
        Self::bounded(at_once, QUEUE * at_once, PATIENCE)
    }

    fn bounded(at_once: usize, queue: usize, patience: Duration) -> Self {
        let workers = Workers::start(Bounds { at_once, queue, patience });
        Self { workers, pace: Arc::new(Pace::new()) }
    }

    /// The hash of a password with a fresh salt, in PHC form.
    ///
    /// # Errors
    /// [`IdentityError::Overloaded`], [`IdentityError::Internal`].
    pub async fn hash(&self, password: String) -> Result<PasswordHash> {
        let hashed = self.run(move || argon2().hash_password(password.as_bytes())).await?;
        hashed.map(|hash: phc::PasswordHash| PasswordHash(hash.to_string())).map_err(internal)
    }

    /// Whether a stored hash is one that [`Self::verify`] can check, and why not.
    ///
    /// # Errors
    /// [`Unreadable`].
    pub fn can_read(hash: &PasswordHash) -> std::result::Result<(), Unreadable> {
        Stored::read(hash).map(drop)
    }

    /// Whether `password` is the one that `hash` was made of; `None`, and a hash that cannot be read, take as long and
    /// say no. A no comes no sooner than the slowest hash that was made elsewhere took of late.
    ///
    /// # Errors
    /// [`IdentityError::Overloaded`].
    pub async fn verify(&self, password: String, hash: Option<PasswordHash>) -> Result<Verdict> {
        let pace = Arc::clone(&self.pace);
        let work = move || {
            let began = Instant::now();
            let nobody = PasswordHash(NOBODY.into());
            let known = hash.as_ref().and_then(|hash| Stored::read(hash).ok());
            let stored = known.or_else(|| Stored::read(&nobody).ok());
            let is_of = stored.as_ref().is_some_and(|stored| stored.is_of(&password));
            let outdated = stored.is_some_and(|stored| stored.is_outdated());
            if outdated {
                pace.saw(began.elapsed(), Instant::now());
            }
            let verdict = match (is_of, outdated) {
                (false, _) => Verdict::Wrong,
                (true, false) => Verdict::Right,
                (true, true) => Verdict::RightAndOutdated,
            };
            (verdict, began)
        };
        let (verdict, began) = self.run(work).await?;
        if verdict == Verdict::Wrong {
            tokio::time::sleep_until((began + self.pace.floor(Instant::now())).into()).await;
        }
        Ok(verdict)
    }

    /// Learns how long hashes that were made elsewhere take, by one verification of the costliest of these: before the
    /// first of them is asked for, refusals take as long as theirs.
    ///
    /// # Errors
    /// [`IdentityError::Overloaded`].
    pub async fn learn_pace(&self, hashes: Vec<PasswordHash>) -> Result<()> {
        let cost = |hash: &PasswordHash| Stored::read(hash).map_or(0, |stored| stored.cost_us());
        if let Some(hash) = hashes.into_iter().max_by_key(cost)
            && Self::can_read(&hash).is_ok()
        {
            self.verify(String::new(), Some(hash)).await?;
        }
        Ok(())
    }

    /// Runs `work` on a core to spare, unless too much waits for one already or it takes too long.
    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        self.workers.run(work).await.map_err(|refused| match refused {
            Refused::Overloaded => IdentityError::Overloaded,
            Refused::Lost => IdentityError::Internal("a password thread died".to_string()),
        })
    }
}

impl Default for Passwords {
    fn default() -> Self {
        Self::new()
    }
}

fn internal(error: password_hash::Error) -> IdentityError {
    IdentityError::Internal(format!("a password hash: {error}"))
}

#[cfg(test)]
mod tests {
    use argon2::{Algorithm, Argon2, Params, Version};

    use super::argon::PARAMS;
    use super::*;

    #[tokio::test]
    async fn a_password_verifies_against_its_own_hash_only() {
        let passwords = Passwords::new();
        let hash = passwords.hash("correct horse".into()).await.unwrap();
        assert!(hash.0.starts_with(OWN_PREFIX), "{}", hash.0);
        assert_eq!(
            passwords.verify("correct horse".into(), Some(hash.clone())).await.unwrap(),
            Verdict::Right
        );
        assert!(!passwords.verify("correct horsf".into(), Some(hash.clone())).await.unwrap().is_right());
        assert!(!passwords.verify("correct horse\0".into(), Some(hash.clone())).await.unwrap().is_right());
        assert_ne!(
            passwords.hash("correct horse".into()).await.unwrap(),
            hash,
            "every hash has its own salt"
        );
    }

    #[tokio::test]
    async fn nobody_has_a_password_and_to_say_so_takes_the_whole_work() {
        assert!(!Passwords::new().verify(String::new(), None).await.unwrap().is_right());
        let nobody = phc::PasswordHash::new(NOBODY).unwrap();
        let params = Params::try_from(&nobody).unwrap();
        assert_eq!(
            (params.m_cost(), params.t_cost(), params.p_cost()),
            (PARAMS.m_cost(), PARAMS.t_cost(), PARAMS.p_cost())
        );
        assert_eq!(nobody.hash.unwrap().len(), Params::DEFAULT_OUTPUT_LEN);
    }

    #[tokio::test]
    async fn hashes_made_elsewhere_by_other_parameters_verify_one_after_the_other() {
        let passwords = Passwords::bounded(1, 100, Duration::from_mins(1));
        for (algorithm, kib, passes) in [
            (Algorithm::Argon2id, 30_000, 1),
            (Algorithm::Argon2i, 8_192, 3),
            (Algorithm::Argon2id, 19_456, 2),
        ] {
            let params = Params::new(kib, passes, 1, None).unwrap();
            let elsewhere = Argon2::new(algorithm, Version::V0x13, params);
            let hash: phc::PasswordHash = elsewhere.hash_password(b"correct horse").unwrap();
            let hash = PasswordHash(hash.to_string());
            assert!(
                passwords.verify("correct horse".into(), Some(hash.clone())).await.unwrap().is_right(),
                "{}",
                hash.0
            );
            assert!(!passwords.verify("correct horsf".into(), Some(hash.clone())).await.unwrap().is_right());
        }
    }

    /// Linux tells how much; elsewhere nothing is asked.
    fn resident_mib() -> Option<u64> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find(|line| line.starts_with("VmRSS"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib / 1024)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn many_logins_take_no_more_memory_than_those_that_run_at_once() {
        let passwords = Arc::new(Passwords::bounded(2, 100, Duration::from_mins(1)));
        let before = resident_mib();
        for _ in 0..4 {
            let mut logins = tokio::task::JoinSet::new();
            for _ in 0..16 {
                let passwords = passwords.clone();
                logins.spawn(async move { passwords.verify("a".into(), None).await.unwrap().is_right() });
            }
            assert_eq!(logins.join_all().await, [false; 16]);
        }
        if let (Some(before), Some(after)) = (before, resident_mib()) {
            assert!(after < before + 2 * 20 + 20, "from {before} to {after} MiB");
        }
    }

    #[tokio::test]
    async fn a_hash_that_cannot_be_read_lets_nobody_in_and_is_told_apart() {
        for text in
            ["no PHC string", "", "!", "pbkdf2_sha256$600000$salt$hash", "pbkdf2_sha256$4000000000$salt$hash"]
        {
            let broken = PasswordHash(text.into());
            assert!(Passwords::can_read(&broken).is_err());
            assert!(!Passwords::new().verify("a".into(), Some(broken)).await.unwrap().is_right());
        }
    }
}
