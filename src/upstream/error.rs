//! What can go wrong with an upstream: one variant per thing that the pull does differently.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use crate::gate::{ProxyError, Refusal, SendError};
use crate::tls::TlsError;

/// A variant per thing that the pull does differently.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The gate said no, or closed meanwhile.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Upstream says that it does not have it.
    #[error("`{upstream}` does not have it")]
    NotFound { upstream: String },
    /// 401 or 403 after the token dance without credentials: private, or no such repository.
    #[error("`{upstream}` refuses anonymous access (HTTP {status}): private, or no such repository")]
    AnonymousDenied { upstream: String, status: u16 },
    #[error("`{upstream}` refuses our credentials (HTTP {status})")]
    CredentialsDenied { upstream: String, status: u16 },
    #[error("`{upstream}` asks us to wait (HTTP 429)")]
    RateLimited { upstream: String, retry_after: Option<Duration> },
    #[error("`{upstream}` cannot be reached: {why}")]
    Unreachable { upstream: String, why: String },
    #[error("`{upstream}` did not answer in time")]
    TimedOut { upstream: String },
    #[error("`{upstream}` failed with HTTP {status}")]
    Failed { upstream: String, status: u16 },
    /// It sent what no registry may send: too long, a redirect loop, a foreign token realm, a malformed head.
    #[error("`{upstream}` misbehaved: {why}")]
    Misbehaved { upstream: String, why: String },
}

/// Why an upstream cannot be set up. Every text names the key or the file.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamSetupError {
    #[error("[upstream.{upstream}] {key}: {message}")]
    Setting { upstream: String, key: &'static str, message: String },
    #[error("[upstream.{upstream}] {key}: cannot read `{path}`")]
    Read {
        upstream: String,
        key: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("[upstream.{upstream}] ca_file cannot be used")]
    Tls {
        upstream: String,
        #[source]
        source: TlsError,
    },
    #[error("[upstream.{upstream}] the proxy of the environment cannot be used")]
    Proxy {
        upstream: String,
        #[source]
        source: ProxyError,
    },
}

impl UpstreamSetupError {
    /// What the reader can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Setting { .. } => None,
            Self::Read { .. } => Some("check that the file exists and that sealock may read it".to_owned()),
            Self::Tls { source, .. } => source.hint(),
            Self::Proxy { source, .. } => Some(source.hint().to_owned()),
        }
    }

    /// The key below `upstream.NAME` that it is about, and what is wrong with it and what to do, in one line.
    pub(super) fn of_setting(&self) -> (&'static str, String) {
        let (key, what) = match self {
            Self::Setting { key, message, .. } => (*key, message.clone()),
            Self::Read { key, path, source, .. } => (*key, format!("cannot read `{}`: {source}", path.display())),
            Self::Tls { source, .. } => ("ca_file", causes(source)),
            Self::Proxy { source, .. } => ("endpoints", causes(source)),
        };
        match self.hint() {
            Some(hint) => (key, format!("{what}; {hint}")),
            None => (key, what),
        }
    }
}

/// A failed try, and what follows from it.
#[derive(Clone, Debug)]
pub(super) struct Fault {
    pub error: UpstreamError,
    /// Another try, or another endpoint, may do better.
    pub again: bool,
    /// The endpoint itself failed, not a place that it sent us to: the breaker counts it.
    pub counts: bool,
}

impl Fault {
    pub fn last(error: UpstreamError) -> Self {
        Self { error, again: false, counts: false }
    }

    pub fn passing(error: UpstreamError) -> Self {
        Self { error, again: true, counts: true }
    }

    /// As [`Fault::passing`], but elsewhere.
    pub fn elsewhere(self) -> Self {
        Self { counts: false, ..self }
    }

    pub fn of_send(upstream: &str, error: SendError) -> Self {
        let upstream = upstream.to_owned();
        match error {
            SendError::Refused(refusal) => Self::last(refusal.into()),
            SendError::TimedOut { .. } => Self::passing(UpstreamError::TimedOut { upstream }),
            SendError::Connect { .. } | SendError::Broken { .. } => {
                Self::passing(UpstreamError::Unreachable { upstream, why: causes(&error) })
            }
        }
    }
}

/// An error and its causes in one line; a cause that its effect already tells is left out.
pub(super) fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let told = cause.to_string();
        if !text.contains(&told) {
            text = format!("{text}: {told}");
        }
        next = cause.source();
    }
    text
}
