//! A blob's bytes: read on over broken connections by Range, from the last good byte, through the registry's URL anew.

use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_RANGE;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::BodyExt;

use super::error::{Fault, UpstreamError};
use super::send::{Answer, Ask, jitter, length};
use super::{Patience, Remote};
use crate::gate::{Body, Purpose};
use crate::oci::{Digest, RepositoryName};

/// A connection that brought at least so much was worth it: the count of vain resumes begins anew.
const PROGRESS_BYTES: u64 = 64 << 10;

/// A blob's bytes from `start` on. Reads on over broken connections by Range, through the registry's URL anew.
pub struct BlobStream {
    /// Where the bytes begin: what was asked for, or 0 when upstream ignores Range.
    pub start: u64,
    /// The whole blob's size, where upstream says it.
    pub size: Option<u64>,
    source: Source,
    body: Option<Body>,
    /// Up to where the bytes were handed out.
    position: u64,
    /// Bytes that come once more, from an upstream that ignores Range.
    skip: u64,
    /// Handed out since the connection was made.
    progress: u64,
    /// Resumes since there was progress.
    vain: u32,
    over: bool,
}

struct Source {
    remote: Arc<Remote>,
    repository: RepositoryName,
    digest: Digest,
}

/// What the head of a blob's reply says.
struct Begin {
    start: u64,
    size: Option<u64>,
    body: Option<Body>,
}

impl BlobStream {
    pub(super) async fn open(
        remote: &Arc<Remote>,
        repository: &RepositoryName,
        digest: &Digest,
        from: u64,
    ) -> Result<Self, UpstreamError> {
        let source = Source { remote: remote.clone(), repository: repository.clone(), digest: *digest };
        let mut begin = source.request(from).await?;
        if begin.start != from && begin.body.is_none() {
            // What is kept of it is longer than the blob: from the beginning, then.
            begin = source.request(0).await?;
        }
        let Begin { start, size, body } = begin;
        let over = body.is_none();
        Ok(Self { start, size, source, body, position: start, skip: 0, progress: 0, vain: 0, over })
    }

    /// The next piece; `None` at the end. After an error the stream is over. Retries and resumes inside, within its bounds.
    pub async fn next(&mut self) -> Option<Result<Bytes, UpstreamError>> {
        while !self.over {
            let fault = match self.piece().await {
                Ok(Some(piece)) => return Some(Ok(piece)),
                Ok(None) => break,
                Err(fault) => fault,
            };
            if let Err(error) = self.resume(fault).await {
                self.over = true;
                return Some(Err(error));
            }
        }
        self.over = true;
        self.body = None;
        None
    }

    /// The next piece of this connection's body; `None` at the blob's end.
    async fn piece(&mut self) -> Result<Option<Bytes>, Fault> {
        let remote = self.source.remote.clone();
        let Some(body) = &mut self.body else {
            return Ok(None);
        };
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Fault::of_send(&remote.name, error))?;
            let Ok(mut piece) = frame.into_data() else { continue };
            let again = self.skip.min(piece.len() as u64);
            self.skip -= again;
            let piece = piece.split_off(again as usize);
            if piece.is_empty() {
                continue;
            }
            self.position += piece.len() as u64;
            self.progress += piece.len() as u64;
            let most = self.size.unwrap_or(remote.blob_size_max);
            if self.position > most {
                return Err(Fault::last(remote.misbehaved(format!("its blob goes on after {most} bytes"))));
            }
            return Ok(Some(piece));
        }
        match self.size {
            Some(size) if self.position < size => {
                let why = format!("a blob ended after {} of {size} bytes", self.position);
                Err(Fault::passing(UpstreamError::Unreachable { upstream: remote.name.to_string(), why }))
            }
            _ => Ok(None),
        }
    }

    /// Asks the registry for the rest, as often as that is worth it.
    async fn resume(&mut self, mut fault: Fault) -> Result<(), UpstreamError> {
        self.body = None;
        let remote = self.source.remote.clone();
        loop {
            if self.progress >= PROGRESS_BYTES {
                self.vain = 0;
            }
            self.progress = 0;
            if !fault.again || self.vain >= remote.resumes_max {
                return Err(fault.error);
            }
            tracing::info!(
                upstream = %remote.name, digest = %self.source.digest, position = self.position, error = %fault.error,
                "a blob's connection broke; resuming"
            );
            // The first resume of a connection that had worked goes out at once.
            if self.vain > 0 {
                tokio::time::sleep(jitter(remote.retry_pause, self.vain)).await;
            }
            self.vain += 1;
            match self.source.request(self.position).await {
                Ok(begin) => return self.accept(begin),
                Err(error) => fault = Fault { again: is_passing(&error), error, counts: false },
            }
        }
    }

    fn accept(&mut self, begin: Begin) -> Result<(), UpstreamError> {
        let remote = &self.source.remote;
        if let (Some(before), Some(now)) = (self.size, begin.size)
            && before != now
        {
            return Err(remote.misbehaved(format!("a blob of {before} bytes has {now} bytes when it is resumed")));
        }
        if begin.body.is_none() && begin.start != self.position {
            return Err(remote.misbehaved(format!("a blob ends before byte {}, which it had", self.position)));
        }
        self.size = self.size.or(begin.size);
        self.skip = self.position - begin.start;
        self.over = begin.body.is_none();
        self.body = begin.body;
        Ok(())
    }
}

