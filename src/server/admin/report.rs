//! What the admin API takes and gives: shared by its two ends.

use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::access::AccessReport;
use crate::gate::GateStatus;
use crate::keep::KeepStatus;
use crate::oci::Digest;
use crate::store::{Damage, TagMove, Totals};
use crate::tls::Shown;
use crate::upstream::UpstreamHealth;

/// Records of damage that one report lists.
pub const DAMAGE_LISTED_MAX: usize = 200;

/// `POST /gate/open`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenOrder {
    /// Milliseconds; without it, until somebody closes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_ms: Option<u64>,
    /// Who orders it; without it, the user at the other end of the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// Key of the one upstream to open it for; without it, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
}

/// `POST /gate/close`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CloseOrder {
    /// Milliseconds that requests under way may take to end; without it, none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// `POST /gc`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CollectOrder {
    /// Only tell what would go.
    #[serde(default)]
    pub dry_run: bool,
}

/// `POST /tag` and what is below it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TagOrder {
    /// As clients write it.
    pub name: String,
    pub tag: String,
    /// The digest to roll back to; without it, the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

/// A tag and its past.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TagReport {
    /// With its host.
    pub repository: String,
    /// None: it is deleted.
    pub digest: Option<Digest>,
    pub pinned: bool,
    /// The newest first.
    pub log: Vec<TagMove>,
}

/// `POST /verify`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VerifyOrder {
    /// A repository as clients write it; without it, everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// `GET /status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusReport {
    pub version: String,
    pub started_at: Timestamp,
    /// The server's clock.
    pub now: Timestamp,
    /// Where clients reach the registry.
    pub addresses: Vec<SocketAddr>,
    /// The same with their schemes.
    #[serde(default)]
    pub origins: Vec<String>,
    /// What clients are shown, and what judges theirs.
    #[serde(default)]
    pub certificates: Vec<Shown>,
    /// What an operator should do something about, a sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
    pub gate: GateStatus,
    pub access: AccessReport,
    pub totals: Totals,
    /// How short room is, and what the jobs did last.
    #[serde(default)]
    pub keep: KeepStatus,
    /// A write to disk was lost: nothing is taken in until a restart, what is kept is served.
    pub read_only: bool,
    /// Fills, fetches and prefetches under way or waiting.
    pub under_way: usize,
    /// Names that were asked for and could not be had.
    pub wanted: usize,
    /// How much was found damaged and is not kept again.
    pub damaged: u64,
    /// What was found damaged, the newest first, what is kept again last; at most [`DAMAGE_LISTED_MAX`].
    pub damage: Vec<Damage>,
    pub routes: Vec<RouteLine>,
    pub upstreams: Vec<UpstreamHealth>,
}

/// A route: names that match `pattern` are `repository`, of the upstream with that key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouteLine {
    pub pattern: String,
    pub upstream: String,
    /// With its host.
    pub repository: String,
}

/// `POST /upstream/check`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckOrder {
    /// Key of the one upstream to ask; without it, all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream: Option<String>,
    /// What to ask for, as clients name it; without it, something that was filled from there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

/// `POST /watch`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchOrder {
    /// Part of the paths to be kept, such as `library/alpine`.
    pub name: String,
}

/// The number of a watch, and `POST /watch/end`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchEnd {
    pub id: u64,
}

/// How errors are told.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Complaint {
    pub(super) error: String,
    pub(super) hint: Option<String>,
}
