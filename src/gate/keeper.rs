//! Carries out orders and the clock's: in memory, on the sockets, on disk and on record, in the order that is safe.
//!
//! Closing: memory, sockets, disk, look-ups, record. Opening: disk, record, memory. So at no instant may something leave
//! that a crash would forget, and what is reported as closed is closed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;
use tracing::{error, info};

use super::audit::{Audit, GateRecord, Record};
use super::audit_file::AuditFile;
use super::dial::Dialer;
use super::sockets::{Leave, Sockets};
use super::state::{Changed, Decision, Kept, Told};
use super::state_file::StateFile;
use super::{AuditSettings, GateError, GateSettings, GateStatus, Mode, Order, Refusal};
use crate::clock::Clock;
use crate::schedule::Window;

/// Longest wait for name look-ups when the gate closes; the system's resolver gives up on its own within it, as a rule.
pub const LOOKUP_WAIT_MAX: Duration = Duration::from_secs(15);
/// The clock is looked at again after this at the latest: it may jump while a timer sleeps.
const LOOK_AT_CLOCK_EVERY: Duration = Duration::from_secs(15);
/// Longest opening with an end.
pub const LASTING_MAX: Duration = Duration::from_secs(366 * 86_400);
/// Most upstreams that are open by themselves.
pub const UPSTREAMS_OPEN_MAX: usize = 64;
/// Longest `who`, `why` and name of an upstream, in characters.
pub const WORDS_MAX: usize = 500;

/// The gate's inside.
pub(super) struct Keeper {
    pub(super) clock: Clock,
    pub(super) audit: Audit,
    pub(super) dialer: Dialer,
    windows: Vec<Window>,
    file: StateFile,
    sockets: Sockets,
    /// Read by every request; written only by [`Keeper::install`].
    standing: ArcSwap<Standing>,
    leaves: Mutex<HashMap<Arc<str>, Arc<Leave>>>,
    /// The number of the drain that is under way; changed only by who holds `orders`.
    drain: watch::Sender<Option<u64>>,
    changes: watch::Sender<u64>,
    /// Held while a change is carried out, so that changes follow one another.
    orders: tokio::sync::Mutex<Orders>,
}

struct Standing {
    decision: Decision,
    changed: Option<Changed>,
}

struct Orders {
    kept: Kept,
    /// How many drains have begun.
    drains: u64,
}

impl Keeper {
    pub(super) fn load(
        settings: &GateSettings,
        audit: &AuditSettings,
        data: &Path,
        clock: Clock,
    ) -> Result<Self, GateError> {
        let windows = settings.parsed_windows()?;
        if let Err((key, message)) = audit.check() {
            return Err(GateError::Settings { key: format!("audit.{key}"), message });
        }
        std::fs::create_dir_all(data).map_err(|source| GateError::State { path: data.to_owned(), source })?;
        let file = StateFile::new(data);
        let now = clock.now();
        let (mut kept, found) = found_at_start(&file, settings.mode, now);
        let mut audit_file = AuditFile::open(&data.join("audit"), audit)?;
        let records = start_records(&kept, &kept.decide(&windows, now), &found, now);
        let written = file.write_now(&kept).and_then(|()| Ok(audit_file.keep(&records)?));
        if let Err(why) = written {
            // What is kept can be served all the same; but nothing leaves that cannot be written down (invariant 19).
            error!("the gate stays closed, because its state cannot be written: {}", super::with_causes(&why));
            kept.close(&Order::new("sealock", Some("its state cannot be written")), now);
        }
        let decision = kept.decide(&windows, now);
        let sockets = Sockets::default();
        Ok(Self {
            clock,
            audit: Audit::start(audit_file)?,
            dialer: Dialer::new(sockets.clone()),
            windows,
            file,
            sockets,
            standing: ArcSwap::from_pointee(Standing { decision, changed: kept.changed.clone() }),
            leaves: Mutex::default(),
            drain: watch::Sender::new(None),
            changes: watch::Sender::new(0),
            orders: tokio::sync::Mutex::new(Orders { kept, drains: 0 }),
        })
    }

