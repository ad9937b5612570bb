//! Uploads: begun, written to in order, and kept under the digest that the client says in the end.
//!
//! ```text
//! client ── pieces ──> queue (bounded) ──> worker: writes and hashes in batches ──> leave, or keep
//! ```
//! The worker is a task of the server's: a client that goes away leaves the upload where it stood, to be resumed. It
//! holds a thread only while it writes, so that many slow clients do not hold up the disk's other users.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{Order, Push, PushError};
use crate::oci::{Algorithm, Digest, Reference};
use crate::store::{KeepError, StoreError, Upload, UploadError, UploadId};

/// Bytes of all uploads together that wait for the disk.
pub(super) const ROOM_BYTES: usize = 8 << 20;
/// Pieces of one upload that wait for the disk.
const QUEUE_PIECES: usize = 16;
/// How long a request waits for an earlier one to let go of the upload: a client that lost its connection comes back
/// before the server has noticed.
const BUSY_PATIENCE: Duration = Duration::from_secs(2);

/// What a client says of a chunk before it sends it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins; `None`: where the upload stands.
    pub start: Option<u64>,
    /// How long it is, in bytes.
    pub length: Option<u64>,
}

/// An upload that is being written to. Dropping it leaves what has come, as [`Appending::leave`] does.
pub struct Appending {
    push: Push,
    pieces: mpsc::Sender<Piece>,
    fate: Option<oneshot::Sender<Fate>>,
    worker: JoinHandle<Result<u64, PushError>>,
    stated: Option<u64>,
    begun_at: u64,
    written: u64,
}

/// Bytes on their way to the disk, and the room that they take.
struct Piece {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

/// What becomes of the upload when its pieces end.
enum Fate {
    Leave,
    Keep(Digest),
    Discard,
}

struct Worker {
    push: Push,
    order: Order,
    id: UploadId,
    /// Cancelled when this is dropped.
    ended: Arc<CancellationToken>,
}

impl Push {
    /// Begins an upload; `algorithm` is what the client says its digest will be of.
    pub async fn begin(&self, order: &Order, algorithm: Option<Algorithm>) -> Result<UploadId, PushError> {
        self.check_push(order)?;
        let begun = self.0.store.begin_upload(&order.target.repository, &order.owner, order.client, algorithm).await;
        begun.map_err(|why| PushError::of_upload(why, &order.target.asked))
    }

    /// Bytes that an upload has so far.
    pub async fn written(&self, order: &Order, id: &UploadId) -> Result<u64, PushError> {
        self.check_push(order)?;
        let size = || self.0.store.upload_size(&order.target.repository, &order.owner, id);
        let size = match size().await {
            // Whoever asks has likely lost the connection on which it was writing.
            Ok(_) if self.is_let_go(id).await => size().await,
            size => size,
        };
        size.map_err(|why| PushError::of_upload(why, &order.target.asked))
    }

    pub async fn cancel(&self, order: &Order, id: &UploadId) -> Result<(), PushError> {
        self.check_push(order)?;
        let cancelled = self.0.store.cancel_upload(&order.target.repository, &order.owner, id).await;
        cancelled.map_err(|why| PushError::of_upload(why, &order.target.asked))
    }

    /// Opens an upload for what `extent` says of the bytes to come.
    pub async fn append(&self, order: &Order, id: &UploadId, extent: Extent) -> Result<Appending, PushError> {
        self.check_push(order)?;
        let upload = self.open(order, id).await.map_err(|why| PushError::of_upload(why, &order.target.asked))?;
        let written = upload.written();
        if let Err(why) = self.check_extent(written, extent).await {
            upload.leave().await?;
            return Err(why);
        }
        let (pieces, queue) = mpsc::channel(QUEUE_PIECES);
        let (fate, decided) = oneshot::channel();
        let ended = Arc::new(CancellationToken::new());
        self.0.running.insert(*id, ended.clone());
        let worker = Worker { push: self.clone(), order: order.clone(), id: *id, ended };
        let worker = self.0.tasks.spawn(worker.run(upload, queue, decided));
        let (push, fate, stated) = (self.clone(), Some(fate), extent.length);
        Ok(Appending { push, pieces, fate, worker, stated, begun_at: written, written })
    }

    async fn open(&self, order: &Order, id: &UploadId) -> Result<Upload, UploadError> {
        let (store, repository) = (&self.0.store, &order.target.repository);
        match store.open_upload(repository, &order.owner, id).await {
            Err(UploadError::Busy) => {
                self.is_let_go(id).await;
                store.open_upload(repository, &order.owner, id).await
            }
            opened => opened,
        }
    }

    /// Waits a little for the request that is writing to the upload, if there is one; whether it ended.
    async fn is_let_go(&self, id: &UploadId) -> bool {
        let running = self.0.running.get(id).map(|running| running.clone());
        let Some(ended) = running else { return false };
        tokio::time::timeout(BUSY_PATIENCE, ended.cancelled()).await.is_ok()
    }

    async fn check_extent(&self, written: u64, extent: Extent) -> Result<(), PushError> {
        if let Some(start) = extent.start.filter(|start| *start != written) {
            return Err(PushError::OutOfOrder { start, written });
        }
        let more = extent.length.unwrap_or(0);
        self.check_size(written.saturating_add(more))?;
        // Found out before anything is sent, where the length is known.
        Ok(self.0.store.find_room(more).await?)
    }

