//! Passwords: argon2id, off the async threads and never more at once than the machine bears.
//!
//! A hash costs some 20 MiB and 20 ms of a core on purpose, so a burst of logins could starve every heartbeat. Hence
//! the bounds: as many at once as there are cores to spare, and a queue that is short in number and in time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use argon2::password_hash::{self, PasswordHasher, PasswordVerifier, phc};
use argon2::{Algorithm, Argon2, Params, Version};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{IdentityError, Result};
use crate::store::PasswordHash;

/// The OWASP password storage cheat sheet's first choice for argon2id with 19 MiB.
const PARAMS: Params = match Params::new(19_456, 2, 1, None) {
    Ok(params) => params,
    Err(_) => panic!("argon2 refuses these parameters"),
};

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
    running: Arc<Semaphore>,
    waiting: AtomicUsize,
    queue: usize,
    patience: Duration,
}

impl Passwords {
    /// As many at once as cores to spare: all but one, but at least one.
    pub fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let at_once = cores.saturating_sub(1).max(1);
        Self::bounded(at_once, QUEUE * at_once, PATIENCE)
    }

    fn bounded(at_once: usize, queue: usize, patience: Duration) -> Self {
        Self { running: Arc::new(Semaphore::new(at_once)), waiting: AtomicUsize::new(0), queue, patience }
    }

    /// The hash of a password with a fresh salt, in PHC form.
    ///
    /// # Errors
    /// [`IdentityError::Overloaded`], [`IdentityError::Internal`].
    pub async fn hash(&self, password: String) -> Result<PasswordHash> {
        let permit = self.admit().await?;
        let hashed = off_thread(permit, move || argon2().hash_password(password.as_bytes())).await?;
        hashed.map(|hash: phc::PasswordHash| PasswordHash(hash.to_string())).map_err(internal)
    }

    /// Whether a stored hash is of a kind that [`Self::verify`] can check.
    pub fn can_read(hash: &PasswordHash) -> bool {
        phc::PasswordHash::new(&hash.0).is_ok()
    }

    /// Whether `password` is the one that `hash` was made of; `None` takes as long and says no.
    ///
    /// # Errors
    /// [`IdentityError::Overloaded`].
    pub async fn verify(&self, password: String, hash: Option<PasswordHash>) -> Result<bool> {
        let permit = self.admit().await?;
        let verified = off_thread(permit, move || {
            // A hash that cannot be read is nobody's, and takes as long.
            let known = hash.as_ref().and_then(|hash| phc::PasswordHash::new(&hash.0).ok());
            let nobody = phc::PasswordHash::new(NOBODY)?;
            argon2().verify_password(password.as_bytes(), known.as_ref().unwrap_or(&nobody))
        });
        match verified.await? {
            Ok(()) => Ok(true),
            Err(password_hash::Error::PasswordInvalid) => Ok(false),
            Err(error) => Err(internal(error)),
        }
    }

    /// Waits for a core, unless too many wait already or it takes too long.
    async fn admit(&self) -> Result<OwnedSemaphorePermit> {
        let _place = Place::take(&self.waiting, self.queue).ok_or(IdentityError::Overloaded)?;
        match tokio::time::timeout(self.patience, Arc::clone(&self.running).acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(IdentityError::Overloaded),
        }
    }
}

impl Default for Passwords {
    fn default() -> Self {
        Self::new()
    }
}

/// A place in the queue, given back however the wait ends: the client may hang up.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicUsize, queue: usize) -> Option<Self> {
        let place = Self(waiting);
        (waiting.fetch_add(1, Ordering::Relaxed) < queue).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs `work` on a blocking thread. The permit goes with it: a thread cannot be cancelled, so its core is free only
/// when it is done, whether or not anybody still waits for the result.
async fn off_thread<T: Send + 'static>(
    permit: OwnedSemaphorePermit,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let work = move || {
        let _permit = permit;
        work()
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| IdentityError::Internal(format!("a password thread died: {error}")))
}

fn argon2() -> Argon2<'static> {
    Argon2::new(Algorithm::Argon2id, Version::V0x13, PARAMS)
}

fn internal(error: password_hash::Error) -> IdentityError {
    IdentityError::Internal(format!("a password hash: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_password_verifies_against_its_own_hash_only() {
        let passwords = Passwords::new();
        let hash = passwords.hash("correct horse".into()).await.unwrap();
        assert!(hash.0.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", hash.0);
        assert!(passwords.verify("correct horse".into(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify("correct horsf".into(), Some(hash.clone())).await.unwrap());
        assert!(!passwords.verify("correct horse\0".into(), Some(hash.clone())).await.unwrap());
        assert_ne!(
            passwords.hash("correct horse".into()).await.unwrap(),
            hash,
            "every hash has its own salt"
        );
    }

    #[tokio::test]
    async fn nobody_has_a_password_and_to_say_so_takes_the_whole_work() {
        assert!(!Passwords::new().verify(String::new(), None).await.unwrap());
        let nobody = phc::PasswordHash::new(NOBODY).unwrap();
        let params = Params::try_from(&nobody).unwrap();
        assert_eq!(
            (params.m_cost(), params.t_cost(), params.p_cost()),
            (PARAMS.m_cost(), PARAMS.t_cost(), PARAMS.p_cost())
        );
        assert_eq!(nobody.hash.unwrap().len(), Params::DEFAULT_OUTPUT_LEN);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_at_once_and_a_short_patience_soon() {
        let passwords = Passwords::bounded(1, 1, Duration::from_millis(10));
        let busy = Arc::clone(&passwords.running).acquire_owned().await.unwrap();
        let (first, second) =
            tokio::join!(passwords.verify("a".into(), None), passwords.verify("b".into(), None));
        assert!(matches!(first, Err(IdentityError::Overloaded)), "waited in vain");
        assert!(matches!(second, Err(IdentityError::Overloaded)), "found the queue full");
        drop(busy);
        assert!(!passwords.verify("c".into(), None).await.unwrap(), "places are given back");
    }

    #[tokio::test]
    async fn a_hash_that_cannot_be_read_lets_nobody_in_and_is_told_apart() {
        for text in ["no PHC string", "", "!", "pbkdf2_sha256$600000$salt$hash"] {
            let broken = PasswordHash(text.into());
            assert!(!Passwords::can_read(&broken));
            assert!(!Passwords::new().verify("a".into(), Some(broken)).await.unwrap());
        }
    }
}
