//! How often clients may try.

use clap::Args;

use crate::identity::{Figures, Limits};
use crate::live::LiveSet;

/// The settings of the limits.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits")]
pub struct LimitSettings {
    /// How often clients may try: on, off, or a list of those that differ from the defaults, which are
    /// login:address=60/1m,login:account=10/1m,login:total=60/1m,register:address=30/5m,refresh:address=600/1m,
    /// refresh:account=60/1m.
    /// 60/1m is 60 at once, and in each minute as many again, one by one; each may be off too
    #[arg(long, env = "PRESENCE_RATE_LIMITS", default_value = "on", global = true, value_name = "LIMITS")]
    pub rate_limits: Figures,
}

impl LimitSettings {
    /// The limits, counted in this Redis.
    pub(in crate::app) fn limits(&self, live: &LiveSet) -> Limits {
        Limits::new(self.rate_limits.clone(), Some(live.clone()))
    }
}
