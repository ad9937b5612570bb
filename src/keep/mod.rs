//! The jobs that look after what is kept: collection of what nothing refers to and its undoing, retention of tags,
//! eviction when room is short, and the scrub.
//!
//! They run beside the serving of clients, without a time in which nothing can be pushed: what a job finds is a guess,
//! and the store looks again in the transaction that acts on it. Invariants kept here: 7 and 8.

mod evict;
mod gc;
mod pressure;
mod reach;
mod retain;
mod retire;
mod scrub;
mod settings;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::error;

pub use evict::{EVICT_REST_MIN, EvictReport};
pub use gc::{CollectReport, LINES_MAX};
pub use pressure::{Done, KeepStatus, Pressure, Sum};
pub use reach::DOUBTS_MAX;
pub use retain::{Order, RetainRule};
pub use retire::Retired;
pub use scrub::{BAD_MAX, Bad, Progress, VerifyReport};
pub use settings::{HISTORY_MAX, KeepSettings};

use crate::clock::Clock;
use crate::gate::Gate;
use crate::names::Repository;
use crate::store::{Restored, Store, StoreError};
use crate::upstream::Upstream;
use evict::Evictor;
use reach::Reach;
use scrub::Cursor;

/// How often it is looked whether a job is due.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// Under which the store remembers when the last collection was, and what it came to.
const COLLECT: &str = "collect";
/// And the last eviction.
const EVICT: &str = "evict";
/// Under which it remembers how far the scrub has come; an empty position: to its end.
const SCRUB: &str = "scrub";

/// The jobs of one store. Cheap to clone.
#[derive(Clone)]
pub struct Keep(Arc<Inner>);

struct Inner {
    store: Store,
    settings: KeepSettings,
    clock: Clock,
    /// Held by the one job that may throw away or put back.
    broom: tokio::sync::Mutex<()>,
    evictor: Evictor,
    /// Of the `verify` that is under way, or was the last.
    progress: Mutex<Arc<Progress>>,
}

/// Why a job did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error("a collection is under way")]
    Busy,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl KeepError {
    /// What the reader can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Busy => Some("try again when it has ended"),
            Self::Store(why) => why.hint(),
        }
    }
}

impl Keep {
    /// For a store whose content can be fetched from nowhere.
    pub fn new(store: Store, settings: KeepSettings, clock: Clock) -> Self {
        Self::reaching(store, settings, clock, Reach::default())
    }

    /// What came from `upstreams` can be fetched again while the gate is open for them.
    pub fn with_upstreams(
        store: Store,
        settings: KeepSettings,
        clock: Clock,
        gate: Gate,
        upstreams: impl IntoIterator<Item = Arc<Upstream>>,
    ) -> Self {
        Self::reaching(store, settings, clock, Reach::new(gate, upstreams.into_iter().collect()))
    }

    fn reaching(store: Store, settings: KeepSettings, clock: Clock, reach: Reach) -> Self {
        let (broom, evictor, progress) = (tokio::sync::Mutex::default(), Evictor::new(reach), Mutex::default());
        Self(Arc::new(Inner { store, settings, clock, broom, evictor, progress }))
    }

    /// By hand: removes tags as the rules say, throws away what nothing refers to, and removes for good what was thrown
    /// away long enough ago. `dry_run`: only tells what would go.
    pub async fn collect(&self, dry_run: bool) -> Result<CollectReport, KeepError> {
        let inner = &self.0;
        let _broom = inner.broom.try_lock().map_err(|_| KeepError::Busy)?;
        let freed_bytes = match self.before(inner.settings.trash_for.0) {
            Some(before) if !dry_run => inner.store.empty_trash(before).await?,
            _ => 0,
        };
        // Where nothing is old enough yet, the rules still let tags go.
        let since = self.before(inner.settings.grace.0).unwrap_or(Timestamp::MIN);
        let report = self.collect_since(since, dry_run).await?;
        Ok(CollectReport { freed_bytes, ..report })
    }

    /// What was stamped then or before is surely `age` old; `None`: nothing is. No age at all means at once, which the
    /// clock's drift must not put off.
    fn before(&self, age: Duration) -> Option<Timestamp> {
        if age.is_zero() { Some(self.0.clock.now()) } else { self.0.store.before(age) }
    }

    async fn collect_since(&self, since: Timestamp, dry_run: bool) -> Result<CollectReport, StoreError> {
        let Inner { store, settings, evictor, .. } = &*self.0;
        let report = gc::collect(store, settings, &evictor.reach, since, dry_run).await?;
        if !dry_run {
            store.note_job(COLLECT, &report.sum().to_text()).await?;
        }
        Ok(report)
    }

    /// How short room is, and what the jobs did last.
    pub async fn status(&self) -> Result<KeepStatus, StoreError> {
        let Inner { store, settings, .. } = &*self.0;
        Ok(KeepStatus {
            pressure: Pressure::of(store, settings).await?,
            trash_bytes: store.trash_size().await?,
            last_collection: Sum::of(store.job(COLLECT).await?),
            last_eviction: Sum::of(store.job(EVICT).await?),
        })
    }

    /// Puts back all that was collected and is still in the trash.
    pub async fn undo(&self) -> Result<Restored, KeepError> {
        let _broom = self.0.broom.try_lock().map_err(|_| KeepError::Busy)?;
        Ok(self.0.store.put_back().await?)
    }

