//! sealock: a self-hosted OCI registry proxy that fills from upstream only while a gate is open.
//!
//! This file is the architecture. Blank lines part the modules into layers: a module uses only modules in layers below
//! its own, never its neighbours (`tests/it/layers.rs` holds it to that).
//!
//! A pull goes down once and comes back once; what returns is a value, never a callback:
//! ```text
//! GET /v2/security-products/semgrep/manifests/6
//!  server ── route, names        -> upstream gitlab, repository security-products/semgrep, policy
//!   ├ access                      who asks, and whether they may: before anything is looked for
//!   └ pull ── store              kept? when last checked? complete?        -> serve
//!       └── upstream ── gate     permit, dial, send; verify, keep, point the tag
//! GET …/blobs/sha256:…           the same way; a miss joins or starts a fill, and every client follows the fill's file
//! PUT …/manifests/…, …/uploads/  server, then push ── store: nothing upstream is asked
//! ```
//!
//! `keep` holds the jobs: they use what is below them and never one another; the admin API and `app` use them.

#[cfg(any(test, fuzzing))]
pub mod fuzz;

pub mod cli;

pub mod app;

pub mod config;

pub mod server;

pub mod keep;

pub mod pull;
pub mod push;

pub mod access;
pub mod store;
pub mod upstream;

pub mod gate;

pub mod names;
pub mod schedule;
pub mod tls;

pub mod files;

pub mod clock;
pub mod oci;
pub mod secret;
pub mod size;