    pub(super) fn refusal(&self, upstream: &str) -> Option<Refusal> {
        self.standing.load().decision.refusal(upstream, || self.clock.now())
    }

    pub(super) fn leave(&self, upstream: &str) -> Result<Arc<Leave>, Refusal> {
        // Under this lock: either closing sees the leave that is made here, or this sees that the gate is closed.
        let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(refusal) = self.refusal(upstream) {
            return Err(refusal);
        }
        if let Some(leave) = leaves.get(upstream) {
            return Ok(leave.clone());
        }
        let upstream: Arc<str> = upstream.into();
        let leave = Leave::new(upstream.clone());
        leaves.insert(upstream, leave.clone());
        Ok(leave)
    }

    pub(super) fn status(&self) -> GateStatus {
        let standing = self.standing.load();
        let leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        let mut status = standing.decision.status(standing.changed.as_ref());
        status.open &= status.closes_at.is_none_or(|closes_at| now < closes_at);
        status.draining = self.drain.borrow().is_some();
        status.under_way = leaves.values().map(|leave| leave.count()).sum();
        status.sockets = self.sockets.len();
        status
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(super) fn until_next_change(&self) -> Duration {
        let Some(next) = self.standing.load().decision.next_change() else { return LOOK_AT_CLOCK_EVERY };
        let wait = Duration::try_from(next.duration_since(self.clock.now())).unwrap_or_default();
        wait.clamp(Duration::from_millis(1), LOOK_AT_CLOCK_EVERY)
    }

    pub(super) async fn open(
        &self,
        order: Order,
        lasting: Option<Duration>,
        upstream: Option<String>,
    ) -> Result<(), GateError> {
        check_words(&order, upstream.as_deref())?;
        let mut orders = self.orders.lock().await;
        let now = self.clock.now();
        let until = lasting.map(|lasting| end_of(lasting, now)).transpose()?;
        let told = Told::open(&order, now, until);
        let mut kept = orders.kept.clone();
        match &upstream {
            Some(name) if kept.upstreams.len() >= UPSTREAMS_OPEN_MAX && !kept.upstreams.contains_key(name) => {
                return Err(GateError::TooManyUpstreams);
            }
            Some(name) => drop(kept.upstreams.insert(name.clone(), told)),
            None => kept.told = Some(told),
        }
        if upstream.is_none() {
            kept.changed = Some(Changed { open: true, at: now, who: order.who.clone(), why: order.why.clone() });
        }
        kept.seen = now;
        let from = match &upstream {
            Some(name) => self.standing.load().decision.is_open_for(name),
            None => self.standing.load().decision.general.open,
        };
        let record =
            GateRecord { at: now, who: order.who, why: order.why, upstream, from: word(from), to: "open", until };
        self.carry_out(&mut orders, kept, vec![record], true).await?;
        self.end_drain(&mut orders);
        Ok(())
    }

    pub(super) async fn close(&self, order: Order, drain: Option<Duration>) -> Result<(), GateError> {
        check_words(&order, None)?;
        let Some(drain) = drain else {
            let mut orders = self.orders.lock().await;
            return self.close_now(&mut orders, &order, None).await;
        };
        let (number, announced) = self.begin_drain(&order).await;
        let in_time = tokio::time::timeout(drain, async {
            tokio::select! {
                () = self.idle() => {}
                () = self.drain_is(|current| current != Some(number)) => {}
            }
        });
        let in_time = in_time.await.is_ok();
        loop {
            let mut orders = self.orders.lock().await;
            let current = *self.drain.borrow();
            match current {
                Some(current) if current == number => {
                    if !in_time {
                        info!("the time to drain is over; what is under way is cut");
                    }
                    return announced.and(self.close_now(&mut orders, &order, Some("draining")).await);
                }
                // A later order took over. What this one promised is so only when that one has been carried out.
                Some(_) => {
                    drop(orders);
                    self.drain_is(|current| current.is_none()).await;
                }
                None if self.standing.load().decision.is_open_at_all() => return Err(GateError::Reopened),
                None => return announced,
            }
        }
    }

    async fn drain_is(&self, wanted: impl Fn(Option<u64>) -> bool) {
        // The sender lives in `self`, so the wait cannot fail.
        let _ = self.drain.subscribe().wait_for(|current| wanted(*current)).await;
    }

    async fn close_now(&self, orders: &mut Orders, order: &Order, from: Option<&'static str>) -> Result<(), GateError> {
        self.end_drain(orders);
        let (kept, mut record) = self.closing(orders, order, "closed");
        record.from = from.unwrap_or(record.from);
        self.carry_out(orders, kept, vec![record], true).await
    }

    /// Closes for what is new. What is under way goes on, whether or not the disk takes the news.
    async fn begin_drain(&self, order: &Order) -> (u64, Result<(), GateError>) {
        let mut orders = self.orders.lock().await;
        orders.drains += 1;
        self.drain.send_replace(Some(orders.drains));
        let (kept, record) = self.closing(&orders, order, "draining");
        let announced = self.carry_out(&mut orders, kept, vec![record], false).await;
        (orders.drains, announced)
    }

    /// Returns when nothing is under way.
    async fn idle(&self) {
        let leaves: Vec<_> = {
            let leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
            leaves.values().cloned().collect()
        };
        for leave in &leaves {
            leave.idle().await;
        }
    }

    /// Follows the clock: what is over ends, windows open and close, a clock that went back closes.
    pub(super) async fn tick(&self) -> Result<(), GateError> {
        let mut orders = self.orders.lock().await;
        let now = self.clock.now();
        let mut kept = orders.kept.clone();
        let went_back = kept.clock_went_back(now);
        let by = went_back.map(|back| distrust(&mut kept, back, now));
        kept.seen = now;
        let old = self.standing.load_full();
        let new = kept.decide(&self.windows, now);
        kept.upstreams.retain(|name, _| new.upstreams.contains_key(name));
        if new == old.decision && by.is_none() {
            orders.kept.seen = now;
            return Ok(());
        }
        let by = by.unwrap_or_else(|| by_the_clock(&orders.kept, &old.decision, &new));
        let records = differences(&old.decision, &new, &by, now);
        if old.decision.general.open != new.general.open {
            kept.changed = Some(Changed { open: new.general.open, at: now, who: by.who, why: by.why });
        }
        if new.general.open {
            self.end_drain(&mut orders);
        }
        let cut = self.drain.borrow().is_none();
        self.carry_out(&mut orders, kept, records, cut).await
    }

    fn closing(&self, orders: &Orders, order: &Order, to: &'static str) -> (Kept, GateRecord) {
        let now = self.clock.now();
        let mut kept = orders.kept.clone();
        kept.close(order, now);
        kept.changed = Some(Changed { open: false, at: now, who: order.who.clone(), why: order.why.clone() });
        kept.seen = now;
        let from = word(self.standing.load().decision.general.open);
        let (who, why) = (order.who.clone(), order.why.clone());
        (kept, GateRecord { at: now, who, why, upstream: None, from, to, until: None })
    }

    /// Takes the lock's content to show that it is held.
    fn end_drain(&self, _orders: &mut Orders) {
        if self.drain.send_replace(None).is_some() {
            self.changes.send_modify(|changes| *changes += 1);
        }
    }

    /// Makes `kept` what holds. Without `cut`, what is under way goes on.
    async fn carry_out(
        &self,
        orders: &mut Orders,
        kept: Kept,
        records: Vec<GateRecord>,
        cut: bool,
    ) -> Result<(), GateError> {
        let old = self.standing.load_full();
        let new = kept.decide(&self.windows, self.clock.now());
        let narrow = old.decision.and(&new);
        let opens = narrow.opens_less_than(&new);
        // What `new` opens may be under way already, let go on by a drain.
        let (revoked, reset) = self.install(narrow, old.changed.clone(), cut.then_some(&new));
        let before = std::mem::replace(&mut orders.kept, kept);
        let written = self.file.write(&orders.kept).await;
        let looked_up = look_ups_done(&revoked).await;
        let recorded = match (&written, opens) {
            (Err(_), true) => Ok(()),
            _ => self.audit.gate(records.clone()).await.map_err(GateError::from),
        };
        if opens && (written.is_err() || recorded.is_err()) {
            // Not opened. What is on disk must not open it at the next start either.
            orders.kept = before;
            if let (Ok(()), Err(error)) = (&written, self.file.write(&orders.kept).await) {
                error!(%error, "the gate stays closed, but `gate.json` may open it at the next start: {error}");
            }
        } else {
            drop(self.install(new, orders.kept.changed.clone(), None));
            records.iter().for_each(log);
        }
        written.and(recorded).and(reset).and(looked_up)
    }

    /// Puts `decision` in force. On return the sockets of upstreams that are not open in `cut` have been reset.
    fn install(
        &self,
        decision: Decision,
        changed: Option<Changed>,
        cut: Option<&Decision>,
    ) -> (Vec<Arc<Leave>>, Result<(), GateError>) {
        let new = Arc::new(Standing { decision, changed });
        let old = self.standing.swap(new.clone());
        let mut revoked = Vec::new();
        if let Some(open) = cut {
            let mut leaves = self.leaves.lock().unwrap_or_else(PoisonError::into_inner);
            revoked.extend(leaves.extract_if(|upstream, _| !open.is_open_for(upstream)).map(|(_, leave)| leave));
        }
        let (count, errors) = self.sockets.revoke(&revoked);
        if count > 0 {
            info!(count, "{count} connections to upstreams were reset");
        }
        if old.decision != new.decision {
            self.changes.send_modify(|changes| *changes += 1);
        }
        let count = errors.len();
        let reset = match errors.into_iter().next() {
            Some(source) => Err(GateError::NotReset { count, source }),
            None => Ok(()),
        };
        (revoked, reset)
    }
}

async fn look_ups_done(leaves: &[Arc<Leave>]) -> Result<(), GateError> {
    let mut count = 0;
    for leave in leaves {
        count += leave.lookups_done(LOOKUP_WAIT_MAX).await;
    }
    if count == 0 { Ok(()) } else { Err(GateError::LookUpsUnderWay { count }) }
}

/// What the data folder says, made safe, and a word on it for the record.
fn found_at_start(file: &StateFile, mode: Mode, now: Timestamp) -> (Kept, Order) {
    let started = Order::new("sealock", Some("started"));
    let mut kept = match file.read() {
        Ok(Some(kept)) => kept,
        Ok(None) => {
            let mut kept = Kept::new(now);
            if mode == Mode::Open {
                let order = Order::new("settings", Some("gate.mode"));
                kept.told = Some(Told::open(&order, now, None));
                kept.changed = Some(Changed { open: true, at: now, who: order.who, why: order.why });
            }
            return (kept, started);
        }
        Err(why) => {
            let order = Order::new("sealock", Some(format!("gate.json is unreadable: {why}").as_str()));
            match file.set_aside() {
                Ok(aside) => {
                    error!("the gate is closed: `gate.json` is unreadable, kept as `{}`: {why}", aside.display())
                }
                Err(error) => error!(%error, "the gate is closed: `gate.json` is unreadable: {why}"),
            }
            let mut kept = Kept::new(now);
            kept.close(&order, now);
            kept.changed = Some(Changed { open: false, at: now, who: order.who.clone(), why: order.why.clone() });
            return (kept, order);
        }
    };
    let found = match kept.clock_went_back(now) {
        Some(back) => distrust(&mut kept, back, now),
        None => started,
    };
    kept.seen = now;
    (kept, found)
}

/// A clock that went back would open again what is over; so everything is closed, and the operator told.
fn distrust(kept: &mut Kept, back: SignedDuration, now: Timestamp) -> Order {
    let why = format!("the clock went back by {back:#} to {now}");
    error!("the gate is closed: {why}; open it again if the clock is right now");
    let order = Order::new("clock", Some(&why));
    kept.close(&order, now);
    order
}

/// Whose doing a change is that no order asked for now.
fn by_the_clock(kept: &Kept, old: &Decision, new: &Decision) -> Order {
    match (&new.general.window, &old.general.window) {
        (Some(why), _) if !old.general.open => Order { who: "window".to_owned(), why: why.clone() },
        (None, Some(_)) if !new.general.open => Order::new("window", Some("its time is over")),
        _ => {
            let who = kept.told.as_ref().filter(|told| told.open).map(|told| format!(", as {} said", told.who));
            Order::new("clock", Some(format!("the time is over{}", who.unwrap_or_default()).as_str()))
        }
    }
}

fn differences(old: &Decision, new: &Decision, by: &Order, at: Timestamp) -> Vec<GateRecord> {
    let record = |upstream: Option<String>, from: bool, to: bool, until| {
        let (who, why) = (by.who.clone(), by.why.clone());
        (from != to).then(|| GateRecord { at, who, why, upstream, from: word(from), to: word(to), until })
    };
    let general = record(None, old.general.open, new.general.open, new.general.closes_at);
    let ended = old.upstreams.keys().filter(|name| !new.upstreams.contains_key(*name));
    let upstreams = ended.map(|name| record(Some(name.clone()), true, new.is_open_for(name), None));
    general.into_iter().chain(upstreams.flatten()).collect()
}

fn start_records(kept: &Kept, decision: &Decision, found: &Order, at: Timestamp) -> Vec<Record> {
    let was = kept.changed.as_ref().map_or("closed", |changed| word(changed.open));
    let record = |upstream, from, to, until| {
        let (who, why) = (found.who.clone(), found.why.clone());
        Record::Gate(GateRecord { at, who, why, upstream, from, to: word(to), until })
    };
    let general = record(None, was, decision.general.open, decision.general.closes_at);
    let upstreams = decision.upstreams.iter();
    let upstreams = upstreams.map(|(name, (stand, _))| record(Some(name.clone()), "open", true, stand.closes_at));
    std::iter::once(general).chain(upstreams).collect()
}

fn log(record: &GateRecord) {
    let GateRecord { who, why, upstream, from, to, until, .. } = record;
    let of = upstream.as_deref().map(|name| format!(" for `{name}`")).unwrap_or_default();
    let until = until.map(|until| format!(" until {until}")).unwrap_or_default();
    info!(who, why, upstream, from, to, "the gate is {to}{of}{until}, says {who}");
}

fn word(open: bool) -> &'static str {
    if open { "open" } else { "closed" }
}

fn end_of(lasting: Duration, now: Timestamp) -> Result<Timestamp, GateError> {
    if lasting > LASTING_MAX {
        return Err(GateError::TooFar);
    }
    now.checked_add(lasting).map_err(|_| GateError::TooFar)
}

fn check_words(order: &Order, upstream: Option<&str>) -> Result<(), GateError> {
    let words = [("who", Some(order.who.as_str())), ("why", order.why.as_deref()), ("upstream", upstream)];
    match words.into_iter().find(|(_, text)| text.is_some_and(|text| text.chars().count() > WORDS_MAX)) {
        Some((what, _)) => Err(GateError::TooLong { what }),
        None => Ok(()),
    }
}
