//! The integration tests: one binary, a file per subject.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails says where")]

#[path = "../support/mod.rs"]
mod support;

mod access;
mod admin;
mod certs;
mod cli;
mod client_config;
mod conf;
mod damage;
mod gate;
mod http_edge;
mod http_registry;
mod keep_evict;
mod layers;
mod pull;
mod push;
mod spec;
mod store;
mod tidy;
mod tls;
mod upstream;
mod upstream_check;
mod words;
