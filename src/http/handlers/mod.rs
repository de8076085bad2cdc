//! The handlers, one file per noun. Each reads as its row of the contract: take, do, answer.

pub mod admin;
pub mod health;
pub mod identity;
pub mod presence;
pub mod sessions;
pub mod trail;
