//! Text that comes from outside, before it becomes a parameter.
//!
//! PostgreSQL takes no NUL in a text; both databases refuse it alike, and searches for it find nothing.

use super::{AccountPatch, NewAccount, Result, StoreError};

/// The longest user agent that is kept, in characters.
const USER_AGENT_MAX: usize = 256;

/// Whether the text can be stored or compared at all.
pub fn fits(text: &str) -> bool {
    !text.contains('\0')
}

/// Refuses a new account that cannot be kept.
pub fn check_new(new: &NewAccount) -> Result<()> {
    check("username", &new.username)?;
    check("email", &new.email)?;
    check("password", &new.password_hash.0)
}

/// Refuses a patch that cannot be kept.
pub fn check_patch(patch: &AccountPatch) -> Result<()> {
    check("email", patch.email.as_deref().unwrap_or_default())?;
    check("password", patch.password_hash.as_ref().map_or("", |hash| &hash.0))
}

fn check(field: &'static str, text: &str) -> Result<()> {
    if fits(text) { Ok(()) } else { Err(StoreError::Unfit { field }) }
}

/// The user agent as it is kept, without control characters.
pub fn user_agent(said: &str) -> String {
    said.chars().filter(|c| !c.is_control()).take(USER_AGENT_MAX).collect()
}
