//! A drill: one task panics on purpose, for the test that shows what follows (`docs/decisions/0001`).

use std::sync::OnceLock;

static WHERE: OnceLock<String> = OnceLock::new();

/// From now on the task of this name panics (`PRESENCE_PANIC_IN`).
pub fn announce(task: &str) {
    let _ = WHERE.set(task.to_string());
}

/// Where a task of this name may be told to panic.
///
/// # Panics
/// On purpose.
pub fn drill(task: &str) {
    assert!(WHERE.get().is_none_or(|told| told != task), "a drill: PRESENCE_PANIC_IN={task}");
}
