//! What can be fetched again: which upstreams may be asked now, and whether they still have what came from them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::stream::{self, StreamExt};

use crate::clock::Clock;
use crate::gate::Gate;
use crate::names::{Origin, Repository};
use crate::oci::Reference;
use crate::store::{Evictable, GarbageKind, Origins, Store, StoreError};
use crate::upstream::{Upstream, UpstreamError};

/// Questions at one time.
const ASKED_AT_ONCE: usize = 8;
/// Longest wait for an answer; without one nothing goes.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long what upstream does not have, or was not heard about, is not asked about again.
const DOUBT_FOR: Duration = Duration::from_secs(3600);
/// Most such things that are remembered.
pub const DOUBTS_MAX: usize = 10_000;

/// The upstreams, and what they do not have any more.
#[derive(Default)]
pub struct Reach {
    gate: Option<Gate>,
    upstreams: Vec<Arc<Upstream>>,
    /// Until when on the clock's `running`.
    doubts: Mutex<HashMap<Evictable, Duration>>,
}

impl Reach {
    pub fn new(gate: Gate, upstreams: Vec<Arc<Upstream>>) -> Self {
        Self { gate: Some(gate), upstreams, doubts: Mutex::default() }
    }

    /// Hosts of upstreams for which the gate is open, and that are not being left alone.
    pub fn open(&self) -> Origins {
        self.open_upstreams().map(|upstream| Arc::from(upstream.host())).collect()
    }

    /// Whether that upstream may be asked now.
    pub fn is_open(&self, origin: &Origin) -> bool {
        self.upstream(origin).is_some()
    }

    /// Those of `units` that every upstream that they came from still has: what it deleted is kept here alone.
    pub async fn still_there(
        &self,
        store: &Store,
        units: &[Evictable],
        clock: &Clock,
    ) -> Result<Vec<Evictable>, StoreError> {
        let asked: Vec<Evictable> = units.iter().filter(|unit| !self.is_doubtful(unit, clock)).cloned().collect();
        let asking = asked.into_iter().map(|unit| async move {
            for place in store.places_of(&unit).await? {
                if let Err(why) = self.ask(&place, &unit).await {
                    tracing::warn!(
                        repository = %place, digest = %unit.digest,
                        "{} of {place} stays although room is short: it cannot be fetched again, {why}", unit.digest
                    );
                    return Ok((unit, false));
                }
            }
            Ok::<_, StoreError>((unit, true))
        });
        let mut asking = stream::iter(asking).buffered(ASKED_AT_ONCE);
        let mut there = Vec::new();
        while let Some(answer) = asking.next().await {
            match answer? {
                (unit, true) => there.push(unit),
                (unit, false) => self.doubt(unit, clock),
            }
        }
        Ok(there)
    }

    async fn ask(&self, place: &Repository, unit: &Evictable) -> Result<(), String> {
        let upstream = self.upstream(&place.origin).ok_or("upstream may not be asked now")?;
        let asking = async {
            match unit.kind {
                GarbageKind::Manifest => has_manifest(upstream, place, unit).await,
                _ => upstream.has_blob(&place.name, &unit.digest).await.map(drop),
            }
        };
        let answer = tokio::time::timeout(ANSWER_WAIT_MAX, asking).await;
        answer.map_err(|_| "upstream did not answer in time".to_owned())?.map_err(|why| why.to_string())
    }

    fn upstream(&self, origin: &Origin) -> Option<&Arc<Upstream>> {
        let Origin::Upstream(host) = origin else { return None };
        self.open_upstreams().find(|upstream| upstream.host() == host.as_ref())
    }

    fn open_upstreams(&self) -> impl Iterator<Item = &Arc<Upstream>> {
        let open = |name: &str| self.gate.as_ref().is_some_and(|gate| gate.refusal(name).is_none());
        self.upstreams.iter().filter(move |one| open(one.name()) && one.health().resting_until.is_none())
    }

    fn is_doubtful(&self, unit: &Evictable, clock: &Clock) -> bool {
        let doubts = self.doubts.lock().unwrap_or_else(PoisonError::into_inner);
        doubts.get(unit).is_some_and(|until| clock.running() < *until)
    }

    fn doubt(&self, unit: Evictable, clock: &Clock) {
        let mut doubts = self.doubts.lock().unwrap_or_else(PoisonError::into_inner);
        if doubts.len() >= DOUBTS_MAX {
            doubts.clear();
        }
        doubts.insert(unit, clock.running() + DOUBT_FOR);
    }
}

async fn has_manifest(upstream: &Upstream, place: &Repository, unit: &Evictable) -> Result<(), UpstreamError> {
    let reference = Reference::Digest(unit.digest);
    match upstream.resolve(&place.name, &reference).await?.digest {
        Some(_) => Ok(()),
        // A registry without HEAD.
        None => upstream.manifest(&place.name, &reference).await.map(drop),
    }
}
