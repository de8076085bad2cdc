//! Interrupts a statement whose caller has given up.
//!
//! SQLite computes on a thread of the connection, which does not notice that the future waiting for it was dropped. So a
//! progress handler checks a flag every few thousand steps.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::SqliteLease;
use crate::store::Result;
use crate::store::lease::store_error;

/// Between two questions: so many instructions of SQLite's virtual machine, well under a millisecond.
const STEPS: i32 = 10_000;

/// Interrupts the connection's statement when it is dropped, unless it was disarmed.
#[derive(Debug)]
pub struct Interrupt {
    stop: Arc<AtomicBool>,
    is_armed: bool,
}

/// From now on, until it is called again, the connection's statements end when the value is dropped.
///
/// # Errors
/// [`crate::store::StoreError::Unavailable`] where the connection's thread has died.
pub async fn when_dropped(lease: &mut SqliteLease) -> Result<Interrupt> {
    let stop = Arc::new(AtomicBool::new(false));
    let interrupt = Interrupt { stop: Arc::clone(&stop), is_armed: true };
    let mut handle = lease.connection()?.lock_handle().await.map_err(store_error::<sqlx::Sqlite>)?;
    handle.set_progress_handler(STEPS, move || !stop.load(Ordering::Relaxed));
    Ok(interrupt)
}

impl Interrupt {
    /// The statement has come to its end.
    pub fn disarm(mut self) {
        self.is_armed = false;
    }
}

impl Drop for Interrupt {
    fn drop(&mut self) {
        if self.is_armed {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}
