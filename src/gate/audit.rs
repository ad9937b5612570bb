//! What is put on record: every change of the gate, and every request that left (invariant 19).
//!
//! A request takes a [`Slot`] before it leaves and gives it back when its record has reached the file. So the queue to
//! the writer has a bound, a slow disk slows requests instead of losing records, and a [`Trail`] always ends in a line.

use std::sync::Arc;
use std::sync::mpsc;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::audit_file::{AuditError, AuditFile};
use super::{Gate, Purpose, SendError};

/// Most requests that are under way or wait to be written down.
pub const RECORDS_OUTSTANDING_MAX: usize = 1024;
/// Longest cause of a failure that is put on record, in characters.
pub const CAUSE_MAX: usize = 300;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// To the last byte of the body.
    Done,
    /// No connection: name look-up, connect, proxy or TLS failed.
    Unreachable,
    Broken,
    TimedOut,
    /// The gate closed first.
    CutByTheGate,
    /// Whoever asked did not want the rest.
    Dropped,
}

/// One line of the audit file.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Record {
    Gate(GateRecord),
    Request(RequestRecord),
}

#[derive(Clone, Debug, Serialize)]
pub(super) struct GateRecord {
    pub(super) at: Timestamp,
    pub(super) who: String,
    pub(super) why: Option<String>,
    /// `None` when it concerns all of them.
    pub(super) upstream: Option<String>,
    pub(super) from: &'static str,
    pub(super) to: &'static str,
    pub(super) until: Option<Timestamp>,
}

#[derive(Debug, Serialize)]
pub(super) struct RequestRecord {
    at: Timestamp,
    purpose: Purpose,
    upstream: Arc<str>,
    host: String,
    method: String,
    /// Without the query, which may hold a signature.
    path: String,
    status: Option<u16>,
    /// Of the response's body.
    bytes: u64,
    ms: u64,
    outcome: Outcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    cause: Option<String>,
}

pub(super) enum Entry {
    Request(Record, Slot),
    /// Answered when it is on disk.
    Gate(Vec<Record>, oneshot::Sender<Result<(), AuditError>>),
    /// Answered when all before it is on disk.
    Flush(oneshot::Sender<Result<(), AuditError>>),
}

/// A request's place in the audit file's queue.
pub(super) struct Slot(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

/// The way to the writer's thread, which ends when the last of these is dropped.
#[derive(Clone)]
pub(super) struct Audit {
    queue: mpsc::Sender<Entry>,
    slots: Arc<Semaphore>,
}

impl Audit {
    /// Starts the thread that writes to `file`.
    pub(super) fn start(file: AuditFile) -> Result<Self, AuditError> {
        let (queue, entries) = mpsc::channel();
        file.write_in_background(entries)?;
        Ok(Self { queue, slots: Arc::new(Semaphore::new(RECORDS_OUTSTANDING_MAX)) })
    }

    pub(super) async fn slot(&self) -> Slot {
        match self.slots.clone().acquire_owned().await {
            Ok(slot) => Slot(slot),
            Err(_) => unreachable!("the semaphore is never closed"),
        }
    }

    /// Puts changes of the gate on record; they are on disk when this returns.
    pub(super) async fn gate(&self, records: Vec<GateRecord>) -> Result<(), AuditError> {
        let (done, waiting) = oneshot::channel();
        self.queue
            .send(Entry::Gate(records.into_iter().map(Record::Gate).collect(), done))
            .map_err(|_| AuditError::Stopped)?;
        waiting.await.unwrap_or(Err(AuditError::Stopped))
    }

    /// Waits until every record so far is on disk.
    pub(super) async fn flush(&self) -> Result<(), AuditError> {
        let (done, waiting) = oneshot::channel();
        self.queue.send(Entry::Flush(done)).map_err(|_| AuditError::Stopped)?;
        waiting.await.unwrap_or(Err(AuditError::Stopped))
    }
}

/// A request's record in the making. Dropped without an end, it says that the request was dropped.
pub(super) struct Trail {
    begun: Instant,
    audit: Audit,
    /// `None` once it has been sent to the writer.
    open: Option<(RequestRecord, Slot)>,
}

impl Trail {
    pub(super) fn begin(
        slot: Slot,
        gate: &Gate,
        purpose: Purpose,
        upstream: &Arc<str>,
        host: &str,
        request: &Request<Full<Bytes>>,
    ) -> Self {
        let record = RequestRecord {
            at: gate.0.clock.now(),
            purpose,
            upstream: upstream.clone(),
            host: host.to_owned(),
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            status: None,
            bytes: 0,
            ms: 0,
            outcome: Outcome::Dropped,
            cause: None,
        };
        Self { begun: Instant::now(), audit: gate.0.audit.clone(), open: Some((record, slot)) }
    }

    pub(super) fn status(&mut self, status: StatusCode) {
        if let Some((record, _)) = &mut self.open {
            record.status = Some(status.as_u16());
        }
    }

    pub(super) fn add(&mut self, bytes: usize) {
        if let Some((record, _)) = &mut self.open {
            record.bytes += bytes as u64;
        }
    }

    pub(super) fn end(mut self, outcome: Outcome) {
        self.send(outcome, None);
    }

    pub(super) fn end_with(mut self, error: &SendError) {
        let (outcome, cause) = match error {
            SendError::Refused(_) => (Outcome::CutByTheGate, None),
            SendError::Connect { source, .. } => (Outcome::Unreachable, Some(chain(source.as_ref()))),
            SendError::Broken { source, .. } => (Outcome::Broken, Some(chain(source.as_ref()))),
            SendError::TimedOut { .. } => (Outcome::TimedOut, Some(error.to_string())),
        };
        self.send(outcome, cause);
    }

    fn send(&mut self, outcome: Outcome, cause: Option<String>) {
        let Some((mut record, slot)) = self.open.take() else { return };
        record.ms = self.begun.elapsed().as_millis() as u64;
        record.outcome = outcome;
        record.cause = cause;
        if let Err(mpsc::SendError(Entry::Request(record, _))) =
            self.audit.queue.send(Entry::Request(Record::Request(record), slot))
        {
            super::audit_file::lost(&record, &AuditError::Stopped);
        }
    }
}

impl Drop for Trail {
    fn drop(&mut self) {
        self.send(Outcome::Dropped, None);
    }
}

/// An error and its causes in one line, at most [`CAUSE_MAX`] characters.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text.chars().take(CAUSE_MAX).collect()
}
