//! Sessions: one login of an account on one device.

use std::fmt;
use std::sync::Arc;

/// What a heartbeat says of its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HeartbeatWord {
    /// At work: the plain heartbeat.
    Online,
    /// Alive but idle.
    Away,
    /// Any other authenticated request: renews the time and leaves the status as it is.
    Touch,
    /// A login: as `Online`, recorded with the reason `login`.
    Login,
}

impl HeartbeatWord {
    /// The word as `lua/arrive.lua` takes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Away => "away",
            Self::Touch => "touch",
            Self::Login => "login",
        }
    }

    /// The word as `lua/heartbeat.lua` takes it.
    pub const fn letter(self) -> char {
        match self {
            Self::Online => 'o',
            Self::Away => 'a',
            Self::Touch => 't',
            Self::Login => 'l',
        }
    }
}

/// A session's name, as tokens carry it in `sid`: 1 to 128 visible ASCII characters.
///
/// The bound keeps a token minted elsewhere from writing fields of arbitrary size into Redis. Clones share the name: it goes
/// with each heartbeat.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct SessionId(Arc<str>);

impl SessionId {
    /// The longest `sid` that is taken, in bytes.
    pub const MAX_LEN: usize = 128;

    /// Takes a `sid` claim; `None` where it is empty, too long, or holds anything but visible ASCII.
    pub fn parse(sid: &str) -> Option<Self> {
        let fits = !sid.is_empty() && sid.len() <= Self::MAX_LEN && sid.bytes().all(|b| b.is_ascii_graphic());
        fits.then(|| Self(sid.into()))
    }

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SessionId({})", self.0)
    }
}

/// Who speaks: an account, and the session that its token names (`None` for tokens minted without `sid`, which share
/// one session).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionKey {
    /// The account.
    pub user: super::UserId,
    /// The session.
    pub sid: Option<SessionId>,
}
