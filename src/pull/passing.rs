//! A blob that passes through unkept, because the disk has no room for it: verified all the same.
//!
//! Invariant 3 holds here as in a fill: the last [`HELD_BACK`] bytes are handed on only when the digest is right.

use std::collections::VecDeque;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::fill::HELD_BACK;
use super::miss::{FetchError, Miss};
use crate::names::OfflineMiss;
use crate::oci::{Digest, Hasher};
use crate::upstream::BlobStream;

/// Pieces between upstream's connection and the client's.
const QUEUE_PIECES: usize = 8;

/// One client's passage. Dropping it ends the download, which serves nobody else.
pub struct Passing {
    pieces: mpsc::Receiver<Result<Bytes, Miss>>,
    /// The whole size, where upstream states it.
    pub size: Option<u64>,
}

/// What is needed to check and to complain.
pub(super) struct Passage {
    pub(super) digest: Digest,
    pub(super) upstream: String,
    pub(super) what: String,
    pub(super) offline_miss: OfflineMiss,
}

impl Passing {
    pub(super) fn start(stream: BlobStream, passage: Passage) -> Self {
        let (sender, pieces) = mpsc::channel(QUEUE_PIECES);
        let size = stream.size;
        tokio::spawn(pump(stream, passage, sender));
        Self { pieces, size }
    }

    /// The next piece; after an error, what was sent so far must not look complete.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Miss>>> {
        self.pieces.poll_recv(cx)
    }
}

async fn pump(mut stream: BlobStream, passage: Passage, sender: mpsc::Sender<Result<Bytes, Miss>>) {
    let mut held = Held { hasher: passage.digest.algorithm().hasher(), pieces: VecDeque::new(), bytes: 0 };
    while let Some(piece) = stream.next().await {
        let failed = piece.is_err();
        let free = match piece {
            Ok(piece) => held.take(piece).map(Ok).collect::<Vec<_>>(),
            Err(why) => vec![Err(FetchError::from(why).miss(passage.what.clone(), passage.offline_miss))],
        };
        for piece in free {
            if sender.send(piece).await.is_err() {
                return;
            }
        }
        if failed {
            return;
        }
    }
    let actual = held.hasher.finish();
    let rest: Vec<_> = match actual == passage.digest {
        true => held.pieces.into_iter().map(Ok).collect(),
        false => {
            let wrong = FetchError::WrongDigest { upstream: passage.upstream, actual };
            vec![Err(wrong.miss(passage.what, passage.offline_miss))]
        }
    };
    for piece in rest {
        if sender.send(piece).await.is_err() {
            return;
        }
    }
}

/// The end of what has come, not yet handed on.
struct Held {
    hasher: Hasher,
    pieces: VecDeque<Bytes>,
    bytes: u64,
}

impl Held {
    /// Takes a piece in; what may be handed on comes out.
    fn take(&mut self, piece: Bytes) -> impl Iterator<Item = Bytes> + use<> {
        self.hasher.update(&piece);
        self.bytes += piece.len() as u64;
        self.pieces.push_back(piece);
        let mut free = Vec::new();
        while let Some(first) = self.pieces.front()
            && self.bytes - first.len() as u64 >= HELD_BACK
        {
            self.bytes -= first.len() as u64;
            free.extend(self.pieces.pop_front());
        }
        free.into_iter()
    }
}
