//! Why there is nothing to serve, in words for the person who asked.

use std::sync::Arc;
use std::time::Duration;

use crate::gate::Refusal;
use crate::names::OfflineMiss;
use crate::oci::{Digest, InvalidManifest};
use crate::store::{KeepError, StoreError};
use crate::upstream::UpstreamError;

/// Why there is nothing to serve. Every variant knows its message; statuses are the server's business.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Miss {
    /// A local name under which nothing is kept.
    #[error(
        "`{name}` is not a name of this registry: nothing is kept under it and no route leads to an upstream; put the upstream's host in front, as in docker.io/library/alpine"
    )]
    UnknownName { name: String },
    /// Not kept, and the gate is closed.
    #[error(
        "{what} is not kept here and {refusal}; it is noted as wanted and comes with the first pull while the gate is open"
    )]
    Closed { what: String, refusal: Refusal, offline_miss: OfflineMiss },
    /// A list of which nothing is kept, and the gate is closed.
    #[error("{what} is not kept here and {refusal}; ask again while the gate is open")]
    NotListed { what: String, refusal: Refusal },
    /// A manifest is kept whose config or layers are not, and the gate is closed.
    #[error(
        "{what} is kept only in part and {refusal}; it is noted as wanted and is completed by the first pull while the gate is open"
    )]
    InPart { what: String, refusal: Refusal, offline_miss: OfflineMiss },
    /// It was kept until its copy was found damaged. `closed`: an upstream has it, but the gate is closed.
    #[error("{what} was kept here, but its copy was found damaged and is set aside{}", healing(closed.as_ref()))]
    Damaged { what: String, closed: Option<(Refusal, OfflineMiss)> },
    /// A local repository lacks it, or upstream says no.
    #[error("{what} is not kept here{}", upstream.as_ref().map(|name| format!(" and upstream `{name}` does not have it")).unwrap_or_default())]
    NotFound { what: String, upstream: Option<String> },
    #[error(
        "{what} is not kept here and upstream `{upstream}` refuses anonymous access (HTTP {status}): it is private, or there is no such repository"
    )]
    AnonymousDenied { what: String, upstream: String, status: u16 },
    #[error("upstream `{upstream}` refuses the credentials configured for it (HTTP {status}) on {what}")]
    CredentialsDenied { what: String, upstream: String, status: u16 },
    #[error("{what} is not kept here and upstream `{upstream}` asks to wait (HTTP 429)")]
    RateLimited { what: String, upstream: String, retry_after: Option<Duration> },
    #[error("{what} is not kept here and upstream `{upstream}` cannot be reached: {why}")]
    Unreachable { what: String, upstream: String, why: String },
    #[error("{what} is not kept here and upstream `{upstream}` did not answer in time")]
    TimedOut { what: String, upstream: String },
    #[error("upstream `{upstream}` sent wrong bytes for {what}: {why}")]
    WrongBytes { what: String, upstream: String, why: String },
    /// Ours: disk or catalog. What exactly is for the log, not for the client.
    #[error("{what} cannot be served: {source}")]
    Store { what: String, source: Arc<StoreError> },
    /// More is being fetched than there is room for.
    #[error("{what} is not kept here and too much is being fetched already; try again in a moment")]
    Busy { what: String },
    /// A panic, or the server stops.
    #[error("{what} cannot be served: the server gave up on it; try again")]
    GaveUp { what: String },
}

impl Miss {
    /// Whether it belongs on the wanted list: a route leads to it and it could not be had now.
    pub(super) fn is_wanted(&self) -> bool {
        match self {
            Self::UnknownName { .. } | Self::NotFound { .. } | Self::GaveUp { .. } | Self::NotListed { .. } => false,
            Self::Closed { .. } | Self::InPart { .. } | Self::AnonymousDenied { .. } => true,
            Self::Damaged { closed, .. } => closed.is_some(),
            Self::CredentialsDenied { .. } | Self::RateLimited { .. } | Self::Unreachable { .. } => true,
            Self::TimedOut { .. } | Self::WrongBytes { .. } | Self::Store { .. } | Self::Busy { .. } => true,
        }
    }
}

