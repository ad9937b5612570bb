//! What nothing refers to is thrown away, put back, and in the end removed.

use std::sync::{Arc, Mutex, PoisonError};

use futures_util::stream::{self, StreamExt};
use jiff::Timestamp;

use super::catalog::sweep::LIST_MAX;
use super::catalog::touched::Touched;
use super::catalog::writer::Change;
use super::catalog::{Connection, content, job, sweep, trash};
use super::memory::Memory;
use super::{CollectRules, Garbage, GarbageKind, Store, StoreError, Trashed, blocking};
use crate::oci::{Digest, Manifest};

/// Most pieces of garbage that are found at one time.
pub const GARBAGE_MAX: usize = 100_000;
/// Lines of the trash that are seen to together.
const PAGE: usize = 500;
/// Pieces of content that are put back at one time, so that they share commits.
const AT_ONCE: usize = 32;

/// A batch that is to be thrown away, if nothing refers to it by then.
#[derive(Debug)]
pub struct Sweep {
    kind: GarbageKind,
    digests: Vec<Digest>,
    rules: CollectRules,
    gone: Mutex<Vec<Digest>>,
}

/// What came back from the trash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Restored {
    pub blobs: u64,
    pub manifests: u64,
    pub size_bytes: u64,
    /// Whose file is gone or wrong.
    pub lost: u64,
}

impl Sweep {
    /// Within the transaction.
    pub async fn run(
        &self,
        c: &mut Connection,
        memory: &Memory,
        now_ms: i64,
        touched: &mut Touched,
    ) -> Result<bool, StoreError> {
        // What was asked for a moment ago is not written yet, and stays.
        content::note_used(c, &memory.used_of(&self.digests)).await?;
        let gone = sweep::throw_away(c, self.kind, &self.digests, &self.rules, now_ms, touched).await?;
        let any = !gone.is_empty();
        *self.gone.lock().unwrap_or_else(PoisonError::into_inner) = gone;
        Ok(any)
    }
}

impl Store {
    /// At most [`GARBAGE_MAX`] manifests and blobs that nothing refers to, in the order in which they are to go.
    pub async fn garbage(&self, rules: &CollectRules) -> Result<Vec<Garbage>, StoreError> {
        self.0.reread_manifests().await?;
        sweep::garbage(&self.0.readers, rules, GARBAGE_MAX).await
    }

    /// Files that the catalog does not know and that were made and named before `rules.since`, as a crash leaves them.
    pub async fn unknown_files(&self, rules: &CollectRules) -> Result<Vec<Garbage>, StoreError> {
        let (disk, before) = (self.0.disk.clone(), rules.since);
        let mut files = blocking(move || disk.files_before(before)).await?;
        let mut unknown = Vec::new();
        while !files.is_empty() && unknown.len() < GARBAGE_MAX {
            let some = files.split_off(files.len().saturating_sub(LIST_MAX));
            let texts: Vec<String> = some.iter().map(|(digest, _)| digest.to_string()).collect();
            let mut reader = self.0.readers.acquire().await?;
            let known = sweep::known(&mut reader, &texts).await?;
            let strange = some.into_iter().zip(texts).filter(|(_, text)| !known.contains(text));
            unknown.extend(strange.map(|((digest, size_bytes), _)| Garbage {
                digest,
                kind: GarbageKind::File,
                size_bytes,
                repository: None,
            }));
        }
        Ok(unknown)
    }

