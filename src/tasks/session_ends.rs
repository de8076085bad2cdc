//! Tells Redis of the ends of sessions that SQL marks as untold, in the background: blocks are told by
//! [`super::accounts`], and never wait for this.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::Context;
use crate::presence::Trouble;

/// Periodic pass, in case a wake-up was missed.
const ROUND: Duration = Duration::from_mins(5);
/// How long ends gather before a pass: whoever ends a session by the API tells Redis directly, so nothing waits for this.
const GATHER: Duration = Duration::from_millis(250);
/// Until the next pass while another transaction holds rows.
const HELD: Duration = Duration::from_secs(1);
/// Between two attempts while Redis or SQL is away: the first, and the longest.
const RETRY: Duration = Duration::from_millis(250);
const RETRY_AT_LAST: Duration = Duration::from_secs(2);

static TROUBLE: Trouble = Trouble::new("ends of sessions cannot be told to Redis for now; they wait in SQL");

pub(super) async fn run(context: &Context) {
    let mut retry = RETRY;
    loop {
        let pause = match context.presence.tell_session_ends().await {
            Ok(all) => {
                TROUBLE.over();
                retry = RETRY;
                if all { ROUND } else { HELD }
            }
            Err(error) => {
                TROUBLE.note(&error);
                let pause = retry;
                retry = (retry * 2).min(RETRY_AT_LAST);
                pause
            }
        };
        if timeout(pause, context.presence.untold_session_ends()).await.is_ok() {
            sleep(GATHER).await;
        }
    }
}