fn healing(closed: Option<&(Refusal, OfflineMiss)>) -> String {
    match closed {
        Some((refusal, _)) => format!("; {refusal}, and it is fetched again once it opens"),
        None => "; push it again".to_owned(),
    }
}

/// What went wrong with one fetch; shared by all who wait for it, so it names no client's words.
#[derive(Clone, Debug, thiserror::Error)]
pub enum FetchError {
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    #[error("`{upstream}` sent a manifest that cannot be taken in: {why}")]
    InvalidManifest { upstream: String, why: Arc<InvalidManifest> },
    #[error("`{upstream}` sent bytes that hash to `{actual}`")]
    WrongDigest { upstream: String, actual: Digest },
    #[error("`{upstream}` states a size of {stated}, the manifest {expected}")]
    WrongSize { upstream: String, stated: u64, expected: u64 },
    #[error("`{upstream}` sent more bytes than it stated")]
    TooLong { upstream: String },
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// The bytes that were being followed turned out wrong and are fetched anew.
    #[error("the fill began anew")]
    BeganAnew,
    #[error("too much is being fetched already")]
    Busy,
    #[error("the server gave up on it")]
    GaveUp,
}

impl From<StoreError> for FetchError {
    fn from(source: StoreError) -> Self {
        Self::Store(Arc::new(source))
    }
}

impl FetchError {
    pub(super) fn is_disk_full(&self) -> bool {
        matches!(self, Self::Store(why) if matches!(**why, StoreError::Full(_)))
    }

    /// Whether it says something of upstream, or of one repository there, rather than of this server.
    pub(super) fn is_upstreams(&self) -> bool {
        !matches!(self, Self::Store(_) | Self::Busy | Self::GaveUp)
    }

    pub(super) fn from_keep(why: KeepError, upstream: &str) -> Self {
        match why {
            KeepError::WrongBytes { actual, .. } => Self::WrongDigest { upstream: upstream.to_owned(), actual },
            KeepError::Store(source) => source.into(),
        }
    }

    /// The miss that a client sees: `what` as that client named it.
    pub(super) fn miss(&self, what: String, offline_miss: OfflineMiss) -> Miss {
        let wrong_bytes =
            |upstream: &String, what| Miss::WrongBytes { what, upstream: upstream.clone(), why: self.to_string() };
        match self {
            Self::Upstream(why) => from_upstream(why.clone(), what, offline_miss),
            Self::InvalidManifest { upstream, .. }
            | Self::WrongDigest { upstream, .. }
            | Self::WrongSize { upstream, .. }
            | Self::TooLong { upstream } => wrong_bytes(upstream, what),
            Self::Store(source) => Miss::Store { what, source: source.clone() },
            Self::Busy => Miss::Busy { what },
            Self::BeganAnew | Self::GaveUp => Miss::GaveUp { what },
        }
    }
}

fn from_upstream(why: UpstreamError, what: String, offline_miss: OfflineMiss) -> Miss {
    match why {
        UpstreamError::Refused(refusal) => Miss::Closed { what, refusal, offline_miss },
        UpstreamError::NotFound { upstream } => Miss::NotFound { what, upstream: Some(upstream) },
        UpstreamError::AnonymousDenied { upstream, status } => Miss::AnonymousDenied { what, upstream, status },
        UpstreamError::CredentialsDenied { upstream, status } => Miss::CredentialsDenied { what, upstream, status },
        UpstreamError::RateLimited { upstream, retry_after } => Miss::RateLimited { what, upstream, retry_after },
        UpstreamError::Unreachable { upstream, why } => Miss::Unreachable { what, upstream, why },
        UpstreamError::TimedOut { upstream } => Miss::TimedOut { what, upstream },
        UpstreamError::Failed { upstream, status } => {
            Miss::Unreachable { what, upstream, why: format!("it answered HTTP {status}") }
        }
        UpstreamError::Misbehaved { upstream, why } => Miss::WrongBytes { what, upstream, why },
    }
}
