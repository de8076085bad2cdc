//! How many login sessions an account may have, and how old one may become.

use std::time::Duration;

use clap::Args;

use super::parse;
use crate::identity::SessionPolicy;

/// The settings of login sessions.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Sessions")]
pub struct SessionSettings {
    /// Login sessions that an account may have alive; a login beyond that ends the oldest (1 to 1000)
    #[arg(long, env = "PRESENCE_MAX_SESSIONS", default_value_t = SessionPolicy::MOST, global = true, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub max_sessions: u32,

    /// The greatest age of a login session, or off: a refresh beyond it ends the session (1s to 3650d)
    #[arg(long, env = "PRESENCE_SESSION_MAX_AGE", default_value = "off", global = true, value_name = "TIME", value_parser = parse::session_max_age)]
    pub session_max_age: MaxAge,
}

/// The greatest age of a session; `None` for no bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxAge(pub Option<Duration>);

impl SessionSettings {
    /// What identity needs of them.
    pub(in crate::app) const fn policy(&self) -> SessionPolicy {
        SessionPolicy { most_alive: self.max_sessions, max_age: self.session_max_age.0 }
    }
}
