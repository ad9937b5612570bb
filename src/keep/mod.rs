//! The jobs that look after what is kept: collection of what nothing refers to and its undoing, and the scrub.
//!
//! They run beside the serving of clients, without a time in which nothing can be pushed: what a job finds is a guess,
//! and the store looks again in the transaction that acts on it. Invariants kept here: 7 and 8.

mod gc;
mod scrub;
mod settings;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;
use tracing::{error, warn};

pub use gc::{CollectReport, LINES_MAX};
pub use scrub::{BAD_MAX, Bad, Progress, VerifyReport};
pub use settings::{HISTORY_MAX, KeepSettings};

use crate::clock::Clock;
use crate::names::Repository;
use crate::store::{Restored, Store, StoreError};
use scrub::Cursor;

/// How often it is looked whether a job is due.
const LOOK_EVERY: Duration = Duration::from_secs(60);
/// How much further than time itself the clock may go before its word on what is old is not taken.
const CLOCK_JUMP_MAX: SignedDuration = SignedDuration::from_hours(1);
/// Under which the store remembers when the last collection was.
const COLLECT: &str = "collect";
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
    started: Instant,
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
    pub fn new(store: Store, settings: KeepSettings, clock: Clock) -> Self {
        let (broom, started, progress) = (tokio::sync::Mutex::default(), Instant::now(), Mutex::default());
        Self(Arc::new(Inner { store, settings, clock, broom, started, progress }))
    }

    /// By hand: throws away what nothing refers to, and removes for good what was thrown away long enough ago.
    /// `dry_run`: only tells what would go.
    pub async fn collect(&self, dry_run: bool) -> Result<CollectReport, KeepError> {
        let inner = &self.0;
        let _broom = inner.broom.try_lock().map_err(|_| KeepError::Busy)?;
        let freed_bytes = if dry_run { 0 } else { self.empty_trash().await? };
        let report = gc::collect(&inner.store, &inner.settings, inner.clock.now(), dry_run).await?;
        if !dry_run {
            inner.store.note_job(COLLECT, "").await?;
        }
        Ok(CollectReport { freed_bytes, ..report })
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

    /// Does what is due, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let working = async {
            let mut looked = (Instant::now(), self.0.clock.now());
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let now = (Instant::now(), self.0.clock.now());
                let jumped = has_jumped(looked, now);
                looked = now;
                if let Err(why) = self.look(now.1, jumped).await {
                    error!(error = &why as &dyn std::error::Error, "looking after what is kept failed: {why}");
                }
            }
        };
        tokio::select! {
            () = working => {}
            () = self.scrub(stop.clone()) => {}
            () = stop.cancelled() => {}
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

    async fn empty_trash(&self) -> Result<u64, StoreError> {
        let inner = &self.0;
        inner.store.empty_trash(gc::before(inner.clock.now(), inner.settings.trash_for)).await
    }

    /// Empties the trash and collects, each if it is due and the clock can be believed. The trash is not emptied before
    /// this process has run for as long as it keeps things: a clock that was set wrong while nobody looked must remove
    /// nothing.
    async fn look(&self, now: Timestamp, jumped: bool) -> Result<(), StoreError> {
        let (inner, every) = (&self.0, self.0.settings.collect_every.0);
        let Ok(_broom) = inner.broom.try_lock() else { return Ok(()) };
        if !jumped && inner.started.elapsed() >= inner.settings.trash_for.0 {
            self.empty_trash().await?;
        }
        if every.is_zero() {
            return Ok(());
        }
        let last = inner.store.job(COLLECT).await?.map(|(_, at)| at);
        let Some(last) = last.filter(|last| *last <= now && !jumped) else {
            // The first time, or a clock that cannot be believed: from now on.
            if jumped {
                warn!("the clock has jumped: the next collection waits its full time");
            }
            return inner.store.note_job(COLLECT, "").await;
        };
        if now.duration_since(last).unsigned_abs() >= every {
            gc::collect(&inner.store, &inner.settings, now, false).await?;
            inner.store.note_job(COLLECT, "").await?;
        }
        Ok(())
    }
}

fn has_jumped(before: (Instant, Timestamp), now: (Instant, Timestamp)) -> bool {
    let passed = SignedDuration::try_from(now.0.duration_since(before.0)).unwrap_or(SignedDuration::MAX);
    now.1.duration_since(before.1).saturating_sub(passed).abs() > CLOCK_JUMP_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_jumps_is_noticed_and_one_that_drifts_is_not() {
        // Invariant 7
        let (start, noon) = (Instant::now(), Timestamp::from_second(1_790_000_000).unwrap());
        let later = |passed: u64, shown: i64| {
            let shown = SignedDuration::from_secs(shown);
            has_jumped((start, noon), (start + Duration::from_secs(passed), noon + shown))
        };
        assert!(!later(60, 60));
        assert!(!later(60, 61));
        assert!(!later(86_400, 86_400));
        assert!(later(60, 86_400));
        assert!(later(60, -86_400));
    }
}
