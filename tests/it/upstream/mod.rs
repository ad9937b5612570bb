//! One remote registry, seen through `Upstream`, against a far side over real sockets.

mod accounts;
mod blobs;
mod credentials;
mod faults;
mod lists;
mod manifests;
mod setup;

use std::fmt::Write as _;

use sealock::clock::Clock;
use sealock::gate::{Gate, GateSettings, Order};
use sealock::oci::{Digest, Reference, RepositoryName};
use sealock::upstream::{BlobStream, Upstream, UpstreamError, UpstreamSettings};
use tempfile::TempDir;

use crate::support::far::FarRegistry;

/// A password that must never be seen where it does not belong.
const CANARY: &str = "canary-4711-password";
const APP: &str = "team/app";

/// An upstream behind an open gate, with a hand-wound clock.
struct Site {
    upstream: Upstream,
    gate: Gate,
    clock: Clock,
    data: TempDir,
}

impl Site {
    /// Of `far`, with more lines of settings.
    async fn of(far: &FarRegistry, more: &str) -> Self {
        Self::at(&[far.origin()], more).await
    }

    async fn at(endpoints: &[String], more: &str) -> Self {
        let mut toml = format!("host = 'far.test'\nendpoints = {endpoints:?}\n{more}\n");
        if !more.contains("retry_pause") {
            writeln!(toml, "retry_pause = '1ms'").unwrap();
        }
        let settings: UpstreamSettings = toml::from_str(&toml).unwrap();
        let clock = Clock::wound("2026-01-01T00:00:00Z".parse().unwrap());
        let data = TempDir::new().unwrap();
        let gate = Gate::load(&GateSettings::default(), data.path(), clock.clone()).unwrap();
        gate.open(order(), None, None).await.unwrap();
        let upstream = Upstream::new("far", &settings, &gate, &clock).unwrap();
        Self { upstream, gate, clock, data }
    }

    /// With a username and the canary for a password.
    async fn with_password(far: &FarRegistry, more: &str) -> Self {
        let secrets = TempDir::new().unwrap();
        let file = secrets.path().join("password");
        std::fs::write(&file, format!("{CANARY}\n")).unwrap();
        Self::of(far, &format!("username = 'robot'\npassword_file = {file:?}\n{more}")).await
    }

    fn advance(&self, seconds: i64) {
        self.clock.advance(jiff::SignedDuration::from_secs(seconds));
    }

    async fn manifest(&self, reference: &str) -> Result<Vec<u8>, UpstreamError> {
        let fetched = self.upstream.manifest(&app(), &tag(reference)).await?;
        Ok(fetched.bytes.to_vec())
    }

    async fn blob(&self, digest: &Digest, from: u64) -> Result<(u64, Vec<u8>), UpstreamError> {
        let mut stream = self.upstream.blob(&app(), digest, from).await?;
        let bytes = read(&mut stream).await?;
        Ok((stream.start, bytes))
    }

    /// Everything that was written down.
    async fn audit(&self) -> String {
        self.gate.flush().await.unwrap();
        std::fs::read_to_string(self.data.path().join("audit/audit.jsonl")).unwrap()
    }
}

async fn read(stream: &mut BlobStream) -> Result<Vec<u8>, UpstreamError> {
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

fn order() -> Order {
    Order { who: "test".to_owned(), why: None }
}

fn app() -> RepositoryName {
    APP.parse().unwrap()
}

fn name(text: &str) -> RepositoryName {
    text.parse().unwrap()
}

fn tag(text: &str) -> Reference {
    text.parse().map_or_else(|_| Reference::Tag(text.parse().unwrap()), Reference::Digest)
}

/// Bytes that differ from place to place, so that a wrong resume shows.
fn patterned(size: usize) -> Vec<u8> {
    (0..size).map(|at| (at * 31 + at / 251) as u8).collect()
}
