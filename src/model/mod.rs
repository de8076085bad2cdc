//! Plain types and pure rules: what an account, a status, a session and a transition are, and the few functions
//! that decide about them.
//!
//! Owns the account rule ([`account::may_be_present`]), the merge ([`merge::effective`]), the chain
//! ([`history::chain`]), the rule of equality of login names ([`login_name`]) and the comparison ([`audit::compare`]). Does no I/O, reads no clock, imports no other room.

pub mod account;
pub mod audit;
pub mod escaped;
pub mod history;
pub mod limit;
pub mod login_name;
pub mod merge;
pub mod page;
pub mod session;
pub mod status;
pub mod time;
pub mod trail;
pub mod transition;

pub use account::{Account, AccountStatus, Role, UserId};
pub use escaped::{Escaped, EscapingWriter};
pub use merge::{Evidence, Presence};
pub use page::{OnlineCursor, Page, Place};
pub use session::{HeartbeatWord, SessionId, SessionKey};
pub use status::OnlineStatus;
pub use time::Millis;
pub use trail::{Action, Actor, Change, Deed, TrailEntry};
pub use transition::{Reason, StreamId, Transition};
