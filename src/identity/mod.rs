//! Identity: who an account is, and who may speak for it.
//!
//! Owns passwords ([`password`]), tokens and the keys of issuers ([`token`]), what may stand in an account's fields
//! ([`rules`]), accounts ([`accounts`]), the first of them ([`administrator`]), login sessions ([`sessions`]) and how often somebody may try ([`limits`]: all that
//! it asks Redis); [`import`] brings in the accounts of an existing product. Decides no presence: where a session ends or an
//! account changes, the caller tells `presence`. Verifying an access token asks nobody (invariant 2), and what costs CPU is
//! done off the threads that serve (`workers`).

mod access;
pub mod accounts;
pub mod administrator;
mod clock;
pub mod import;
pub mod limits;
pub mod password;
pub mod rules;
mod session_ends;
pub mod sessions;
#[cfg(test)]
mod stage;
pub mod token;
mod workers;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use futures_util::future::join_all;

use crate::metrics::Registry;
use crate::model::{Account, Actor, Deed, Millis, Page, SessionKey, UserId};
use crate::store::{Store, StoreError, Trail};

pub use crate::store::TrailFilter;
pub use accounts::{AccountEdit, NewAccount, Registration};
pub use administrator::{ADMIN, FirstAdministrator, check_admin_password};
pub use import::{Candidate, Column, Fate};
pub use limits::{Figures, Limits};
pub use rules::FieldErrors;
pub use session_ends::SessionPolicy;
pub use sessions::{SignedIn, TokenPair};
pub use token::TokenError;

use access::Signatures;
use administrator::Administrators;
use clock::SessionClock;
use password::Passwords;
use token::{IssuerSettings, Keyring, Leeway};

type Result<T> = std::result::Result<T, IdentityError>;

/// What can go wrong when identity is asked.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Fields that do not hold what they must.
    #[error("these fields are not valid: {0}")]
    Invalid(FieldErrors),
    /// A unique field is another account's already.
    #[error("this {field} is taken")]
    Taken {
        /// `username` or `email`.
        field: &'static str,
    },
    /// No such account, or not its password: which of the two is not said.
    #[error("the credentials are wrong")]
    WrongCredentials,
    /// The account may not be present.
    #[error("this account may not sign in")]
    Blocked,
    /// No account can administer yet, so nobody registers or signs in.
    #[error("there is no administrator yet")]
    NoAdministrator,
    /// The change would leave nobody who can administer.
    #[error("this is the last account that can administer")]
    LastAdministrator,
    /// A token that is not good.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// A refresh token was used again after the grace: its session has ended in SQL, and presence must end it too.
    #[error("this refresh token had been used before")]
    RefreshReused(SessionKey),
    /// The session that a refresh token names has ended.
    #[error("this session has ended")]
    SessionEnded,
    /// The session has reached its greatest age and has been ended in SQL; presence must end it too.
    #[error("this session has reached its greatest age")]
    SessionTooOld(SessionKey),
    /// A refresh token that is good, but of another session than the caller's.
    #[error("this refresh token belongs to another session")]
    ForeignRefresh,
    /// Too many tries from one address, or on one account.
    #[error("too many tries; the next may come in {} s", retry_after.as_secs_f64().ceil())]
    TooMany {
        /// After how long the next is admitted.
        retry_after: Duration,
    },
    /// More passwords wait to be checked than may.
    #[error("too many passwords wait to be checked")]
    Overloaded,
    /// More tokens of issuers wait to be verified than may.
    #[error("too many tokens wait to be verified")]
    TokensOverloaded,
    /// The machine failed: no randomness, no memory, a dead thread.
    #[error("internal failure: {0}")]
    Internal(String),
    /// The record of an administrator's action could not be written, so the action was not taken.
    #[error(transparent)]
    Unrecorded(StoreError),
    /// SQL is away, or failed.
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for IdentityError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Taken { field } => Self::Taken { field },
            StoreError::LastAdministrator => Self::LastAdministrator,
            StoreError::Unrecorded(_) => Self::Unrecorded(error),
            other => Self::Store(other),
        }
    }
}

