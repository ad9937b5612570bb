//! Which kept files are known to hold the right bytes, and the checks that find it out.
//!
//! A file was hashed when it was written, by a check, or by the scrub. That is believed for [`KNOWN_FOR`], while the
//! process runs and the file looks the same: its inode, its length, the times of its last changes. Whoever reads all of
//! any other file waits, before its last bytes, for a check that all its readers share (invariant 3). Bits that rot
//! under a file that looks the same are the scrub's to find.

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use quick_cache::sync::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::catalog::writer::Change;
use super::memory::DIGESTS_MAX;
use super::trash::FileId;
use super::{FoundBy, Inner, KeptBlob, Store, StoreError, blocking};
use crate::oci::Digest;

/// How long a file is believed to hold the right bytes since they were hashed.
pub const KNOWN_FOR: SignedDuration = SignedDuration::from_hours(24);
/// Checks that readers wait for and that run at one time; more wait.
const CHECKS_MAX: usize = 4;
/// A file of up to so many bytes is checked at once: it is read in a moment, and must not wait behind large ones.
pub const PROMPT_BYTES_MAX: u64 = 64 << 10;
/// Bytes that a check reads in a second while nobody waits for it: as many as the scrub by default.
const UNHURRIED_RATE: u64 = 16 << 20;
/// Bytes that are read at a time to hash a file.
const PIECE: usize = 1 << 20;

/// What a file looks like from outside: where this differs, its bytes may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Look {
    pub id: FileId,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

/// What is known of the kept files, and the checks under way.
pub struct Sound {
    known: Cache<Digest, (Look, Timestamp)>,
    /// At most one that nobody waits for, and as many as there are readers.
    running: Mutex<HashMap<(Digest, Look), Arc<Flight>>>,
    places: Semaphore,
    /// Held by the one check that nobody waited for when it began.
    unhurried: Arc<Semaphore>,
    tasks: TaskTracker,
}

/// One check, shared by all who wait for it.
struct Flight {
    /// Somebody waits for it.
    hurried: AtomicBool,
    verdict: watch::Sender<Option<Result<(), Unsound>>>,
}

/// A place at a check of a blob's bytes. Dropping it gives up waiting.
pub struct Check(watch::Receiver<Option<Result<(), Unsound>>>);

/// Why the bytes of a blob must not be handed over whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsound {
    /// It is set aside and no longer kept.
    #[error("the bytes of the kept copy are wrong")]
    Wrong,
    #[error("the kept copy could not be read to its end and held against its digest")]
    Unread,
}

impl Look {
    pub fn of(found: &Metadata) -> Self {
        let (modified, changed) = ((found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec()));
        Self { id: FileId::of(found), size: found.len(), modified, changed }
    }
}

impl Sound {
    pub fn new() -> Self {
        let (places, unhurried) = (Semaphore::new(CHECKS_MAX), Arc::new(Semaphore::new(1)));
        let known = Cache::new(DIGESTS_MAX);
        Self { known, running: Mutex::default(), places, unhurried, tasks: TaskTracker::new() }
    }

    fn knows(&self, digest: &Digest, look: &Look, now: Timestamp) -> bool {
        self.known.get(digest).is_some_and(|(known, at)| {
            // A clock that went back says nothing of how long ago that was.
            known == *look && at <= now && now.duration_since(at) < KNOWN_FOR
        })
    }

    /// The bytes of the file that looked like this hash to `digest`.
    pub fn note(&self, digest: &Digest, look: Look, now: Timestamp) {
        self.known.insert(*digest, (look, now));
    }

