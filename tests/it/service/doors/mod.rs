//! The doors: who gets in, how slow clients may be, TLS, other origins, and what nobody gets to see.

mod browsers;
mod exposure;
mod secrets;
mod slow;
mod tls;
