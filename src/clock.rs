//! The one place that reads the time of day, so that tests can wind it by hand; and how far it can be believed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// How much further than time itself the time of day may go before its word on what is old is not taken.
pub const CLOCK_JUMP_MAX: SignedDuration = SignedDuration::from_hours(1);
/// Most runs and jumps of the clock that an [`Hourglass`] remembers.
pub const STRETCHES_MAX: usize = 1_024;

/// The time of day: the system's, or a hand-wound one. Cheap to clone; clones of a hand-wound clock move together.
#[derive(Clone, Debug)]
pub struct Clock(Kind);

#[derive(Clone, Debug)]
enum Kind {
    /// With the instant at which it was made.
    System(Instant),
    Wound(Arc<Wound>),
}

/// Both in milliseconds.
#[derive(Debug)]
struct Wound {
    /// Since the epoch.
    shown: AtomicI64,
    running: AtomicI64,
}

impl Clock {
    pub fn system() -> Self {
        Self(Kind::System(Instant::now()))
    }

    /// A clock that stands at `start` until [`Clock::advance`].
    pub fn wound(start: Timestamp) -> Self {
        let shown = AtomicI64::new(start.as_millisecond());
        Self(Kind::Wound(Arc::new(Wound { shown, running: AtomicI64::new(0) })))
    }

    /// Now, to the millisecond: finer would not survive the catalog.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the time of day")]
    pub fn now(&self) -> Timestamp {
        let ms = match &self.0 {
            Kind::System(_) => Timestamp::now().as_millisecond(),
            Kind::Wound(wound) => wound.shown.load(Ordering::Relaxed),
        };
        Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// For how long it has run; nobody can set that.
    pub fn running(&self) -> Duration {
        match &self.0 {
            Kind::System(made) => made.elapsed(),
            Kind::Wound(wound) => Duration::from_millis(wound.running.load(Ordering::Relaxed).max(0) as u64),
        }
    }

    /// Lets time pass on a hand-wound clock; the system's is left alone.
    pub fn advance(&self, by: SignedDuration) {
        if let Kind::Wound(wound) = &self.0 {
            wound.running.fetch_add(by.as_millis() as i64, Ordering::Relaxed);
        }
        self.set_by(by);
    }

    /// Sets a hand-wound clock ahead or back without any time passing; the system's is left alone.
    pub fn set_by(&self, by: SignedDuration) {
        if let Kind::Wound(wound) = &self.0 {
            wound.shown.fetch_add(by.as_millis() as i64, Ordering::Relaxed);
        }
    }
}

/// (pure) What has surely grown old, whatever the time of day says: time counts only as far as it was seen to pass, over
/// all runs of the program.
///
/// A clock that is set wrong, while we run or before we start, makes nothing older; nor does time that we slept through.
#[derive(Debug)]
pub struct Hourglass {
    /// From where the clock went on evenly: a start, or a jump. The oldest first.
    stretches: VecDeque<Stretch>,
    /// What the clock's `running` is to be added to.
    before: Duration,
}

/// A moment from which the clock went on evenly.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stretch {
    /// Time that was seen to pass before it, in all.
    pub passed: Duration,
    /// What the clock showed.
    pub shown: Timestamp,
}

impl Hourglass {
    /// As an earlier run left it: what it remembered, and how much time it had seen pass.
    pub fn new(stretches: impl IntoIterator<Item = Stretch>, passed: Duration, clock: &Clock) -> Self {
        let stretches: VecDeque<Stretch> = stretches.into_iter().filter(|one| one.passed <= passed).collect();
        let mut glass = Self { stretches, before: passed.saturating_sub(clock.running()) };
        glass.begin(passed, clock.now());
        glass
    }

    /// Time that was seen to pass, in all.
    pub fn passed(&self, clock: &Clock) -> Duration {
        self.before + clock.running()
    }

    /// Whether the clock has jumped since the last look; it is believed anew from here on.
    pub fn look(&mut self, clock: &Clock) -> bool {
        let (passed, now) = (self.passed(clock), clock.now());
        let Some(last) = self.stretches.back() else { return false };
        let expected = after(last.shown, passed.saturating_sub(last.passed));
        let jumped = now.duration_since(expected).abs() > CLOCK_JUMP_MAX;
        if jumped {
            self.begin(passed, now);
        }
        jumped
    }

    /// What was stamped then or before is `age` old. `None`: not so much time has been seen to pass.
    pub fn before(&mut self, age: Duration, clock: &Clock) -> Option<Timestamp> {
        self.look(clock);
        let begin = self.passed(clock).checked_sub(age)?;
        let at = self.stretches.iter().rposition(|one| one.passed <= begin)?;
        let first = after(self.stretches[at].shown, begin - self.stretches[at].passed);
        // Whatever was stamped since then was stamped with one of these times or a later one.
        let later = self.stretches.iter().skip(at + 1).map(|one| earlier(one.shown, Duration::from_millis(1)));
        later.chain([first, earlier(clock.now(), age)]).min()
    }

    /// For the next run.
    pub fn stretches(&self) -> impl Iterator<Item = &Stretch> {
        self.stretches.iter()
    }

