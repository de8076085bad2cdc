//! What the integration tests stand on.

#![allow(dead_code, reason = "this is a toolbox: not every tool is in use at every moment")]

pub mod poll;
pub mod postgres;
pub mod tether;