/// How identity is set up. Its `Debug` shows no secret.
#[derive(Clone)]
pub struct Settings {
    /// How long an access token is good for.
    pub access_ttl: Duration,
    /// How long a refresh token is good for.
    pub refresh_ttl: Duration,
    /// For how long after its first use a refresh token may be used again.
    pub refresh_grace: Duration,
    /// How many sessions an account may have, and how old one may become.
    pub sessions: SessionPolicy,
    /// The HS256 secret that signs, 32 bytes or more.
    pub secret: String,
    /// Further secrets whose tokens are taken.
    pub trusted_secrets: Vec<String>,
    /// By how much the clocks of others that sign with these secrets may be off.
    pub leeway: Leeway,
    /// Identity providers whose access tokens are taken.
    pub issuers: Vec<IssuerSettings>,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("access_ttl", &self.access_ttl)
            .field("refresh_ttl", &self.refresh_ttl)
            .field("refresh_grace", &self.refresh_grace)
            .field("sessions", &self.sessions)
            .field("trusted_secrets", &self.trusted_secrets.len())
            .field("leeway", &self.leeway)
            .field("issuers", &self.issuers)
            .finish_non_exhaustive()
    }
}

/// The service; clones share one inside.
#[derive(Clone)]
pub struct Identity {
    inner: Arc<Inner>,
}

struct Inner {
    store: Arc<dyn Store>,
    keyring: Keyring,
    signatures: Signatures,
    passwords: Passwords,
    limits: Limits,
    session_clock: SessionClock,
    administrators: Administrators,
    /// Until when it is known how long hashes that were made elsewhere take.
    pace_learnt: tokio::sync::Mutex<Option<tokio::time::Instant>>,
    /// Whether it has been learnt at all.
    pace_is_known: AtomicBool,
    access_ttl: Duration,
    refresh_ttl: Duration,
    refresh_grace: Duration,
    sessions: SessionPolicy,
}

impl Identity {
    /// Identity over this database, with these limits to what clients may try.
    pub fn new(store: Arc<dyn Store>, settings: &Settings, limits: Limits) -> Self {
        let keyring = Keyring::new(&settings.secret, &settings.trusted_secrets)
            .with_leeway(settings.leeway)
            .with_issuers(&settings.issuers);
        Self {
            inner: Arc::new(Inner {
                store,
                signatures: Signatures::of(&keyring),
                keyring,
                passwords: Passwords::new(),
                session_clock: SessionClock::new(limits.live().cloned()),
                limits,
                administrators: Administrators::default(),
                pace_learnt: tokio::sync::Mutex::default(),
                pace_is_known: AtomicBool::new(false),
                access_ttl: settings.access_ttl,
                refresh_ttl: settings.refresh_ttl,
                refresh_grace: settings.refresh_grace,
                sessions: settings.sessions,
            }),
        }
    }

    /// Keeps the public keys of the issuers up to date, for ever. Verifying works with those that are known.
    pub async fn keep_keys(&self) {
        join_all(self.inner.keyring.issuers().iter().map(|issuer| token::keeper::keep(issuer))).await;
        // Nothing to fetch is no end: whoever supervises takes one for a defect.
        std::future::pending::<()>().await;
    }

    /// Enters what this room counts.
    pub fn register_metrics(&self, registry: &mut Registry) {
        self.inner.limits.register(registry);
        self.inner.signatures.register(registry);
    }

    /// One account as SQL has it now.
    pub async fn account(&self, id: UserId) -> Result<Option<Account>> {
        Ok(self.inner.store.account(id).await?)
    }

    /// Records an administrator's action that SQL takes no part in, before it is taken; actions that change SQL are recorded
    /// in the transaction that changes it.
    ///
    /// # Errors
    /// [`IdentityError::Unrecorded`], [`IdentityError::Store`]: then the action must not be taken.
    pub async fn add_to_trail(&self, by: &Actor, deed: &Deed) -> Result<()> {
        Ok(self.inner.store.add_to_trail(by, deed).await?)
    }

    /// A page of what administrators did, newest first.
    pub async fn trail(&self, filter: &TrailFilter, page: Page) -> Result<Trail> {
        Ok(self.inner.store.trail(filter, page).await?)
    }
}

/// The time of this machine: tokens carry it. Login sessions go by [`clock::SessionClock`].
fn now() -> Millis {
    Millis::from_utc(chrono::Utc::now())
}

/// A span in whole milliseconds.
fn span_ms(span: Duration) -> i64 {
    i64::try_from(span.as_millis()).unwrap_or(i64::MAX)
}

/// 128 random bits as 22 characters of base64url: the name of a token.
fn token_name() -> Result<String> {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| IdentityError::Internal(format!("no randomness: {error}")))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

/// How long the name of a session is, characters of six random bits each. It is no secret, only unlike all others: among
/// a hundred million stored ones a login finds its name taken once in ten thousand million times, and fails. With it the
/// presence key of a user with one session is a listpack of 64 bytes, which is one of jemalloc's sizes; a character more and
/// it takes 80.
const SESSION_NAME: usize = 10;

/// A name for a new session.
fn session_name() -> Result<String> {
    let mut name = token_name()?;
    name.truncate(SESSION_NAME);
    Ok(name)
}