    /// Reads all that is kept, or all that can be read in `repository`, and holds it against its name. What is wrong is
    /// set aside and no longer kept. Ends when it is given up.
    pub async fn verify(&self, repository: Option<&Repository>) -> Result<VerifyReport, KeepError> {
        let progress = Arc::new(Progress::default());
        *self.0.progress.lock().unwrap_or_else(PoisonError::into_inner) = progress.clone();
        let (stop, mut report, mut at) = (CancellationToken::new(), VerifyReport::default(), Some(Cursor::begin()));
        let _stop = stop.clone().drop_guard();
        while let Some(cursor) = at {
            let (page, next) = scrub::page(&self.0.store, repository, cursor, None, &progress, &stop).await?;
            report.add(page);
            at = next;
        }
        Ok(report)
    }

    /// How far the `verify` under way is, or how far the last one came.
    pub fn progress(&self) -> Arc<Progress> {
        self.0.progress.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Does what is due, until `stop`, and makes room for those who find too little.
    pub async fn run(&self, stop: CancellationToken) {
        let working = async {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                self.tick().await;
            }
        };
        tokio::select! {
            () = working => {}
            () = self.make_room_on_order() => {}
            () = self.scrub(stop.clone()) => {}
            () = stop.cancelled() => {}
        }
    }

    /// Does now what is due: empties the trash, evicts, collects. [`Keep::run`] calls it in time. What is due is told by
    /// time that the store has seen pass: a clock that was set wrong, before the start or since, throws nothing away.
    pub async fn tick(&self) {
        let told = |what: &str, outcome: Result<(), StoreError>| {
            if let Err(why) = outcome {
                error!(error = &why as &dyn std::error::Error, "{what} failed: {why}");
            }
        };
        told("looking at the clock", self.0.store.watch_clock().await);
        let Ok(_broom) = self.0.broom.try_lock() else { return };
        told("emptying the trash", self.empty_trash_if_due().await);
        told("eviction", self.evict(None).await);
        told("collection", self.collect_if_due().await);
    }

    async fn make_room_on_order(&self) {
        if !self.0.settings.evicts() {
            return std::future::pending().await;
        }
        let mut orders = self.0.store.room_orders();
        while let Some(order) = orders.recv().await {
            let _broom = self.0.broom.lock().await;
            if let Err(why) = self.evict(Some(order.bytes)).await {
                error!(error = &why as &dyn std::error::Error, "no room could be made: {why}");
            }
            order.done();
        }
    }

    /// Whoever calls it holds the broom.
    async fn evict(&self, wanted: Option<u64>) -> Result<(), StoreError> {
        let Inner { store, settings, clock, evictor, .. } = &*self.0;
        match evictor.run(store, settings, clock, wanted).await? {
            Some(report) if report.size_bytes > 0 => store.note_job(EVICT, &report.sum().to_text()).await,
            _ => Ok(()),
        }
    }

    /// Reads everything, slowly, again and again, until `stop`.
    async fn scrub(&self, stop: CancellationToken) {
        let every = self.0.settings.scrub_every.0;
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            if every.is_zero() {
                continue;
            }
            if let Err(why) = self.scrub_if_due(every, &stop).await {
                error!(error = &why as &dyn std::error::Error, "the scrub failed, and will go on: {why}");
            }
        }
    }

    async fn scrub_if_due(&self, every: Duration, stop: &CancellationToken) -> Result<(), StoreError> {
        let (store, now) = (&self.0.store, self.0.clock.now());
        let noted = store.job(SCRUB).await?;
        let mut at = match noted {
            Some((position, ended)) if position.is_empty() => {
                if ended <= now && now.duration_since(ended).unsigned_abs() < every {
                    return Ok(());
                }
                Some(Cursor::begin())
            }
            Some((position, _)) => Some(Cursor::parse(&position).unwrap_or_else(Cursor::begin)),
            // The first time: what there is was hashed when it came.
            None => return store.note_job(SCRUB, "").await,
        };
        let (rate, progress) = (Some(self.0.settings.scrub_rate.0), Progress::default());
        while let Some(cursor) = at {
            let (_, next) = scrub::page(store, None, cursor, rate, &progress, stop).await?;
            if stop.is_cancelled() {
                return Ok(());
            }
            store.note_job(SCRUB, &next.as_ref().map(Cursor::to_text).unwrap_or_default()).await?;
            at = next;
        }
        let (checked, size_bytes) = progress.so_far();
        tracing::info!(checked, size_bytes, "the scrub has read what is kept to its end");
        Ok(())
    }

    async fn empty_trash_if_due(&self) -> Result<(), StoreError> {
        let Inner { store, settings, .. } = &*self.0;
        let Some(before) = store.before(settings.trash_for.0) else { return Ok(()) };
        store.empty_trash(before).await.map(drop)
    }

    async fn collect_if_due(&self) -> Result<(), StoreError> {
        let Inner { store, settings, clock, .. } = &*self.0;
        if settings.collect_every.0.is_zero() {
            return Ok(());
        }
        let last = match store.job(COLLECT).await? {
            Some((_, at)) if at <= clock.now() => at,
            // The first time, or a clock that was set back: from now on.
            noted => {
                let sum = noted.map(|(sum, _)| sum).unwrap_or_default();
                return store.note_job(COLLECT, &sum).await;
            }
        };
        let due = store.before(settings.collect_every.0).is_some_and(|before| last <= before);
        match store.before(settings.grace.0) {
            Some(since) if due => self.collect_since(since, false).await.map(drop),
            _ => Ok(()),
        }
    }
}
