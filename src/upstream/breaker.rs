//! (pure) When to leave an upstream alone: after failures it rests for a growing while, and then one probe may try it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// Weight of failures in a row at which the rest begins.
const FAILURES_MAX: u32 = 3;
/// The first rest; each failed probe doubles it.
const REST_MIN: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(60);
/// A probe that has not reported for so long is taken for lost.
const PROBE_MAX: Duration = Duration::from_secs(30);

/// How one endpoint, or one credential, has been doing.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    /// Rests in a row.
    rests: u32,
    rest: Option<Rest>,
}

#[derive(Clone, Copy, Debug)]
struct Rest {
    from: Timestamp,
    until: Timestamp,
    /// While a probe is under way.
    probe_until: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    Go,
    /// The rest is over, and whoever gets this tries it for all.
    Probe,
    Rest,
}

/// How much a failure says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weight {
    /// Cheap to try again: a refused connection, a 5xx.
    Light,
    /// Costs whoever waits seconds, or locks an account: a time-out, a refused password.
    Heavy,
}

impl Breaker {
    pub fn admit(&mut self, now: Timestamp) -> Admission {
        let Some(rest) = &mut self.rest else {
            return Admission::Go;
        };
        // A clock that was set back must not prolong the rest.
        if now >= rest.from && now < rest.until {
            return Admission::Rest;
        }
        if rest.probe_until.is_some_and(|until| now >= rest.from && now < until) {
            return Admission::Rest;
        }
        rest.probe_until = Some(after(now, PROBE_MAX));
        Admission::Probe
    }

    pub fn failed(&mut self, now: Timestamp, weight: Weight) {
        if self.rest.is_some_and(|rest| rest.probe_until.is_none()) {
            // Begun before the rest did: it says nothing new.
            return;
        }
        self.failures += if weight == Weight::Heavy { FAILURES_MAX } else { 1 };
        if self.failures >= FAILURES_MAX {
            let length = REST_MIN.saturating_mul(1 << self.rests.min(16)).min(REST_MAX);
            self.rests += 1;
            self.rest = Some(Rest { from: now, until: after(now, length), probe_until: None });
        }
    }

    pub fn succeeded(&mut self) {
        *self = Self::default();
    }

    /// Until when it rests.
    pub fn resting_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.rest.filter(|rest| now >= rest.from && now < rest.until).map(|rest| rest.until)
    }
}

fn after(now: Timestamp, length: Duration) -> Timestamp {
    let length = SignedDuration::try_from(length).unwrap_or(SignedDuration::MAX);
    now.checked_add(length).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    #[test]
    fn light_failures_in_a_row_begin_a_rest() {
        let mut breaker = Breaker::default();
        breaker.failed(at(0), Weight::Light);
        breaker.failed(at(0), Weight::Light);
        assert_eq!(breaker.admit(at(0)), Admission::Go);
        breaker.failed(at(0), Weight::Light);
        assert_eq!(breaker.admit(at(0)), Admission::Rest);
        assert_eq!(breaker.resting_until(at(0)), Some(at(1)));
    }

    #[test]
    fn a_success_between_failures_forgets_them() {
        let mut breaker = Breaker::default();
        for _ in 0..10 {
            breaker.failed(at(0), Weight::Light);
            breaker.failed(at(0), Weight::Light);
            breaker.succeeded();
        }
        assert_eq!(breaker.admit(at(0)), Admission::Go);
    }

    #[test]
    fn after_the_rest_one_probe_goes_and_the_others_wait() {
        let mut breaker = Breaker::default();
        breaker.failed(at(0), Weight::Heavy);
        assert_eq!(breaker.admit(at(1)), Admission::Probe);
        assert_eq!(breaker.admit(at(1)), Admission::Rest);
        breaker.succeeded();
        assert_eq!(breaker.admit(at(1)), Admission::Go);
    }

    #[test]
    fn a_lost_probe_is_replaced() {
        let mut breaker = Breaker::default();
        breaker.failed(at(0), Weight::Heavy);
        assert_eq!(breaker.admit(at(1)), Admission::Probe);
        assert_eq!(breaker.admit(at(30)), Admission::Rest);
        assert_eq!(breaker.admit(at(31)), Admission::Probe);
    }

    #[test]
    fn rests_double_up_to_a_minute() {
        // Invariant 17
        let mut breaker = Breaker::default();
        let mut now = 0;
        let mut lengths = Vec::new();
        for _ in 0..20 {
            breaker.failed(at(now), Weight::Heavy);
            let until = breaker.resting_until(at(now)).unwrap();
            lengths.push(until.duration_since(at(now)).as_secs());
            now += lengths[lengths.len() - 1];
            assert_eq!(breaker.admit(at(now)), Admission::Probe);
        }
        assert_eq!(lengths[..8], [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(lengths[19], 60);
    }

    #[test]
    fn failures_that_began_before_the_rest_do_not_prolong_it() {
        let mut breaker = Breaker::default();
        for _ in 0..50 {
            breaker.failed(at(0), Weight::Heavy);
        }
        assert_eq!(breaker.resting_until(at(0)), Some(at(1)));
    }

    #[test]
    fn a_clock_that_is_set_back_does_not_prolong_the_rest() {
        let mut breaker = Breaker::default();
        breaker.failed(at(1_000_000), Weight::Heavy);
        assert_eq!(breaker.admit(at(0)), Admission::Probe);
    }
}
