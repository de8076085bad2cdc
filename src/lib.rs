//! presenced: who is online, right and on time.
//!
//! The house, and who may knock at whose door (`tests/it/rooms.rs` holds every `use crate::` to it):
//!
//! | room | owns | may import |
//! |---|---|---|
//! | [`model`] | plain types and pure rules: the account rule, the merge, the chain, the comparison, the limit | nothing |
//! | [`files`] | folders and files for their owner alone: modes, owners | nothing |
//! | [`metrics`] | the counters' types and the Prometheus format; each room owns its own numbers | nothing |
//! | [`live`] | everything Redis: keys, scripts, stream, expiry events, connections, the embedded server | `model`, `files` |
//! | [`store`] | everything SQL: one folder per database behind one trait | `model`, `files` |
//! | [`identity`] | passwords, tokens and the keys of issuers, accounts, login sessions, rate limits | `model`, `metrics`, `store`, `live` |
//! | [`presence`] | heartbeat, leave, set status, read; the group commit; the fence | `model`, `metrics`, `store`, `live` |
//! | [`tasks`] | the loops: sweep, listen, persist, reconcile, account changes, ended sessions, `last_seen` | `presence`, `store`, `live`, `model`, `metrics` |
//! | [`http`] | one route table, extractors, errors, handlers, the accept loop | `presence`, `identity`, `model`, `metrics` |
//! | [`app`] | settings; the one place that builds and wires | all |
//!
//! `docs/architecture.md` walks through a heartbeat, a token, an expiry and a status read.

pub mod app;
pub mod files;
pub mod http;
pub mod identity;
pub mod live;
pub mod metrics;
pub mod model;
pub mod presence;
pub mod store;
pub mod tasks;
