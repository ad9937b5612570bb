//! What has surely grown old, whatever the time of day says: see [`Hourglass`].

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::catalog::writer::{Change, Writer};
use super::catalog::{Pool, job};
use super::{Store, StoreError};
use crate::clock::{Clock, Hourglass, Stretch};

/// Under which the time that was seen to pass is noted.
const TIME: &str = "time";
/// How often; a crash forgets at most that much of it, and things grow old so much later.
const NOTE_EVERY: Duration = Duration::from_secs(600);

/// The time that this store has seen pass, over all its runs.
#[derive(Debug)]
pub(super) struct Ages {
    clock: Clock,
    glass: Mutex<Hourglass>,
    /// How much had passed at the last note; `None`: the clock has jumped since, or there is none of this run.
    noted: Mutex<Option<Duration>>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Noted {
    passed: Duration,
    stretches: Vec<Stretch>,
}

impl Ages {
    /// As an earlier run left it. The new run is noted at once.
    pub(super) async fn load(readers: &Pool, writer: &Writer, clock: Clock) -> Result<Self, StoreError> {
        let noted = job::read(readers, TIME).await?.map(|(text, _)| serde_json::from_str(&text));
        let noted: Noted = match noted {
            Some(Ok(noted)) => noted,
            // Nothing is old then, for a while.
            Some(Err(why)) => {
                tracing::warn!(error = %why, "how much time has passed in earlier runs cannot be read; it counts anew");
                Noted::default()
            }
            None => Noted::default(),
        };
        let glass = Hourglass::new(noted.stretches, noted.passed, &clock);
        let ages = Self { clock, glass: Mutex::new(glass), noted: Mutex::default() };
        // A start does not fail for it: a full disk, above all, must not keep what is kept from being served. The next look
        // tries again.
        if let Err(why) = ages.note(writer).await {
            tracing::error!(error = &why as &dyn std::error::Error, "that a run began cannot be noted yet: {why}");
        }
        Ok(ages)
    }

    /// What was stamped then or before is `age` old; see [`Hourglass::before`].
    pub(super) fn before(&self, age: Duration) -> Option<Timestamp> {
        self.look();
        self.glass.lock().unwrap_or_else(PoisonError::into_inner).before(age, &self.clock)
    }

    /// Whether a note is due, which it is when the clock has jumped, too.
    fn look(&self) -> bool {
        let mut glass = self.glass.lock().unwrap_or_else(PoisonError::into_inner);
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if glass.look(&self.clock) {
            tracing::warn!("the clock has jumped: nothing counts as older for it");
            *noted = None;
        }
        noted.is_none_or(|noted| glass.passed(&self.clock).saturating_sub(noted) >= NOTE_EVERY)
    }

    pub(super) async fn note(&self, writer: &Writer) -> Result<(), StoreError> {
        let noted = {
            let glass = self.glass.lock().unwrap_or_else(PoisonError::into_inner);
            Noted { passed: glass.passed(&self.clock), stretches: glass.stretches().copied().collect() }
        };
        let position = serde_json::to_string(&noted).map_err(StoreError::catalog)?;
        writer.apply(Change::NoteJob { name: TIME, position }).await?;
        *self.noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(noted.passed);
        Ok(())
    }
}

impl Store {
    /// What was stamped then or before is surely `age` old, however the clock was set since. `None`: nothing is,
    /// because not so much time has been seen to pass, over all runs.
    pub fn before(&self, age: Duration) -> Option<Timestamp> {
        self.0.ages.before(age)
    }

    /// Looks at the clock, and notes the time that has passed when that is due. To be called every minute or so.
    pub async fn watch_clock(&self) -> Result<(), StoreError> {
        if self.0.ages.look() { self.0.ages.note(&self.0.writer).await } else { Ok(()) }
    }
}
