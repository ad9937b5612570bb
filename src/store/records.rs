//! What the store hands out: kept content, tags, wanted names, and the lines of its reports.

use std::fs::File;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::names::Repository;
use crate::oci::{Descriptor, Digest, Manifest, MediaType, Tag};

/// A kept blob, opened for reading. Its length was checked against the catalog when it was opened.
#[derive(Clone, Debug)]
pub struct KeptBlob {
    pub file: Arc<File>,
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
}

/// A manifest that is kept in a repository; shared out of memory.
#[derive(Clone, Debug)]
pub struct KeptManifest {
    pub manifest: Manifest,
    /// Every byte for at least one platform is kept.
    pub complete: bool,
}

/// What comes true with a manifest that is pushed, or not at all.
#[derive(Clone, Debug, Default)]
pub struct Pushing {
    /// Of what it names, what must be readable in its repository by then.
    pub needs: Vec<Digest>,
    /// The tags that it is pushed as.
    pub tags: Vec<Tag>,
}

/// What refers to a manifest: a page of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReferrersPage {
    /// All of them, the newest first; or, of those that are more than a page, some by digest.
    pub descriptors: Vec<Descriptor>,
    /// Up to which digest they are listed, where more follow.
    pub more_after: Option<Digest>,
}

/// How a tag came to name what it names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TagSource {
    Filled,
    Pushed,
    Imported,
}

/// What a tag names.
#[derive(Clone, Debug)]
pub struct TagRecord {
    pub digest: Digest,
    pub source: TagSource,
    /// When upstream last confirmed it; for pushed and imported tags, when they came.
    pub checked_at: Timestamp,
    pub moved_at: Timestamp,
    /// It does not move by fills, and what it names is not collected.
    pub pinned: bool,
    /// The newest digest in its history that is complete, `digest` itself included (invariant 5).
    pub newest_complete: Option<Digest>,
}

/// A line of a tag's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagMove {
    /// `None`: the tag was deleted.
    pub digest: Option<Digest>,
    pub source: TagSource,
    pub moved_at: Timestamp,
    /// Whether the tag can be rolled back to it.
    pub kept: bool,
}

/// A name that was asked for while it could not be had.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Wanted {
    pub name: String,
    pub reference: String,
    /// Who asked last.
    pub client: IpAddr,
    pub first_at: Timestamp,
    pub last_at: Timestamp,
    pub count: u64,
}

/// Hosts of upstreams that may be asked now.
#[derive(Clone, Debug, Default)]
pub struct Origins(Vec<Arc<str>>);

/// What a collection leaves alone.
#[derive(Clone, Debug)]
pub struct CollectRules {
    /// Digests of each tag's history that stay, the newest first.
    pub history: u32,
    /// Whether manifests stay that no tag names and no pushed tag ever named.
    pub keep_untagged: bool,
    /// What was kept or used since then stays.
    pub since: Timestamp,
    /// What came from other upstreams cannot be fetched again now: without a tag, too, it stays.
    pub open: Origins,
}

/// What an eviction leaves alone.
#[derive(Clone, Debug)]
pub struct EvictRules {
    /// What was kept or used since then stays.
    pub since: Timestamp,
    /// Only what came from these goes.
    pub open: Origins,
}

/// A manifest, with what only it needs, or a blob that no manifest names, that can be fetched again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Evictable {
    pub digest: Digest,
    pub kind: GarbageKind,
    /// When anything of it was last used.
    pub used_at: Timestamp,
}

/// What went of a unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evicted {
    pub unit: Evictable,
    pub manifests: u64,
    pub blobs: u64,
    pub size_bytes: u64,
    /// `repository:tag` of those that resolve here only once it has been fetched again.
    pub tags: Vec<String>,
}

/// What a line of garbage is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GarbageKind {
    Blob,
    Manifest,
    /// A file that the catalog does not know.
    File,
}

/// Something that nothing refers to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Garbage {
    pub digest: Digest,
    pub kind: GarbageKind,
    pub size_bytes: u64,
    /// One of those in which it can be read.
    pub repository: Option<String>,
}

/// Something in the trash.
#[derive(Clone, Debug)]
pub struct Trashed {
    pub digest: Digest,
    pub kind: GarbageKind,
    pub size_bytes: u64,
    /// Of a manifest.
    pub media_type: Option<MediaType>,
    /// Where it could be read, and whether it had come from there.
    pub repositories: Vec<(Repository, bool)>,
    pub thrown_at: Timestamp,
}

/// A line of `sealock ls`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TagLine {
    pub repository: String,
    pub tag: String,
    pub digest: String,
    /// Empty while the manifest is not kept.
    pub media_type: String,
    /// What the manifest says it is, or else its config's media type; an index may say nothing.
    #[serde(default)]
    pub artifact_type: Option<String>,
    pub source: TagSource,
    pub complete: bool,
    /// The distinct kept content that the tag needs, manifests included.
    pub size_bytes: u64,
    pub checked_at: Timestamp,
    pub moved_at: Timestamp,
}

/// Totals for `sealock status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Totals {
    pub repositories: u64,
    pub tags: u64,
    /// Of these, those that were pushed here, and those that an import brought; the others were filled.
    #[serde(default)]
    pub pushed_tags: u64,
    #[serde(default)]
    pub imported_tags: u64,
    pub manifests: u64,
    pub blobs: u64,
    /// Blobs and manifests.
    pub size_bytes: u64,
    pub staged_bytes: u64,
    pub incomplete_tags: u64,
}

impl Origins {
    /// In the catalog's text each host stands between spaces, which no host has.
    pub(super) fn text(&self) -> String {
        self.0.iter().map(|host| format!(" {host} ")).collect()
    }
}

impl FromIterator<Arc<str>> for Origins {
    fn from_iter<I: IntoIterator<Item = Arc<str>>>(hosts: I) -> Self {
        Self(hosts.into_iter().collect())
    }
}

impl CollectRules {
    pub(super) fn since_ms(&self) -> i64 {
        self.since.as_millisecond()
    }
}

impl GarbageKind {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Blob => "blob",
            Self::Manifest => "manifest",
            Self::File => "file",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::Blob, Self::Manifest, Self::File].into_iter().find(|kind| kind.as_str() == text)
    }
}

impl TagSource {
    /// `filled`, `pushed` or `imported`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Filled => "filled",
            Self::Pushed => "pushed",
            Self::Imported => "imported",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::Filled, Self::Pushed, Self::Imported].into_iter().find(|source| source.as_str() == text)
    }
}
