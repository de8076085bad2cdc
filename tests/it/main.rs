//! The integration tests: one binary, so that it links once.

mod api;
mod faults;
mod house;
mod model;
mod readme;
mod rooms;
mod scripts;
mod servers;
mod service;
mod store;
mod support;
