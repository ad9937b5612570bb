//! What a change of the catalog tells the memory and the disk, once it is committed.

use crate::oci::{Digest, Tag};
use crate::store::memory::{RepositoryId, Touch};

/// What a change has touched so far; told to the memory after the commit.
#[derive(Debug, Default)]
pub struct Touched {
    pub(super) touches: Vec<Touch>,
    /// Whose files go to the trash.
    pub(super) thrown: Vec<Digest>,
    /// Whose wrong files nobody needs any more.
    pub(super) healed: Vec<Digest>,
}

impl Touched {
    pub fn tag(&mut self, repository: RepositoryId, tag: Tag) {
        self.touches.push(Touch::Tag(repository, tag));
    }

    pub fn manifest(&mut self, manifest: Digest) {
        self.touches.push(Touch::Manifest(manifest));
    }

    pub fn manifest_grant(&mut self, repository: RepositoryId, manifest: Digest) {
        self.touches.push(Touch::ManifestGrant(repository, manifest));
    }

    /// Its row is gone: its file goes to the trash after the commit.
    pub fn thrown(&mut self, digest: Digest) {
        self.thrown.push(digest);
    }

    /// Something was found damaged.
    pub fn damaged(&mut self) {
        self.touches.push(Touch::Damage);
    }

    /// What was damaged is kept again.
    pub fn healed(&mut self, digest: Digest) {
        self.touches.push(Touch::Damage);
        self.healed.push(digest);
    }

    pub fn manifest_grant_lost(&mut self, repository: RepositoryId, manifest: Digest) {
        self.touches.push(Touch::ManifestGrantLost(repository, manifest));
    }

    pub fn blob_kept(&mut self, blob: Digest, size: u64) {
        self.touches.push(Touch::BlobKept(blob, size));
    }

    pub fn blob_lost(&mut self, blob: Digest) {
        self.touches.push(Touch::BlobLost(blob));
    }

    pub fn blob_grant(&mut self, repository: RepositoryId, blob: Digest) {
        self.touches.push(Touch::BlobGrant(repository, blob));
    }

    pub fn blob_grant_lost(&mut self, repository: RepositoryId, blob: Digest) {
        self.touches.push(Touch::BlobGrantLost(repository, blob));
    }
}
