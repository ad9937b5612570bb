//! One running download of one digest into the store, shared by all who want it.
//!
//! Kept here:
//! * 4: one download per digest; it belongs to the server. Clients follow its file and leave as they like.
//! * 14: who joins from another repository must have a right to the digest there (checked by the caller).
//!
//! ```text
//! upstream ── pieces ──┬─> queue (bounded) ──> worker thread: write, hash ──> file ──┐
//!                      └─> the newest, in memory ──> followers that keep up          └─> followers that do not
//! ```

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::follow::{Following, Progress, held_back};
use super::miss::FetchError;
use super::recent::Recent;
use crate::names::Repository;
use crate::oci::Digest;
use crate::store::{KeptBlob, Staged, Store};
use crate::upstream::{BlobStream, Upstream, UpstreamError};

/// Fills from one upstream that run at once; more wait for a place. A slow upstream holds up only its own.
pub const FILLS_PER_UPSTREAM_MAX: usize = 32;
/// Fills that run or wait; who asks for one more is told to come back.
pub const FILLS_MAX: usize = 1024;
/// A fill that brings less than [`PACE_BYTES_MIN`] in this time is given up; its part is kept.
const PACE_SPAN: Duration = Duration::from_secs(60);
const PACE_BYTES_MIN: usize = 64 << 10;
/// Bytes after which followers are told of progress even while more waits to be written.
const PUBLISH_BYTES: u64 = 256 << 10;
/// Pieces between upstream's connection and the disk.
const QUEUE_PIECES: usize = 16;

/// The fills under way, by digest.
#[derive(Clone)]
pub struct Fills {
    running: Arc<DashMap<Digest, Arc<Fill>>>,
    /// By upstream: one entry each, so bounded by the settings.
    places: Arc<DashMap<String, Arc<Semaphore>>>,
    store: Store,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What a fill is to fetch, and from where.
#[derive(Clone)]
pub struct Order {
    pub digest: Digest,
    pub repository: Repository,
    pub upstream: Arc<Upstream>,
    /// The size that a kept manifest states. It also proves that the repository has the blob; without it, upstream is
    /// asked before bytes that came by another name are granted (invariant 14).
    pub expected_size: Option<u64>,
}

/// A place at a fill.
pub struct Joined {
    pub following: Following,
    /// Whether it was ordered for another repository, whose right and whose luck are not ours.
    pub elsewhere: bool,
}

struct Fill {
    repository: Repository,
    progress: watch::Sender<Progress>,
}

impl Fills {
    /// Fills that run at `stop` leave their part staged.
    pub fn new(store: Store, tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self { running: Arc::default(), places: Arc::default(), store, tasks, stop }
    }

    /// Fills under way.
    pub fn under_way(&self) -> usize {
        self.running.len()
    }

    /// Follows the running fill of the digest, or starts it.
    pub fn join(&self, order: Order) -> Result<Joined, FetchError> {
        let full = self.running.len() >= FILLS_MAX;
        let (fill, started) = match self.running.entry(order.digest) {
            Entry::Occupied(running) => (running.get().clone(), false),
            Entry::Vacant(_) if full => return Err(FetchError::Busy),
            Entry::Vacant(free) => {
                let progress = watch::Sender::new(Progress::default());
                let fill = Arc::new(Fill { repository: order.repository.clone(), progress });
                free.insert(fill.clone());
                (fill, true)
            }
        };
        let following = Following::new(fill.progress.subscribe());
        let elsewhere = fill.repository != order.repository;
        if started {
            let slot = Slot { fills: self.clone(), digest: order.digest, fill };
            self.tasks.spawn(slot.run(order));
        }
        Ok(Joined { following, elsewhere })
    }

    fn places_of(&self, upstream: &str) -> Arc<Semaphore> {
        if let Some(places) = self.places.get(upstream) {
            return places.clone();
        }
        let new = || Arc::new(Semaphore::new(FILLS_PER_UPSTREAM_MAX));
        self.places.entry(upstream.to_owned()).or_insert_with(new).clone()
    }
}

/// A fill's place in the table; freed when dropped, so that a panic does not block the digest for good.
struct Slot {
    fills: Fills,
    digest: Digest,
    fill: Arc<Fill>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.free();
        self.fill.progress.send_if_modified(|progress| {
            let unfinished = progress.end.is_none();
            progress.end.get_or_insert(Err(FetchError::GaveUp));
            unfinished
        });
    }
}

