//! The followers of a fill: what they may read, from memory or from the file, and what they must not.
//!
//! Kept here:
//! * 3: the last [`HELD_BACK`] bytes are not readable before the digest is right.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use tokio::sync::watch;

use super::miss::FetchError;
use super::recent::Recent;
use crate::store::KeptBlob;

/// Bytes at the end of a fill that nobody gets before the digest is right.
pub const HELD_BACK: u64 = 64 << 10;

/// How far a fill is; written by it, watched by its followers.
#[derive(Clone, Default)]
pub(super) struct Progress {
    /// Where followers read; `None` until upstream has answered.
    pub(super) file: Option<Arc<File>>,
    pub(super) size: Option<u64>,
    /// How much of the file may be read.
    pub(super) readable: u64,
    pub(super) recent: Recent,
    /// Counts the times that the bytes began anew: who read earlier ones must break off.
    pub(super) generation: u32,
    pub(super) end: Option<Result<KeptBlob, FetchError>>,
}

/// A follower of a fill. Clients that leave just drop it; clones are the same follower.
#[derive(Clone)]
pub struct Following {
    progress: watch::Receiver<Progress>,
    /// The generation whose bytes were read, or [`UNREAD`].
    generation: Arc<AtomicU32>,
}

const UNREAD: u32 = u32::MAX;

/// What a follower may read now.
pub enum Readable {
    /// The next bytes.
    Bytes(Bytes),
    /// The file up to `end`, exclusive; `finished`: that is the end of the blob.
    File { file: Arc<File>, end: u64, finished: bool },
}

impl Following {
    pub(super) fn new(progress: watch::Receiver<Progress>) -> Self {
        Self { progress, generation: Arc::new(AtomicU32::new(UNREAD)) }
    }

    /// A second follower of the same fill.
    pub fn another(&self) -> Self {
        Self::new(self.progress.clone())
    }

    /// Waits until upstream has answered; the size, where upstream or a manifest states it.
    pub async fn size(&self) -> Result<Option<u64>, FetchError> {
        let mut progress = self.progress.clone();
        let seen = progress.wait_for(|now| now.file.is_some() || now.end.is_some()).await;
        let seen = seen.map_err(|_| FetchError::GaveUp)?;
        match &seen.end {
            Some(Err(why)) => Err(why.clone()),
            Some(Ok(blob)) => Ok(Some(blob.size)),
            None => Ok(seen.size),
        }
    }

    /// Waits for the end.
    pub async fn kept(&self) -> Result<KeptBlob, FetchError> {
        let mut progress = self.progress.clone();
        let seen = progress.wait_for(|now| now.end.is_some()).await.map_err(|_| FetchError::GaveUp)?;
        seen.end.clone().unwrap_or(Err(FetchError::GaveUp))
    }

    /// Waits until bytes past `offset` may be read. After an error, what was sent so far must not look complete.
    pub async fn readable(&self, offset: u64) -> Result<Readable, FetchError> {
        let mut progress = self.progress.clone();
        loop {
            {
                let now = progress.borrow_and_update();
                let read = self.generation.load(Ordering::Relaxed);
                if read != UNREAD && read != now.generation {
                    return Err(FetchError::BeganAnew);
                }
                match (&now.end, &now.file) {
                    (Some(Ok(blob)), _) => {
                        return Ok(Readable::File { file: blob.file.clone(), end: blob.size, finished: true });
                    }
                    (Some(Err(why)), _) => return Err(why.clone()),
                    (None, Some(file)) => {
                        if let Some(readable) = now.at(offset, file) {
                            self.generation.store(now.generation, Ordering::Relaxed);
                            return Ok(readable);
                        }
                    }
                    (None, None) => {}
                }
            }
            progress.changed().await.map_err(|_| FetchError::GaveUp)?;
        }
    }
}

impl Progress {
    fn at(&self, offset: u64, file: &Arc<File>) -> Option<Readable> {
        let limit = held_back(self.recent.end(), self.size);
        if let Some(piece) = self.recent.piece(offset, limit) {
            return Some(Readable::Bytes(piece));
        }
        let end = self.readable;
        (end > offset).then(|| Readable::File { file: file.clone(), end, finished: false })
    }
}

/// How much of `written` may be read before the digest is known to be right.
pub(super) fn held_back(written: u64, size: Option<u64>) -> u64 {
    written.min(size.unwrap_or(written).saturating_sub(HELD_BACK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_is_held_back_until_the_digest_is_right() {
        // Invariant 3
        let size = 10 * HELD_BACK;
        assert_eq!(held_back(size, Some(size)), size - HELD_BACK);
        assert_eq!(held_back(HELD_BACK, Some(size)), HELD_BACK);
        assert_eq!(held_back(size, None), size - HELD_BACK);
        assert_eq!(held_back(5, None), 0);
        assert_eq!(held_back(5, Some(5)), 0);
    }
}
