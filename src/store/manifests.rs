//! Manifests that come, what refers to them, and those of older versions that are to be read once more.

use std::io;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};

use super::catalog::writer::Change;
use super::catalog::{read, referrers, reread};
use super::{Inner, KeptManifest, Pushing, ReferrersPage, Store, StoreError, blocking};
use crate::names::Repository;
use crate::oci::{Digest, Manifest};

/// Manifests of older versions that are looked up together.
const PAGE: usize = 500;
/// Those that are read at one time, so that they share commits.
const AT_ONCE: usize = 32;

impl Store {
    /// What a fill brings, and can bring again: writes the manifest's bytes as a blob file (durably), records it, its parts and subject, grants it in `repository`: visible only when all is done.
    pub async fn keep_manifest(
        &self,
        repository: &Repository,
        manifest: &Manifest,
    ) -> Result<Arc<KeptManifest>, StoreError> {
        let (inner, digest) = (&self.0, manifest.digest);
        let manifest = inner.place_manifest(manifest).await?;
        inner.writer.apply(Change::KeepManifest { repository: repository.clone(), manifest, pushing: None }).await?;
        let held = inner.load_manifest(&digest).await?;
        let lost = || StoreError::refused("keep", &digest, io::ErrorKind::NotFound, "its file is gone again");
        held.map(|held| held.kept.clone()).ok_or_else(lost)
    }

    /// As [`Store::keep_manifest`], for what a client pushed: it is kept with all that `pushing` says, or nothing of it is
    /// done. `false`: what it needs cannot all be read there now.
    pub async fn push_manifest(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        pushing: Pushing,
    ) -> Result<bool, StoreError> {
        let manifest = self.0.place_manifest(manifest).await?;
        let pushing = Some(pushing);
        self.0.writer.apply(Change::KeepManifest { repository: repository.clone(), manifest, pushing }).await
    }

    /// Kept manifests of the repository that refer to `subject`, after `after`: at most
    /// [`REFERRERS_PAGE_MAX`](super::REFERRERS_PAGE_MAX) of them, and as many as
    /// [`REFERRERS_BYTES_MAX`](super::REFERRERS_BYTES_MAX) take, but one at least.
    pub async fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
        artifact_type: Option<&str>,
        after: Option<&Digest>,
    ) -> Result<ReferrersPage, StoreError> {
        let Some(id) = self.0.repository(repository).await? else { return Ok(ReferrersPage::default()) };
        referrers::page(&self.0.readers, id, subject, artifact_type, after).await
    }
}

impl Inner {
    /// Records what manifests of unknown types name that an older version kept without; returns how many. An error if
    /// one of them cannot be read: it may name anything, so that nothing may be collected.
    pub(super) async fn reread_manifests(&self) -> Result<usize, StoreError> {
        let (mut after, mut count) = (String::new(), 0);
        loop {
            let page = reread::page(&self.readers, &after, PAGE).await?;
            let Some(last) = page.last() else { break };
            after = last.to_string();
            let reading = page.into_iter().map(|digest| async move {
                // One whose file is gone or wrong is lost, and is not to be read any more.
                let Some(held) = self.load_manifest(&digest).await? else { return Ok(false) };
                self.writer.apply(Change::Reread(Arc::new(held.kept.manifest.clone()))).await
            });
            let mut read = stream::iter(reading).buffer_unordered(AT_ONCE);
            while let Some(read) = read.try_next().await? {
                count += usize::from(read);
            }
        }
        match reread::page(&self.readers, "", 1).await?.first() {
            Some(left) => Err(StoreError::refused("read", left, io::ErrorKind::Other, "it may name anything")),
            None => Ok(count),
        }
    }

    /// Makes its bytes durable under its digest, unless they are.
    async fn place_manifest(&self, manifest: &Manifest) -> Result<Arc<Manifest>, StoreError> {
        let digest = manifest.digest;
        let recorded = read::manifest(&self.readers, &digest).await?.is_some();
        let (disk, bytes) = (self.disk.clone(), manifest.bytes.clone());
        blocking(move || {
            if Digest::of(digest.algorithm(), &bytes) != digest {
                let why = "its bytes do not hash to this";
                return Err(StoreError::refused("keep", &digest, io::ErrorKind::InvalidData, why));
            }
            // A file alone may not be durable yet; with its row it is.
            if recorded && disk.is_intact(&digest)? { Ok(()) } else { disk.place_bytes(&digest, &bytes) }
        })
        .await?;
        Ok(Arc::new(manifest.clone()))
    }
}