impl Slot {
    async fn run(self, order: Order) {
        let end = self.fetch(&order).await;
        match &end {
            Ok(blob) => {
                let (repository, digest) = (&order.repository, &self.digest);
                info!(%repository, %digest, size_bytes = blob.size, "kept {digest} of {repository}");
                if let Err(why) = self.fills.store.forget_wanted(&repository.to_string(), &digest.to_string()).await {
                    error!(%digest, "cannot cross {digest} off the wanted list: {why}");
                }
            }
            Err(FetchError::GaveUp) => {
                info!(digest = %self.digest, "fill of {} stopped; its part is kept", order.repository)
            }
            Err(FetchError::Upstream(why)) => warn!(digest = %self.digest, "fill of {} ended: {why}", order.repository),
            Err(why) => error!(digest = %self.digest, "fill of {} failed: {why}", order.repository),
        }
        // Free the digest before telling the followers: whoever asks after the outcome starts afresh.
        self.free();
        self.fill.progress.send_modify(|progress| (progress.end, progress.recent) = (Some(end), Recent::default()));
    }

    async fn fetch(&self, order: &Order) -> Result<KeptBlob, FetchError> {
        let places = self.fills.places_of(order.upstream.name());
        let _place = self.unless_stopped(places.acquire()).await?.map_err(|_| FetchError::GaveUp)?;
        let store = &self.fills.store;
        if store.has_blob(&self.digest).await? {
            // It is here by another name, or an earlier fill landed just now.
            if order.expected_size.is_none() {
                self.unless_stopped(order.upstream.has_blob(&order.repository.name, &self.digest)).await??;
            }
            store.grant_blob(&order.repository, &self.digest).await?;
            if let Some(blob) = store.blob(&order.repository, &self.digest).await? {
                return Ok(blob);
            }
        }
        let (opening, digest) = (store.clone(), self.digest);
        let mut staged = blocking(move || opening.stage(&digest)).await??;
        let resumed = staged.written() > 0;
        loop {
            match self.attempt(order, staged).await {
                Ok(blob) => {
                    store.keep_blob(&order.repository, &blob).await?;
                    return Ok(blob);
                }
                // What an earlier run left may have been torn by a power cut: once more, from nothing.
                Err(FetchError::WrongDigest { .. }) if resumed && self.generation() == 0 => {
                    warn!(digest = %self.digest, "what was staged of {} is torn; it begins anew", self.digest);
                    let opening = store.clone();
                    staged = blocking(move || opening.stage(&digest)).await??;
                    self.fill.progress.send_modify(|progress| {
                        (progress.readable, progress.recent) = (0, Recent::default());
                        progress.generation += 1;
                    });
                }
                Err(why) => return Err(why),
            }
        }
    }

    /// Downloads what `staged` lacks. On an error what is written stays staged, unless it is known to be wrong.
    async fn attempt(&self, order: &Order, mut staged: Staged) -> Result<KeptBlob, FetchError> {
        if order.expected_size.is_some_and(|size| staged.written() > size) {
            staged.restart()?;
        }
        let already = order.expected_size == Some(staged.written()) && staged.digest_so_far() == self.digest;
        let mut stream = None;
        if !already {
            let opening = order.upstream.blob(&order.repository.name, &self.digest, staged.written());
            let opened = self.unless_stopped(opening).await??;
            if opened.start != staged.written() {
                staged.restart()?;
            }
            stream = Some(opened);
        }
        let stated = stream.as_ref().and_then(|stream| stream.size);
        let size = self.agreed_size(order, stated)?;
        // Found out before anybody reads: what does not fit passes through whole instead of breaking off half-way.
        let lacks = size.unwrap_or(0).saturating_sub(staged.written());
        if let Err(why) = self.unless_stopped(self.fills.store.find_room(lacks)).await? {
            staged.discard();
            return Err(why.into());
        }
        self.publish(&staged, size);

        let (pieces, queue) = mpsc::channel(QUEUE_PIECES);
        let writer = Writer { fill: self.fill.clone(), staged, size, upstream: order.upstream.name().to_owned() };
        let worker = tokio::task::spawn_blocking(move || writer.run(queue));
        if let Some(stream) = &mut stream {
            self.feed(order.upstream.name(), stream, &pieces).await;
        }
        drop(pieces);
        worker.await.map_err(|_| FetchError::GaveUp)?
    }