impl Source {
    /// The blob from byte `from` on, or from 0. Without a body where there is nothing (more), and then `start` is the size.
    async fn request(&self, from: u64) -> Result<Begin, UpstreamError> {
        let ask = Ask {
            purpose: Purpose::Blob,
            method: Method::GET,
            repository: self.repository.clone(),
            path_and_query: format!("/v2/{}/blobs/{}", self.repository, self.digest),
            accept: "*/*",
            range_from: (from > 0).then_some(from),
            whole: None,
            tolerates: &[],
        };
        let answer = self.remote.ask(&ask, Patience::Full).await?;
        let begin = self.begin(answer, from)?;
        let most = self.remote.blob_size_max;
        if begin.size.is_some_and(|size| size > most) {
            return Err(self.remote.misbehaved(format!("its blob has more than `blob_size_max`, {most} bytes")));
        }
        Ok(begin)
    }

    fn begin(&self, answer: Answer, from: u64) -> Result<Begin, UpstreamError> {
        let headers = &answer.head.headers;
        match answer.head.status {
            StatusCode::OK => Ok(Begin { start: 0, size: length(headers), body: answer.body }),
            StatusCode::PARTIAL_CONTENT => match content_range(headers) {
                Some(Part { first, size: Some(size), last }) if first == from && last + 1 == size => {
                    Ok(Begin { start: from, size: Some(size), body: answer.body })
                }
                // It sends less than it was asked for: what it states is the end of this body, not of the blob.
                Some(Part { first, size, .. }) if first == from => Ok(Begin { start: from, size, body: answer.body }),
                _ => Err(self
                    .remote
                    .misbehaved(format!("it was asked for a blob from byte {from}, and sends another part"))),
            },
            StatusCode::RANGE_NOT_SATISFIABLE => match unsatisfied_size(headers) {
                Some(size) => Ok(Begin { start: size, size: Some(size), body: None }),
                None => Err(self.remote.misbehaved("it answers 416 and does not say the size".to_owned())),
            },
            status => Err(self.remote.failed(status).error),
        }
    }
}

struct Part {
    first: u64,
    last: u64,
    size: Option<u64>,
}

/// `Content-Range: bytes first-last/size`, the size perhaps `*` (RFC 9110, 14.4).
fn content_range(headers: &HeaderMap) -> Option<Part> {
    let (range, size) = headers.get(CONTENT_RANGE)?.to_str().ok()?.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let size = if size == "*" { None } else { Some(size.parse().ok()?) };
    let part = Part { first: first.parse().ok()?, last: last.parse().ok()?, size };
    let sound = part.first <= part.last && part.last < u64::MAX && size.is_none_or(|size| part.last < size);
    sound.then_some(part)
}

/// `Content-Range: bytes */size`
fn unsatisfied_size(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_RANGE)?.to_str().ok()?.trim().strip_prefix("bytes */")?.parse().ok()
}

/// Errors behind which the upstream may come back.
fn is_passing(error: &UpstreamError) -> bool {
    use UpstreamError as Error;
    matches!(error, Error::Unreachable { .. } | Error::TimedOut { .. } | Error::Failed { status: 500.., .. })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_must_be_sound() {
        let part = |text: &str| {
            let headers = HeaderMap::from_iter([(CONTENT_RANGE, text.parse().unwrap())]);
            content_range(&headers).map(|part| (part.first, part.last, part.size))
        };
        assert_eq!(part("bytes 2-9/10"), Some((2, 9, Some(10))));
        assert_eq!(part("bytes 2-9/*"), Some((2, 9, None)));
        let unsound = [
            "bytes 9-2/10",
            "bytes 2-10/10",
            "bytes 2-18446744073709551615/*",
            "2-9/10",
            "bytes */10",
            "bytes -9/10",
            "items 2-9/10",
        ];
        for text in unsound {
            assert_eq!(part(text), None, "{text}");
        }
    }
}
