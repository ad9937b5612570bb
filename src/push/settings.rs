//! `[push]` of the settings: whether clients may push and delete, and what one push may cost.

use serde::Deserialize;

use crate::size::Size;

/// `[push]`. Routes say for themselves whether their names take pushes.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PushSettings {
    /// Whether pushes and deletions are taken at all.
    pub enabled: bool,
    /// Whether tags, manifests and blobs may be deleted.
    pub delete: bool,
    /// Largest blob that is taken in.
    pub blob_size_max: Size,
    /// Whether an index may name manifests that are not kept in its repository: mirrored indexes do.
    pub sparse_indexes: bool,
    /// Whether an image in a local repository may name blobs that were not pushed there.
    pub sparse_images: bool,
}

impl Default for PushSettings {
    fn default() -> Self {
        let blob_size_max = Size(256 << 30);
        Self { enabled: true, delete: true, blob_size_max, sparse_indexes: true, sparse_images: false }
    }
}