    /// Moves what nothing refers to now to the trash, in transactions of a bounded size; returns what went.
    pub async fn throw_away(&self, garbage: &[Garbage], rules: &CollectRules) -> Result<Vec<Garbage>, StoreError> {
        let mut thrown = Vec::new();
        for batch in garbage.chunk_by(|a, b| a.kind == b.kind).flat_map(|same| same.chunks(LIST_MAX)) {
            let digests = batch.iter().map(|one| one.digest).collect();
            let sweep = Sweep { kind: batch[0].kind, digests, rules: rules.clone(), gone: Mutex::default() };
            let sweep = Arc::new(sweep);
            self.0.writer.apply(Change::Sweep(sweep.clone())).await?;
            let gone = std::mem::take(&mut *sweep.gone.lock().unwrap_or_else(PoisonError::into_inner));
            let gone: std::collections::HashSet<Digest> = gone.into_iter().collect();
            thrown.extend(batch.iter().filter(|one| gone.contains(&one.digest)).cloned());
        }
        Ok(thrown)
    }

    /// Puts back all that is in the trash: bytes, rows, and where they could be read. It counts as used just now.
    pub async fn put_back(&self) -> Result<Restored, StoreError> {
        let (mut restored, mut after) = (Restored::default(), (String::new(), ""));
        loop {
            let page = trash::page(&self.0.readers, (&after.0, after.1), PAGE).await?;
            let Some(last) = page.last() else { return Ok(restored) };
            after = (last.digest.to_string(), last.kind.as_str());
            let putting = page.into_iter().map(|one| async move {
                let (kind, size_bytes) = (one.kind, one.size_bytes);
                Ok::<_, StoreError>((self.put_one_back(one).await?, kind, size_bytes))
            });
            let mut putting = stream::iter(putting).buffer_unordered(AT_ONCE);
            while let Some(put) = putting.next().await {
                let (back, kind, size_bytes) = put?;
                match (back, kind) {
                    (false, _) => {
                        restored.lost += 1;
                        continue;
                    }
                    (true, GarbageKind::Blob) => restored.blobs += 1,
                    (true, GarbageKind::Manifest) => restored.manifests += 1,
                    (true, GarbageKind::File) => continue,
                }
                restored.size_bytes += size_bytes;
            }
        }
    }

    async fn put_one_back(&self, one: Trashed) -> Result<bool, StoreError> {
        let (disk, digest) = (self.0.disk.clone(), one.digest);
        if !blocking(move || Ok(disk.trash_is_whole(&digest)? && disk.take_back(&digest)?)).await? {
            tracing::error!(%digest, "what was collected cannot be put back: its file is gone or wrong");
            return Ok(false);
        }
        let change = match (one.kind, one.media_type) {
            (GarbageKind::Blob, _) => {
                Change::RestoreBlob { blob: digest, size: one.size_bytes, repositories: one.repositories }
            }
            (GarbageKind::Manifest, Some(media_type)) => {
                let disk = self.0.disk.clone();
                let Some(bytes) = blocking(move || disk.read_verified(&digest)).await? else { return Ok(false) };
                let manifest = Manifest::parse(bytes.into(), media_type, digest.algorithm());
                let manifest = Arc::new(manifest.map_err(StoreError::catalog)?);
                Change::RestoreManifest { manifest, repositories: one.repositories }
            }
            (kind, _) => Change::ForgetTrash { digest, kind },
        };
        self.0.writer.apply(change).await
    }

    /// Removes for good what was thrown away before `before`; returns how many bytes that freed.
    pub async fn empty_trash(&self, before: Timestamp) -> Result<u64, StoreError> {
        self.0.writer.apply(Change::ExpireTrash { before_ms: before.as_millisecond() }).await?;
        self.remove_unknown_trash().await
    }

    /// What the job noted last, and when.
    pub async fn job(&self, name: &str) -> Result<Option<(String, Timestamp)>, StoreError> {
        job::read(&self.0.readers, name).await
    }

    /// Notes where the job `name` is to go on, and that it was at work now.
    pub async fn note_job(&self, name: &'static str, position: &str) -> Result<(), StoreError> {
        self.0.writer.apply(Change::NoteJob { name, position: position.to_owned() }).await.map(drop)
    }

    /// Bytes in the trash.
    pub async fn trash_size(&self) -> Result<u64, StoreError> {
        sweep::trash_size(&self.0.readers).await
    }
}
