//! What the integration tests stand on: real servers of their own, the real binary, and bounded waiting.
//!
//! | module | gives |
//! |---|---|
//! | [`tether`] | a child process that ends when its test ends, however that ends |
//! | [`postgres`] | a fresh database per test on one private server, or a server of the test's own |
//! | [`clock`] | a server's own wall clock, which a test can step |
//! | [`redis`] | a private redis-server per test |
//! | [`cluster`] | a private Redis Cluster of six nodes |
//! | [`sentinel`] | a private Redis with replicas and sentinels |
//! | [`process`] | the real `presenced` binary |
//! | [`http`] | a client for its API |
//! | [`mint`] | access tokens minted elsewhere |
//! | [`metrics`] | what `GET /metrics` says, checked to the letter |
//! | [`sql`] | plain SQL beside the service |
//! | [`dice`] | chance that can be repeated |
//! | [`proxy`] | a TCP proxy that cuts connections in the middle of a command |
//! | [`poll`] | waiting with a bound: the only place that sleeps |
//! | [`provider`] | an identity provider's keys on a web server that can fail in every way |
//! | [`python`] | the real packages of the existing product |
//! | [`tls`] | certificates, and clients that trust them |
//! | [`session`] | the runner for scripted sessions in Markdown |
//!
//! No system service is used, and a missing server is a failure, never a skip. `scripts/install test` installs what
//! is missing.

#![allow(dead_code, reason = "this is a toolbox: not every tool is in use at every moment")]

pub mod clock;
pub mod cluster;
pub mod dice;
pub mod http;
pub mod metrics;
pub mod mint;
pub mod poll;
pub mod postgres;
pub mod process;
pub mod provider;
pub mod proxy;
pub mod python;
pub mod redis;
pub mod sentinel;
pub mod session;
pub mod sql;
pub mod tether;
pub mod tls;
