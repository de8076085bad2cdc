//! Degraded modes (invariant 9): what goes on, what is refused and how, and that nothing is lost or doubled by it.
//!
//! | module | what is away |
//! |---|---|
//! | [`redis`] | Redis, dead or hung, under load |
//! | [`refused`] | Redis answers, but takes no writes: read-only, or out of memory |
//! | [`slow`] | nothing: Redis answers, but slowly |
//! | [`sql`] | SQL, dead or hung, under load |

pub mod crowd;
mod redis;
mod refused;
mod slow;
mod sql;

use std::time::Duration;

use super::{Database, Scene, assert_alternates};

/// For what has no bound in the contract: long enough for a machine that is busy with something else.
const SOON: Duration = Duration::from_secs(10);