    fn check_size(&self, size: u64) -> Result<(), PushError> {
        let max = self.0.settings.blob_size_max;
        if size <= max.0 { Ok(()) } else { Err(PushError::BlobTooLarge { max }) }
    }
}

impl Appending {
    /// Bytes that the upload has, those on their way to the disk included.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Hands bytes on; waits while others take up the room.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), PushError> {
        let more = bytes.len() as u64;
        let came = self.written + more - self.begun_at;
        if let Some(stated) = self.stated.filter(|stated| came > *stated) {
            return Err(PushError::SizeDiffers { stated, came });
        }
        if let Err(why) = self.push.check_size(self.written + more) {
            // It can never be finished: the room is worth more than the part.
            self.decide(Fate::Discard);
            return Err(why);
        }
        let room = u32::try_from(bytes.len().min(ROOM_BYTES)).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.push.0.room).acquire_many_owned(room).await.map_err(|_| PushError::GaveUp)?;
        if self.pieces.send(Piece { bytes, _room: room }).await.is_err() {
            // The worker takes nothing more, and knows why.
            return Err(self.outcome().await.err().unwrap_or(PushError::GaveUp));
        }
        self.written += more;
        Ok(())
    }

    /// Ends the chunk; returns how many bytes the upload has now.
    pub async fn leave(mut self) -> Result<u64, PushError> {
        let complete = self.check_length();
        let written = self.end(Fate::Leave).await?;
        complete.map(|()| written)
    }

    /// Ends the upload: its bytes are kept if they hash to `digest`; if not, nothing of it is left.
    pub async fn keep(mut self, digest: &Digest) -> Result<(), PushError> {
        if let Err(why) = self.check_length() {
            self.end(Fate::Leave).await?;
            return Err(why);
        }
        self.end(Fate::Keep(*digest)).await.map(drop)
    }

    /// Ends the upload and removes it.
    pub async fn discard(mut self) -> Result<(), PushError> {
        self.end(Fate::Discard).await.map(drop)
    }

    fn check_length(&self) -> Result<(), PushError> {
        let came = self.written - self.begun_at;
        match self.stated {
            Some(stated) if stated != came => Err(PushError::SizeDiffers { stated, came }),
            _ => Ok(()),
        }
    }

    async fn end(&mut self, fate: Fate) -> Result<u64, PushError> {
        self.decide(fate);
        // The worker goes on when it has seen the last piece.
        let (closed, _) = mpsc::channel(1);
        self.pieces = closed;
        self.outcome().await
    }

    fn decide(&mut self, fate: Fate) {
        if let Some(decided) = self.fate.take() {
            // A worker that ended early has its own outcome.
            let _ = decided.send(fate);
        }
    }

    async fn outcome(&mut self) -> Result<u64, PushError> {
        (&mut self.worker).await.unwrap_or(Err(PushError::GaveUp))
    }
}

impl Worker {
    /// Returns how many bytes the upload has in the end.
    async fn run(
        self,
        mut upload: Upload,
        mut queue: mpsc::Receiver<Piece>,
        decided: oneshot::Receiver<Fate>,
    ) -> Result<u64, PushError> {
        loop {
            let mut pieces = Vec::with_capacity(QUEUE_PIECES);
            if queue.recv_many(&mut pieces, QUEUE_PIECES).await == 0 {
                break;
            }
            // A length that nobody stated was not held against the room.
            let room = self.push.0.store.find_room(pieces.iter().map(|piece| piece.bytes.len() as u64).sum()).await;
            let (back, outcome) = blocking(move || {
                let outcome = room.and_then(|()| pieces.iter().try_for_each(|piece| upload.write(&piece.bytes)));
                (upload, outcome)
            })
            .await?;
            upload = back;
            match outcome {
                Ok(()) => {}
                // The room is worth more than the part.
                Err(why @ StoreError::Full(_)) => {
                    self.discard(upload).await;
                    return Err(why.into());
                }
                Err(why) => {
                    self.leave(upload).await?;
                    return Err(why.into());
                }
            }
        }
        match decided.await {
            Ok(Fate::Keep(digest)) => self.keep(upload, digest).await,
            Ok(Fate::Discard) => {
                self.discard(upload).await;
                Ok(0)
            }
            // The client went away.
            Ok(Fate::Leave) | Err(_) => self.leave(upload).await,
        }
    }

    async fn leave(&self, upload: Upload) -> Result<u64, PushError> {
        let written = upload.written();
        upload.leave().await?;
        Ok(written)
    }

    async fn keep(&self, upload: Upload, digest: Digest) -> Result<u64, PushError> {
        let repository = &self.order.target.repository;
        let kept = match upload.keep(&digest).await {
            Ok(kept) => kept,
            Err(KeepError::WrongBytes { expected, actual }) => {
                warn!(%repository, %expected, %actual, "an upload to {repository} was not what it should be");
                let (expected, actual) = (expected.to_string(), actual.to_string());
                return Err(PushError::DigestDiffers { expected, actual });
            }
            Err(KeepError::Store(why)) => return Err(why.into()),
        };
        info!(%repository, %digest, size_bytes = kept.size, "kept {digest}, pushed to {repository}");
        self.push.cross_off(repository, &Reference::Digest(digest)).await;
        Ok(kept.size)
    }

    async fn discard(&self, upload: Upload) {
        drop(upload);
        let (repository, owner) = (&self.order.target.repository, &self.order.owner);
        if let Err(why) = self.push.0.store.cancel_upload(repository, owner, &self.id).await {
            error!(%repository, error = &why as &dyn std::error::Error, "an upload that cannot be finished stays: {why}");
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Unless a later request has it already.
        self.push.0.running.remove_if(&self.id, |_, running| Arc::ptr_eq(running, &self.ended));
        self.ended.cancel();
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, PushError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| PushError::GaveUp)
}