    fn begin(&mut self, passed: Duration, shown: Timestamp) {
        // Of those that began at once, only the lowest and the newest tell something.
        let at_once = self.stretches.iter().filter(|one| one.passed == passed);
        let lowest = at_once.map(|one| one.shown).min().filter(|lowest| *lowest < shown);
        self.stretches.retain(|one| one.passed < passed);
        self.stretches.extend(lowest.map(|shown| Stretch { passed, shown }));
        self.stretches.push_back(Stretch { passed, shown });
        while self.stretches.len() > STRETCHES_MAX {
            self.stretches.pop_front();
        }
    }
}

fn after(at: Timestamp, span: Duration) -> Timestamp {
    let span = SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX);
    at.checked_add(span).unwrap_or(Timestamp::MAX)
}

/// So long before `at`.
pub fn earlier(at: Timestamp, span: Duration) -> Timestamp {
    let span = SignedDuration::try_from(span).unwrap_or(SignedDuration::MAX);
    at.checked_sub(span).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: SignedDuration = SignedDuration::from_hours(1);
    const DAY: Duration = Duration::from_secs(86_400);

    fn begin() -> (Clock, Hourglass) {
        let clock = Clock::wound(Timestamp::from_second(1_790_000_000).unwrap());
        let glass = Hourglass::new([], Duration::ZERO, &clock);
        (clock, glass)
    }

    /// Stopped and started again, with `gap` on the clock in between.
    fn restarted(glass: &Hourglass, clock: &Clock, gap: SignedDuration) -> Hourglass {
        let (stretches, passed) = (glass.stretches().copied().collect::<Vec<_>>(), glass.passed(clock));
        clock.set_by(gap);
        Hourglass::new(stretches, passed, clock)
    }

    #[test]
    fn nothing_is_older_than_the_time_that_was_seen_to_pass() {
        // Invariant 7
        let (clock, mut glass) = begin();
        let start = clock.now();
        clock.advance(HOUR * 23);
        assert_eq!(glass.before(DAY, &clock), None);
        clock.advance(HOUR * 3);
        assert_eq!(glass.before(DAY, &clock), Some(start + HOUR * 2));
    }

    #[test]
    fn a_clock_that_is_set_ahead_makes_nothing_old_and_one_that_drifts_is_believed() {
        // Invariant 7
        let (clock, mut glass) = begin();
        clock.advance(HOUR * 48);
        let before_it = clock.now();
        clock.set_by(HOUR * 24 * 365);
        assert!(glass.look(&clock) && !glass.look(&clock), "it is told once");
        let boundary = glass.before(DAY, &clock).unwrap();
        assert_eq!(boundary, before_it - HOUR * 24);
        clock.advance(HOUR * 23);
        assert_eq!(glass.before(DAY, &clock), Some(before_it - HOUR));
        clock.set_by(SignedDuration::from_mins(30));
        assert!(!glass.look(&clock));
        clock.advance(HOUR * 2);
        let boundary = glass.before(DAY, &clock).unwrap();
        assert!(boundary > before_it && boundary <= clock.now() - HOUR * 24);
    }

    #[test]
    fn what_was_stamped_right_after_a_wrong_clock_was_righted_is_not_old() {
        // Invariant 7
        let (clock, mut glass) = begin();
        clock.set_by(HOUR * 1_000);
        glass.look(&clock);
        clock.advance(HOUR * 48);
        clock.set_by(-HOUR * 1_000);
        glass.look(&clock);
        let stamped = clock.now();
        clock.advance(HOUR * 23);
        assert!(glass.before(DAY, &clock).unwrap() <= stamped);
        clock.advance(HOUR * 2);
        assert!(glass.before(DAY, &clock).unwrap() > stamped);
    }

    #[test]
    fn a_clock_that_was_wrong_at_the_start_is_not_taken_at_its_word() {
        // Invariant 7
        let (clock, mut glass) = begin();
        clock.advance(HOUR * 48);
        glass.look(&clock);
        let stamped = clock.now();
        let mut glass = restarted(&glass, &clock, HOUR * 24 * 400);
        assert!(glass.before(DAY, &clock).unwrap() <= stamped);
        clock.advance(HOUR * 25);
        assert!(glass.before(DAY, &clock).unwrap() > stamped, "by now it is old");
    }

    #[test]
    fn a_machine_that_sleeps_at_night_comes_to_its_day_in_two() {
        let (clock, mut glass) = begin();
        let start = clock.now();
        for _ in 0..2 {
            clock.advance(HOUR * 13);
            glass = restarted(&glass, &clock, HOUR * 11);
        }
        assert!(glass.before(DAY, &clock).is_some_and(|boundary| boundary > start));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        // Invariant 17
        let (clock, mut glass) = begin();
        for _ in 0..STRETCHES_MAX * 2 {
            clock.advance(HOUR);
            clock.set_by(HOUR * 2);
            glass.look(&clock);
        }
        assert_eq!(glass.stretches().count(), STRETCHES_MAX);
        assert_eq!(glass.before(DAY * 60, &clock), None, "it does not know any more");
    }
}