    /// Hands pieces on until the stream or the worker ends.
    async fn feed(&self, upstream: &str, stream: &mut BlobStream, pieces: &mpsc::Sender<Result<Bytes, FetchError>>) {
        let mut pace = Pace::new(Instant::now());
        let mut untold = 0;
        loop {
            let mut next = pin!(self.unless_stopped(stream.next()));
            let piece = match poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx))).await {
                Poll::Ready(piece) => piece,
                Poll::Pending => {
                    self.tell(&mut untold);
                    next.await
                }
            };
            let piece = match piece {
                Ok(None) => return,
                Ok(Some(Ok(piece))) if pace.is_too_slow(Instant::now(), piece.len()) => {
                    Err(UpstreamError::TimedOut { upstream: upstream.to_owned() }.into())
                }
                Ok(Some(piece)) => piece.map_err(FetchError::from),
                Err(stopped) => Err(stopped),
            };
            if let Ok(piece) = &piece {
                untold += piece.len() as u64;
                self.fill.progress.send_if_modified(|progress| {
                    progress.recent.push(piece.clone());
                    false
                });
            }
            if untold >= PUBLISH_BYTES {
                self.tell(&mut untold);
            }
            let last = piece.is_err();
            if pieces.send(piece).await.is_err() || last {
                return;
            }
        }
    }

    /// Wakes the followers, if there is something untold. Doing it for every piece would cost more than it hurries.
    fn tell(&self, untold: &mut u64) {
        if std::mem::take(untold) > 0 {
            self.fill.progress.send_modify(|_| {});
        }
    }

    async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Result<T, FetchError> {
        self.fills.stop.run_until_cancelled(work).await.ok_or(FetchError::GaveUp)
    }

    fn agreed_size(&self, order: &Order, stated: Option<u64>) -> Result<Option<u64>, FetchError> {
        match (stated, order.expected_size) {
            (Some(stated), Some(expected)) if stated != expected => {
                Err(FetchError::WrongSize { upstream: order.upstream.name().to_owned(), stated, expected })
            }
            (stated, expected) => Ok(stated.or(expected)),
        }
    }

    fn publish(&self, staged: &Staged, size: Option<u64>) {
        let (file, written) = (staged.file().clone(), staged.written());
        self.fill.progress.send_modify(|progress| {
            (progress.file, progress.size) = (Some(file), size);
            progress.readable = held_back(written, size);
            progress.recent = Recent::starting_at(written);
        });
    }

    /// Frees the digest, unless a later fill has it already.
    fn free(&self) {
        self.fills.running.remove_if(&self.digest, |_, fill| Arc::ptr_eq(fill, &self.fill));
    }

    fn generation(&self) -> u32 {
        self.fill.progress.borrow().generation
    }
}

/// Whether a fill that is never silent for long gets anywhere: it holds a place that others wait for.
struct Pace {
    since: Instant,
    bytes: usize,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { since: now, bytes: 0 }
    }

    fn is_too_slow(&mut self, now: Instant, more: usize) -> bool {
        self.bytes += more;
        if now.duration_since(self.since) < PACE_SPAN {
            return false;
        }
        let slow = self.bytes < PACE_BYTES_MIN;
        *self = Self::new(now);
        slow
    }
}

/// Writes and hashes on a thread of its own, so that the network does not wait for the disk.
struct Writer {
    fill: Arc<Fill>,
    staged: Staged,
    size: Option<u64>,
    upstream: String,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Result<Bytes, FetchError>>) -> Result<KeptBlob, FetchError> {
        let mut published = self.staged.written();
        while let Some(piece) = queue.blocking_recv() {
            match piece.and_then(|piece| Ok(self.staged.write(&piece)?)) {
                Ok(()) => {}
                // On a full disk the room is worth more than the part.
                Err(why) if why.is_disk_full() => {
                    self.staged.discard();
                    return Err(why);
                }
                Err(why) => {
                    self.staged.leave();
                    return Err(why);
                }
            }
            if self.size.is_some_and(|size| self.staged.written() > size) {
                self.staged.discard();
                return Err(FetchError::TooLong { upstream: self.upstream });
            }
            if queue.is_empty() || self.staged.written() - published >= PUBLISH_BYTES {
                published = self.staged.written();
                let readable = held_back(published, self.size);
                self.fill.progress.send_if_modified(|progress| {
                    // Whoever waits for the file is behind what is in memory.
                    let awaited = progress.readable < progress.recent.start();
                    progress.readable = readable;
                    awaited
                });
            }
        }
        self.staged.keep().map_err(|why| FetchError::from_keep(why, &self.upstream))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, FetchError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| FetchError::GaveUp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fill_that_only_trickles_is_given_up() {
        // Invariant 17
        let begun = Instant::now();
        let mut pace = Pace::new(begun);
        assert!(!pace.is_too_slow(begun, 1), "it has only begun");
        assert!(pace.is_too_slow(begun + PACE_SPAN, 1));
        assert!(!pace.is_too_slow(begun + 2 * PACE_SPAN, PACE_BYTES_MIN), "slow, but it gets there");
    }
}
