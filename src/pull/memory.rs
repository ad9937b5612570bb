//! What upstreams lately said no to, so that they are not asked the same thing at every pull.
//!
//! Bounded, in memory only, and forgotten after a minute at most.

use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use jiff::{SignedDuration, Timestamp};
use quick_cache::sync::Cache;

use super::miss::FetchError;
use crate::clock::Clock;
use crate::names::Repository;
use crate::oci::{Digest, Reference};
use crate::upstream::UpstreamError;

/// References whose refusal is remembered.
const REFUSALS_MAX: usize = 10_000;
/// How long upstream's "no" is believed.
const NO_LASTS: Duration = Duration::from_secs(60);
/// How long a failure that may pass is not tried again.
const FAILURE_LASTS: Duration = Duration::from_secs(5);
/// How long an upstream that did not answer in time is asked only in the background.
const SLOW_LASTS: Duration = Duration::from_secs(30);
/// Manifests whose surroundings are known to be fetched.
const SURVEYED_MAX: usize = 10_000;
/// After this long a manifest's surroundings are looked at again: signatures come after the image.
const SURVEY_LASTS: Duration = Duration::from_secs(3600);

/// What was asked for. A manifest and a blob of the same digest are two things.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    Manifest(Reference),
    Blob(Digest),
}

pub struct Memory {
    clock: Clock,
    refusals: Cache<(Repository, Subject), (Timestamp, FetchError)>,
    /// Manifests whose surroundings (platforms, referrers, signatures) were all fetched.
    surveyed: Cache<(Repository, Digest), Timestamp>,
    /// By upstream: one entry each, so bounded by the settings.
    slow_until: DashMap<Arc<str>, Timestamp>,
}

impl Memory {
    pub fn new(clock: Clock) -> Self {
        let (refusals, surveyed) = (Cache::new(REFUSALS_MAX), Cache::new(SURVEYED_MAX));
        Self { clock, refusals, surveyed, slow_until: DashMap::new() }
    }

    /// The remembered reason not to ask for this now.
    pub fn refused(&self, repository: &Repository, subject: &Subject) -> Option<FetchError> {
        if self.refusals.is_empty() {
            return None;
        }
        let key = (repository.clone(), subject.clone());
        let (until, why) = self.refusals.get(&key)?;
        if self.clock.now() < until {
            return Some(why);
        }
        self.refusals.remove(&key);
        None
    }

    /// Remembers a failure for as long as it is worth, and hands it back.
    pub fn note(&self, repository: &Repository, subject: &Subject, why: FetchError) -> FetchError {
        let lasts = lasts(&why);
        if !lasts.is_zero() {
            let until = self.clock.now().saturating_add(SignedDuration::try_from(lasts).unwrap_or_default());
            let until = until.unwrap_or(Timestamp::MAX);
            self.refusals.insert((repository.clone(), subject.clone()), (until, why.clone()));
        }
        why
    }

    /// Whether everything around the manifest was fetched, not long ago.
    pub fn is_surveyed(&self, repository: &Repository, manifest: &Digest) -> bool {
        let at = self.surveyed.get(&(repository.clone(), *manifest));
        let age = at.map(|at| Duration::try_from(self.clock.now().duration_since(at)));
        matches!(age, Some(Ok(age)) if age < SURVEY_LASTS)
    }

    pub fn was_surveyed(&self, repository: &Repository, manifest: &Digest) {
        self.surveyed.insert((repository.clone(), *manifest), self.clock.now());
    }

    /// Whether the upstream lately let a client wait too long.
    pub fn is_slow(&self, upstream: &Arc<str>) -> bool {
        self.slow_until.get(upstream).is_some_and(|until| self.clock.now() < *until)
    }

    pub fn was_slow(&self, upstream: &Arc<str>) {
        let until = self.clock.now().saturating_add(SignedDuration::try_from(SLOW_LASTS).unwrap_or_default());
        self.slow_until.insert(upstream.clone(), until.unwrap_or(Timestamp::MAX));
    }

    pub fn answered(&self, upstream: &Arc<str>) {
        self.slow_until.remove(upstream);
    }
}

/// How long a failure is remembered: upstream's own word for as long as it asks, up to a minute; ours and the gate's not at all.
fn lasts(why: &FetchError) -> Duration {
    match why {
        FetchError::Upstream(UpstreamError::NotFound { .. })
        | FetchError::Upstream(UpstreamError::AnonymousDenied { .. }) => NO_LASTS,
        FetchError::Upstream(UpstreamError::RateLimited { retry_after, .. }) => {
            retry_after.unwrap_or(FAILURE_LASTS).min(NO_LASTS)
        }
        FetchError::Upstream(UpstreamError::Refused(_)) => Duration::ZERO,
        FetchError::Upstream(_) | FetchError::InvalidManifest { .. } | FetchError::WrongDigest { .. } => FAILURE_LASTS,
        _ => Duration::ZERO,
    }
}