    /// Waits until no check runs any more; they end early when the store closes.
    pub async fn ended(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Check {
    /// Waits for the end of the check.
    pub async fn outcome(mut self) -> Result<(), Unsound> {
        let ended = self.0.wait_for(Option::is_some).await;
        ended.ok().and_then(|verdict| *verdict).unwrap_or(Err(Unsound::Unread))
    }
}

impl Store {
    /// For who is about to read all of `blob`: `None` if its bytes are known to be right, else a check of them, whose
    /// outcome is to be waited for before the last bytes are handed on. Costs one look at the open file.
    pub fn check(&self, blob: &KeptBlob) -> Option<Check> {
        let inner = &self.0;
        let look = match blob.file.metadata() {
            Ok(found) => Look::of(&found),
            Err(_) => return Some(Check(watch::Sender::new(Some(Err(Unsound::Unread))).subscribe())),
        };
        let known = inner.sound.knows(&blob.digest, &look, inner.clock.now());
        (!known).then(|| inner.join_check(blob, look, None))
    }

    /// For who reads a part of `blob`, which cannot be held against anything by itself: if its bytes are not known to
    /// be right, all of them are read slowly, for the sake of those who come later. One blob at a time; others are left
    /// to their next reader.
    pub fn check_later(&self, blob: &KeptBlob) {
        let inner = &self.0;
        let Ok(look) = blob.file.metadata().map(|found| Look::of(&found)) else { return };
        if !inner.sound.knows(&blob.digest, &look, inner.clock.now())
            && let Ok(turn) = inner.sound.unhurried.clone().try_acquire_owned()
        {
            drop(inner.join_check(blob, look, Some(turn)));
        }
    }
}

impl Inner {
    /// A blob that was hashed as it was written, and is in its place.
    pub(super) fn note_sound(&self, blob: &KeptBlob) {
        // Without a look at it, it is checked when it is read.
        if let Ok(found) = blob.file.metadata() {
            self.sound.note(&blob.digest, Look::of(&found), self.clock.now());
        }
    }

    /// Joins the running check of that file, or starts it; with a `turn` it takes its time until somebody waits for it.
    fn join_check(self: &Arc<Self>, blob: &KeptBlob, look: Look, turn: Option<OwnedSemaphorePermit>) -> Check {
        let (key, hurried) = ((blob.digest, look), turn.is_none());
        let mut running = self.sound.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = running.get(&key) {
            flight.hurried.fetch_or(hurried, Ordering::Relaxed);
            return Check(flight.verdict.subscribe());
        }
        let flight = Arc::new(Flight { hurried: AtomicBool::new(hurried), verdict: watch::Sender::new(None) });
        let check = Check(flight.verdict.subscribe());
        running.insert(key, flight.clone());
        drop(running);
        let slot = Slot { inner: self.clone(), key, flight };
        self.sound.tasks.spawn(slot.run(blob.clone(), turn));
        check
    }
}

/// A check's place in the table; freed when dropped, so that a panic leaves nobody waiting.
struct Slot {
    inner: Arc<Inner>,
    key: (Digest, Look),
    flight: Arc<Flight>,
}

impl Slot {
    async fn run(self, blob: KeptBlob, turn: Option<OwnedSemaphorePermit>) {
        let _place = match &turn {
            Some(_) => None,
            None if self.key.1.size <= PROMPT_BYTES_MAX => None,
            None => tokio::select! {
                place = self.inner.sound.places.acquire() => place.ok(),
                () = self.is_left() => return,
            },
        };
        let verdict = match self.settle(blob).await {
            Ok(verdict) => verdict,
            Err(why) => {
                let (digest, error) = (self.key.0, &why as &dyn std::error::Error);
                tracing::error!(%digest, error, "the bytes of {digest} could not be held against it: {why}");
                Err(Unsound::Unread)
            }
        };
        self.free();
        self.flight.verdict.send_replace(Some(verdict));
    }

    /// Waits until nobody waits for it, and leaves the table then.
    async fn is_left(&self) {
        loop {
            self.flight.verdict.closed().await;
            let mut running = self.inner.sound.running.lock().unwrap_or_else(PoisonError::into_inner);
            // Whoever joins does so under the same lock.
            if self.flight.verdict.receiver_count() == 0 {
                running.remove(&self.key);
                return;
            }
        }
    }

    async fn settle(&self, blob: KeptBlob) -> Result<Result<(), Unsound>, StoreError> {
        let (inner, (digest, look)) = (&self.inner, self.key);
        let (flight, closing) = (self.flight.clone(), inner.closing.clone());
        let hashed = blocking(move || {
            let right = hash(&blob, &flight.hurried, &closing);
            let after = blob.file.metadata();
            let read = right.and_then(|right| Ok((right, Look::of(&after?))));
            read.map_err(|source| StoreError::Io { doing: "read", path: blob.digest.to_string(), source })
        });
        let (right, after) = hashed.await?;
        let verdict = judge(right, &look, &after);
        match verdict {
            Ok(()) => inner.sound.note(&digest, look, inner.clock.now()),
            Err(Unsound::Wrong) => {
                let change = Change::SetAside { digest, wrong: look.id, by: FoundBy::Read };
                if let Err(why) = inner.writer.apply(change).await {
                    let error = &why as &dyn std::error::Error;
                    tracing::error!(%digest, error, "the bytes of {digest} are wrong, but it cannot be set aside: {why}");
                }
            }
            Err(Unsound::Unread) => {}
        }
        Ok(verdict)
    }

    fn free(&self) {
        let mut running = self.inner.sound.running.lock().unwrap_or_else(PoisonError::into_inner);
        if running.get(&self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            running.remove(&self.key);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.free();
        self.flight.verdict.send_if_modified(|verdict| {
            let open = verdict.is_none();
            verdict.get_or_insert(Err(Unsound::Unread));
            open
        });
    }
}

/// What to say of bytes that hash rightly or not (`None`: broken off), of a file that looked so before and after. Written
/// to meanwhile, what was read may be of neither; moved, as a collection moves it, it is what it was.
fn judge(right: Option<bool>, before: &Look, after: &Look) -> Result<(), Unsound> {
    let untouched = (before.id, before.size, before.modified) == (after.id, after.size, after.modified);
    match right {
        Some(true) if untouched => Ok(()),
        Some(false) if untouched => Err(Unsound::Wrong),
        _ => Err(Unsound::Unread),
    }
}

/// Whether the bytes are those of the digest, and as many as there should be; `None`: the store closes. Blocking.
fn hash(blob: &KeptBlob, hurried: &AtomicBool, closing: &CancellationToken) -> io::Result<Option<bool>> {
    // One byte more than there should be, so that a file that has more is seen to.
    let piece_size = usize::try_from(blob.size + 1).map_or(PIECE, |size| size.min(PIECE));
    let (mut hasher, mut piece, mut at) = (blob.digest.algorithm().hasher(), vec![0; piece_size], 0);
    loop {
        let count = read_at(&blob.file, &mut piece, at)?;
        if count == 0 {
            return Ok(Some(at == blob.size && hasher.finish() == blob.digest));
        }
        hasher.update(&piece[..count]);
        at += count as u64;
        if closing.is_cancelled() {
            return Ok(None);
        }
        if !hurried.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_secs_f64(count as f64 / UNHURRIED_RATE as f64));
        }
    }
}

fn read_at(file: &File, into: &mut [u8], at: u64) -> io::Result<usize> {
    loop {
        match file.read_at(into, at) {
            Err(why) if why.kind() == io::ErrorKind::Interrupted => continue,
            read => return read,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::clock::Clock;

    #[tokio::test]
    async fn a_small_file_does_not_wait_behind_large_ones() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Clock::wound(Timestamp::UNIX_EPOCH)).await.unwrap();
        let blob = |size: u64| {
            let bytes = vec![7; size as usize];
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&bytes).unwrap();
            KeptBlob { file: Arc::new(file), digest: Digest::sha256(&bytes), size }
        };
        // Large ones on a slow disk have all the places.
        let places = store.0.sound.places.acquire_many(CHECKS_MAX as u32).await.unwrap();
        let large = store.check(&blob(PROMPT_BYTES_MAX + 1)).unwrap();
        for size in [0, 2, PROMPT_BYTES_MAX] {
            let small = store.check(&blob(size)).unwrap().outcome();
            let verdict = tokio::time::timeout(Duration::from_secs(20), small).await.expect("it waits for a place");
            assert_eq!(verdict, Ok(()), "{size}");
        }
        assert!(large.0.borrow().is_none(), "a large one waits for its turn");
        drop(places);
        assert_eq!(large.outcome().await, Ok(()));
    }

    #[test]
    fn a_file_that_is_moved_while_it_is_read_is_what_it_was_and_one_that_is_written_to_is_not() {
        // Invariant 3
        let look = Look::of(&tempfile::tempfile().unwrap().metadata().unwrap());
        let moved = Look { changed: (look.changed.0 + 1, 0), ..look };
        let written = Look { modified: (look.modified.0 + 1, 0), ..moved };
        assert_eq!(judge(Some(true), &look, &moved), Ok(()));
        assert_eq!(judge(Some(false), &look, &moved), Err(Unsound::Wrong));
        for right in [Some(true), Some(false)] {
            assert_eq!(judge(right, &look, &written), Err(Unsound::Unread), "{right:?}");
            assert_eq!(judge(right, &look, &Look { size: look.size + 1, ..look }), Err(Unsound::Unread));
        }
        assert_eq!(judge(None, &look, &look), Err(Unsound::Unread));
    }
}
