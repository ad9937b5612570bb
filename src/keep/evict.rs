//! Eviction: under disk pressure, what can be fetched again goes, the longest unused first.
//!
//! Kept here:
//! * 7: only while the gate is open for the upstreams that it came from, only what they say they still have, and only what
//!   was not used for as long as the store has seen pass: a clock that jumps evicts nothing.
//! * 8: never what was pushed, imported or pinned, what a tag of these can be turned back to, or what is being filled.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::pressure::{Pressure, Sum};
use super::reach::Reach;
use super::{KeepSettings, LINES_MAX};
use crate::clock::Clock;
use crate::size::Size;
use crate::store::{EvictRules, Evicted, Store, StoreError};

/// Nothing goes that was used less long ago, however short the grace time is.
pub const EVICT_REST_MIN: Duration = Duration::from_secs(15 * 60);
/// Units that are asked about, and then evicted, together.
const AT_ONCE: usize = 16;

/// What an eviction came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvictReport {
    /// How short room was.
    pub pressure: Pressure,
    /// What was to go.
    pub wanted_bytes: u64,
    pub manifests: u64,
    pub blobs: u64,
    pub size_bytes: u64,
    pub tags: u64,
    /// At most [`LINES_MAX`].
    pub lines: Vec<Evicted>,
}

/// Makes room.
pub struct Evictor {
    pub reach: Reach,
    /// So that it is said once, and not every minute, that there is nothing that could go.
    stuck: AtomicBool,
}

impl EvictReport {
    fn add(&mut self, gone: Vec<Evicted>) {
        for one in gone {
            let (digest, size_bytes) = (one.unit.digest, one.size_bytes);
            let used_at = one.unit.used_at;
            info!(%digest, size_bytes, %used_at, tags = ?one.tags, "evicted {digest}, {}", told(&one));
            self.manifests += one.manifests;
            self.blobs += one.blobs;
            self.size_bytes += one.size_bytes;
            self.tags += one.tags.len() as u64;
            if self.lines.len() < LINES_MAX {
                self.lines.push(one);
            }
        }
    }

    pub(super) fn sum(&self) -> Sum {
        Sum { manifests: self.manifests, blobs: self.blobs, size_bytes: self.size_bytes, tags: self.tags }
    }
}

fn told(one: &Evicted) -> String {
    let used = format!("{}, last used {}", Size(one.size_bytes), one.unit.used_at.strftime("%Y-%m-%d %H:%M UTC"));
    match one.tags.as_slice() {
        [] => used,
        tags => format!("{used}; until they are pulled again, nothing is kept for {}", tags.join(", ")),
    }
}

impl Evictor {
    pub fn new(reach: Reach) -> Self {
        Self { reach, stuck: AtomicBool::new(false) }
    }

    /// Evicts until the limits are kept; with `wanted`, until so many bytes that found no room may have some. `None`:
    /// there was nothing to do.
    pub async fn run(
        &self,
        store: &Store,
        settings: &KeepSettings,
        clock: &Clock,
        wanted: Option<u64>,
    ) -> Result<Option<EvictReport>, StoreError> {
        if !settings.evicts() {
            return Ok(None);
        }
        let pressure = Pressure::of(store, settings).await?;
        let wanted_bytes = match wanted {
            None => pressure.to_go(),
            Some(bytes) if store.check_room(bytes).is_ok() => 0,
            Some(bytes) => pressure.to_go_for(bytes),
        };
        if wanted_bytes == 0 {
            self.stuck.store(false, Ordering::Relaxed);
            return Ok(None);
        }
        // Files of an eviction that was killed.
        store.remove_unknown_trash().await?;
        let mut report = EvictReport { pressure, wanted_bytes, ..EvictReport::default() };
        if let Some(since) = store.before(settings.grace.0.max(EVICT_REST_MIN)) {
            let rules = || EvictRules { since, open: self.reach.open() };
            for some in store.evictable(&rules()).await?.chunks(AT_ONCE) {
                if report.size_bytes >= wanted_bytes {
                    break;
                }
                let there = self.reach.still_there(store, some, clock).await?;
                if there.is_empty() {
                    continue;
                }
                // The gate may have closed meanwhile.
                report.add(store.evict(there, wanted_bytes - report.size_bytes, &rules()).await?);
            }
        }
        self.tell(&report);
        Ok(Some(report))
    }

    fn tell(&self, report: &EvictReport) {
        let EvictReport { size_bytes, wanted_bytes, manifests, blobs, .. } = *report;
        if size_bytes > 0 {
            info!(size_bytes, manifests, blobs, "room was short: evicted {} of what upstream has", Size(size_bytes));
        }
        if size_bytes >= wanted_bytes {
            self.stuck.store(false, Ordering::Relaxed);
        } else if !self.stuck.swap(true, Ordering::Relaxed) {
            warn!(
                lacks_bytes = wanted_bytes - size_bytes,
                "room is short by {}, and the rest may not go: it was pushed, imported, pinned or used lately, or the gate \
                 is closed; delete or unpin something, make the disk larger, or open the gate",
                Size(wanted_bytes - size_bytes)
            );
        }
    }
}
