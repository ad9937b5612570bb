//! One address of an upstream, and how it has been doing; and the limits that the upstream set us.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::Method;
use jiff::{SignedDuration, Timestamp};

use super::address::Origin;
use super::authorize::Memory;
use super::breaker::{Admission, Breaker, Weight};
use super::error::{Fault, UpstreamError};
use super::send::Ask;
use crate::gate::Purpose;

/// After a 429 with a long `Retry-After` nothing of that kind is asked for so long; then one more try is worth it.
const LIMIT_REST_MAX: Duration = Duration::from_secs(60);

/// One address of an upstream.
pub(super) struct Endpoint {
    pub origin: Origin,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    breaker: Breaker,
    last_error: Option<UpstreamError>,
    memory: Option<Memory>,
}

impl Endpoint {
    pub fn new(origin: Origin) -> Self {
        Self { origin, state: Mutex::default() }
    }

    pub fn admit(&self, now: Timestamp) -> Admission {
        self.state().breaker.admit(now)
    }

    pub fn succeeded(&self) {
        let mut state = self.state();
        state.breaker.succeeded();
        state.last_error = None;
    }

    /// A failed try: it counts, or it shows that the endpoint lives, or it says nothing about it.
    pub fn note(&self, fault: &Fault, now: Timestamp) {
        use UpstreamError as Error;
        match &fault.error {
            error if fault.counts => {
                let mut state = self.state();
                let rested = state.breaker.resting_until(now).is_some();
                state.breaker.failed(now, Weight::of(error));
                state.last_error = Some(error.clone());
                if let Some(until) = state.breaker.resting_until(now).filter(|_| !rested) {
                    tracing::warn!(endpoint = %self.origin, %until, %error, "`{}` is left alone until {until}: {error}", self.origin);
                }
            }
            Error::NotFound { .. }
            | Error::AnonymousDenied { .. }
            | Error::CredentialsDenied { .. }
            | Error::RateLimited { .. } => self.succeeded(),
            _ => {}
        }
    }

    pub fn forget_failures(&self) {
        self.succeeded();
    }

    pub fn last_error(&self) -> Option<UpstreamError> {
        self.state().last_error.clone()
    }

    pub fn resting_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.state().breaker.resting_until(now)
    }

    /// How it lets us in.
    pub fn memory(&self) -> Option<Memory> {
        self.state().memory.clone()
    }

    pub fn remember(&self, memory: Option<Memory>) {
        self.state().memory = memory;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The 429s in force, per kind of question: Docker Hub limits GETs of manifests, and nothing else.
#[derive(Default)]
pub(super) struct Limits(Mutex<HashMap<(Purpose, Method), Limit>>);

struct Limit {
    from: Timestamp,
    rest_until: Timestamp,
    stated_until: Timestamp,
}

impl Limits {
    /// An error while a limit for this kind of question is in force.
    pub fn check(&self, upstream: &str, ask: &Ask, now: Timestamp) -> Result<(), UpstreamError> {
        let mut limits = self.lock();
        let key = (ask.purpose, ask.method.clone());
        match limits.get(&key) {
            Some(limit) if (limit.from..limit.rest_until).contains(&now) => {
                let left = Duration::try_from(limit.stated_until.duration_since(now)).unwrap_or_default();
                Err(UpstreamError::RateLimited { upstream: upstream.to_owned(), retry_after: Some(left) })
            }
            Some(_) => {
                limits.remove(&key);
                Ok(())
            }
            None => Ok(()),
        }
    }

    pub fn note(&self, error: &UpstreamError, ask: &Ask, now: Timestamp) {
        if let UpstreamError::RateLimited { retry_after: Some(stated), .. } = error {
            let after = |length| SignedDuration::try_from(length).map_or(now, |length| now + length);
            let limit =
                Limit { from: now, rest_until: after(LIMIT_REST_MAX.min(*stated)), stated_until: after(*stated) };
            self.lock().insert((ask.purpose, ask.method.clone()), limit);
        }
    }

    pub fn forget(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(Purpose, Method), Limit>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
