//! The integration tests: one binary, a file per subject.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails says where")]

#[path = "../support/mod.rs"]
mod support;

mod gate;
mod layers;
mod store;
mod upstream;
mod words;
