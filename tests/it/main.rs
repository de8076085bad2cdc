//! The integration tests: one binary, so that it links once.

mod readme;
mod servers;
mod support;
