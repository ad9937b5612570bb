//! What can go wrong in the store, and what the reader can do about it.

use std::io;
use std::path::Path;

use rustix::io::Errno;

use crate::oci::Digest;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No room on the disk (ENOSPC, EDQUOT).
    #[error("the disk is full")]
    Full(#[source] io::Error),
    /// An fsync failed: the store takes nothing more in until restarted; verified reads go on.
    #[error("the store is read-only since a write to disk failed")]
    ReadOnly,
    #[error("cannot {doing} `{path}`")]
    Io {
        doing: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
    /// `pid` is the process and its program as the lock file names them.
    #[error("the data folder is in use by process {pid}")]
    InUse { pid: String },
    #[error("the catalog is newer than this program")]
    Newer,
    #[error("the catalog failed")]
    Catalog(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What became of [`Staged::keep`](super::Staged::keep).
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The bytes are not what was asked for; the staged file is gone.
    #[error("the bytes hash to `{actual}`, not `{expected}`")]
    WrongBytes { expected: Digest, actual: Digest },
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl StoreError {
    /// What the reader can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Full(_) => Some("make room on the file system that holds the data folder"),
            Self::ReadOnly => Some("find the first disk error in the log, mend the disk, then restart sealock"),
            Self::InUse { .. } => Some("stop that process, or give this one a folder of its own with `--data`"),
            Self::Newer => Some("start the newer sealock, or restore the data folder from before the upgrade"),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("let the user that runs sealock read and write the data folder")
            }
            Self::Io { .. } | Self::Catalog(_) => None,
        }
    }

    /// A failed system call on `path`; a full disk has its own variant.
    pub(super) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        match Errno::from_io_error(&source) {
            Some(Errno::NOSPC | Errno::DQUOT) => Self::Full(source),
            _ => Self::Io { doing, path: path.display().to_string(), source },
        }
    }

    /// A mistake of the caller's, told as one.
    pub(super) fn refused(doing: &'static str, digest: &Digest, kind: io::ErrorKind, why: &'static str) -> Self {
        Self::Io { doing, path: digest.to_string(), source: io::Error::new(kind, why) }
    }

    pub(super) fn catalog(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Catalog(source.into())
    }
}
