//! Passwords: argon2id, off the async threads and never more at once than the machine bears.
//!
//! A hash costs some 20 MiB and 20 ms of a core on purpose, so a burst of logins could starve every heartbeat. Hence
//! the bounds: as many at once as there are cores to spare, and a queue that is short in number and in time.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use argon2::password_hash::{
    self, CustomizedPasswordHasher, PasswordHasher, PasswordVerifier, Result as HashResult, phc,
};
use argon2::{Algorithm, Argon2, Block, Params, Version};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

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
    threads: Threads,
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
        Self {
            threads: Threads::start(at_once),
            running: Arc::new(Semaphore::new(at_once)),
            waiting: AtomicUsize::new(0),
            queue,
            patience,
        }
    }

    /// The hash of a password with a fresh salt, in PHC form.
    ///
    /// # Errors
    /// [`IdentityError::Overloaded`], [`IdentityError::Internal`].
    pub async fn hash(&self, password: String) -> Result<PasswordHash> {
        let permit = self.admit().await?;
        let hashed = self.threads.run(permit, move || argon2().hash_password(password.as_bytes())).await?;
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
        let verified = self.threads.run(permit, move || {
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

type Job = Box<dyn FnOnce() + Send>;

/// Threads for nothing but hashing, as many as may hash at once. Each keeps its 20 MiB for the next hash; on the
/// runtime's own blocking threads, of which there are hundreds, each as good as another, that would be many times as much.
struct Threads {
    jobs: mpsc::Sender<Job>,
}

impl Threads {
    fn start(count: usize) -> Self {
        let (jobs, waiting) = mpsc::channel::<Job>();
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..count {
            let waiting = waiting.clone();
            std::thread::spawn(move || {
                loop {
                    let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(job) = job else { return };
                    // Whoever waits for the result hears of a panic by its absence.
                    let _ = catch_unwind(AssertUnwindSafe(job));
                }
            });
        }
        Self { jobs }
    }

    /// Runs `work`. The permit goes with it: a thread cannot be cancelled, so its core is free only when it is done,
    /// whether or not anybody still waits for the result.
    async fn run<T: Send + 'static>(
        &self,
        permit: OwnedSemaphorePermit,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T> {
        let (done, result) = oneshot::channel();
        let job = move || {
            let _permit = permit;
            let _ = done.send(work());
        };
        let lost = || IdentityError::Internal("a password thread died".to_string());
        self.jobs.send(Box::new(job)).map_err(|_| lost())?;
        result.await.map_err(|_| lost())
    }
}

/// argon2id in a memory that its thread keeps. Taken from the heap for each hash, and given back, 20 MiB leave holes into
/// which small things move, so that the next 20 MiB do not fit: after some dozen logins the process was larger by hundreds.
struct Argon2InPlace {
    algorithm: Algorithm,
    version: Version,
    params: Params,
}

thread_local! {
    static MEMORY: RefCell<Vec<Block>> = const { RefCell::new(Vec::new()) };
}

fn argon2() -> Argon2InPlace {
    Argon2InPlace { algorithm: Algorithm::Argon2id, version: Version::V0x13, params: PARAMS }
}

impl PasswordHasher<phc::PasswordHash> for Argon2InPlace {
    fn hash_password_with_salt(&self, password: &[u8], salt: &[u8]) -> HashResult<phc::PasswordHash> {
        let params = &self.params;
        let argon2 = Argon2::new(self.algorithm, self.version, params.clone());
        let mut output = [0; phc::Output::MAX_LENGTH];
        let output = output
            .get_mut(..params.output_len().unwrap_or(Params::DEFAULT_OUTPUT_LEN))
            .ok_or(password_hash::Error::OutputSize)?;
        MEMORY.with_borrow_mut(|memory| {
            memory.resize(params.block_count().max(PARAMS.block_count()), Block::default());
            let blocks = &mut memory[..params.block_count()];
            let hashed = argon2.hash_password_into_with_memory(password, salt, output, blocks);
            // A stored hash may have asked for more than ours do.
            memory.truncate(PARAMS.block_count());
            memory.shrink_to_fit();
            hashed
        })?;
        Ok(phc::PasswordHash {
            algorithm: self.algorithm.ident(),
            version: Some(self.version.into()),
            params: phc::ParamsString::try_from(params)?,
            salt: Some(phc::Salt::new(salt)?),
            hash: Some(phc::Output::new(output)?),
        })
    }
}

/// What verifies a stored hash: by the parameters that it names.
impl CustomizedPasswordHasher<phc::PasswordHash> for Argon2InPlace {
    type Params = Params;

    fn hash_password_customized(
        &self,
        password: &[u8],
        salt: &[u8],
        algorithm: Option<&str>,
        version: Option<u32>,
        params: Params,
    ) -> HashResult<phc::PasswordHash> {
        let algorithm = algorithm.map(Algorithm::try_from).transpose()?.unwrap_or_default();
        let version = version.map(Version::try_from).transpose()?.unwrap_or_default();
        Self { algorithm, version, params }.hash_password_with_salt(password, salt)
    }
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
                passwords.verify("correct horse".into(), Some(hash.clone())).await.unwrap(),
                "{}",
                hash.0
            );
            assert!(!passwords.verify("correct horsf".into(), Some(hash.clone())).await.unwrap());
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
                logins.spawn(async move { passwords.verify("a".into(), None).await.unwrap() });
            }
            assert_eq!(logins.join_all().await, [false; 16]);
        }
        if let (Some(before), Some(after)) = (before, resident_mib()) {
            assert!(after < before + 2 * 20 + 20, "from {before} to {after} MiB");
        }
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
