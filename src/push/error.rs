//! Why a push or a deletion is refused, in words for the person who pushes.

use crate::oci::{Digest, InvalidManifest};
use crate::size::Size;
use crate::store::{StoreError, UploadError};

/// Why a push or a deletion is refused. Every variant knows its message; statuses are the server's business.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    #[error("this registry takes no pushes; `enabled = true` in `[push]` would change that")]
    PushesOff,
    #[error(
        "`{name}` is filled from upstream `{upstream}` and takes no pushes; `push = true` in its `[route.…]` would change that"
    )]
    RouteTakesNone { name: String, upstream: String },
    #[error("this registry deletes nothing; `delete = true` in `[push]` would change that")]
    DeletionsOff,
    #[error("there is no such upload in `{name}`: it was finished, cancelled, left for too long, or is another's")]
    UploadUnknown { name: String },
    #[error("another request is writing to this upload just now")]
    UploadBusy,
    #[error("too many uploads are under way; try again later, or cancel some")]
    TooManyUploads,
    /// `written` is where the upload stands, in bytes.
    #[error("the chunk begins at byte {start}, but the upload goes on at byte {written}")]
    OutOfOrder { start: u64, written: u64 },
    #[error("{came} bytes came where {stated} were stated")]
    SizeDiffers { stated: u64, came: u64 },
    #[error("a blob has at most {max} here; `blob_size_max` in `[push]` would change that")]
    BlobTooLarge { max: Size },
    #[error("the bytes hash to `{actual}`, not `{expected}`")]
    DigestDiffers { expected: String, actual: String },
    #[error("the manifest cannot be taken in: {0}")]
    ManifestInvalid(InvalidManifest),
    #[error("the manifest cannot be taken in: {0}")]
    ManifestTooLarge(InvalidManifest),
    #[error("the manifest has no media type: send it as `Content-Type`, or as `mediaType` in it")]
    NoMediaType,
    #[error("a manifest can be given at most {max} tags at once")]
    TooManyTags { max: usize },
    #[error("the manifest names content that `{name}` does not have; push it first: {}", listed(missing))]
    PartsUnknown { name: String, missing: Vec<Digest> },
    #[error("{what} is not kept here")]
    ManifestUnknown { what: String },
    #[error("{what} is not kept here")]
    BlobUnknown { what: String },
    #[error("`{name}` is not a name of this registry: nothing is kept under it")]
    NameUnknown { name: String },
    /// Ours: disk or catalog. What exactly is for the log, not for the client.
    #[error("the push failed: {0}")]
    Store(#[from] StoreError),
    /// A panic, or the server stops.
    #[error("the server gave up on this push; try again")]
    GaveUp,
}

/// Most digests that a message names.
const LISTED_MAX: usize = 8;

impl PushError {
    pub(super) fn of_upload(why: UploadError, name: &impl ToString) -> Self {
        match why {
            UploadError::Unknown => Self::UploadUnknown { name: name.to_string() },
            UploadError::Busy => Self::UploadBusy,
            UploadError::TooMany => Self::TooManyUploads,
            UploadError::Store(why) => Self::Store(why),
        }
    }
}

impl From<InvalidManifest> for PushError {
    fn from(why: InvalidManifest) -> Self {
        match why {
            InvalidManifest::TooLarge(_) => Self::ManifestTooLarge(why),
            why => Self::ManifestInvalid(why),
        }
    }
}

fn listed(digests: &[Digest]) -> String {
    let mut text = digests.iter().take(LISTED_MAX).map(|digest| format!("`{digest}`")).collect::<Vec<_>>().join(", ");
    if let Some(more) = digests.len().checked_sub(LISTED_MAX).filter(|more| *more > 0) {
        text.push_str(&format!(" and {more} more"));
    }
    text
}
