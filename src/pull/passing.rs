//! A blob that passes through unkept, because the disk has no room for it: verified all the same.
//!
//! Invariant 3 holds here as in a fill: the last [`HELD_BACK`] bytes are handed on only when the digest is right.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::follow::HELD_BACK;
use super::miss::{FetchError, Miss};
use crate::names::OfflineMiss;
use crate::oci::{Digest, Hasher};
use crate::upstream::BlobStream;

/// Pieces between upstream's connection and the client's.
const QUEUE_PIECES: usize = 8;

/// One client's passage. Dropping it ends the download, which serves nobody else.
pub struct Passing {
    /// `Ok(None)` is the end, and nothing else is: a channel that merely closes was given up.
    pieces: mpsc::Receiver<Result<Option<Bytes>, Miss>>,
    /// The whole size, where upstream states it.
    pub size: Option<u64>,
    what: String,
}

/// What is needed to check and to complain.
pub(super) struct Passage {
    pub(super) digest: Digest,
    pub(super) upstream: String,
    pub(super) what: String,
    pub(super) offline_miss: OfflineMiss,
}

impl Passing {
    pub(super) fn start(stream: BlobStream, passage: Passage, tasks: &TaskTracker) -> Self {
        let (sender, pieces) = mpsc::channel(QUEUE_PIECES);
        let (size, what) = (stream.size, passage.what.clone());
        tasks.spawn(async move {
            let end = pump(stream, &passage, &sender).await;
            let end = end.map(|()| None).map_err(|why| why.miss(passage.what, passage.offline_miss));
            // A client that has left wants no ending.
            let _ = sender.send(end).await;
        });
        Self { pieces, size, what }
    }

    /// The next piece; after an error, what was sent so far must not look complete.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Miss>>> {
        self.pieces.poll_recv(cx).map(|piece| match piece {
            Some(piece) => piece.transpose(),
            None => Some(Err(Miss::GaveUp { what: self.what.clone() })),
        })
    }
}

/// Hands on what may be handed on; all of it was, and was right, if there is no error.
async fn pump(
    mut stream: BlobStream,
    passage: &Passage,
    sender: &mpsc::Sender<Result<Option<Bytes>, Miss>>,
) -> Result<(), FetchError> {
    let mut held = Held { hasher: passage.digest.algorithm().hasher(), pieces: VecDeque::new(), bytes: 0, total: 0 };
    let upstream = || passage.upstream.clone();
    while let Some(piece) = stream.next().await {
        let free = held.take(piece?);
        if stream.size.is_some_and(|size| held.total > size) {
            return Err(FetchError::TooLong { upstream: upstream() });
        }
        for piece in free {
            if sender.send(Ok(Some(piece))).await.is_err() {
                return Err(FetchError::GaveUp);
            }
        }
    }
    let actual = held.hasher.finish();
    if actual != passage.digest {
        return Err(FetchError::WrongDigest { upstream: upstream(), actual });
    }
    for piece in held.pieces {
        if sender.send(Ok(Some(piece))).await.is_err() {
            return Err(FetchError::GaveUp);
        }
    }
    Ok(())
}

/// The end of what has come, not yet handed on.
struct Held {
    hasher: Hasher,
    pieces: VecDeque<Bytes>,
    /// Of `pieces`.
    bytes: u64,
    /// Of all that came.
    total: u64,
}

impl Held {
    /// Takes a piece in; what may be handed on comes out.
    fn take(&mut self, piece: Bytes) -> Vec<Bytes> {
        self.hasher.update(&piece);
        self.bytes += piece.len() as u64;
        self.total += piece.len() as u64;
        self.pieces.push_back(piece);
        let mut free = Vec::new();
        while let Some(first) = self.pieces.front()
            && self.bytes - first.len() as u64 >= HELD_BACK
        {
            self.bytes -= first.len() as u64;
            free.extend(self.pieces.pop_front());
        }
        free
    }
}
