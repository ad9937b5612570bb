//! One remote registry: asked for manifests, blobs, tags and referrers.
//!
//! ```text
//! ask ─ round over the endpoints ─ attempt ─ follow redirects ─ gate's client        (send)
//!         │ breaker: left alone        │ 401: challenge ─ token or Basic ─ again      (authorize, token, credentials)
//!         └ again after a pause        └ each hop: is this still the origin that credentials belong to?
//! ```
//! What comes back is not verified here: digests are the pull's business.

mod accounts;
mod address;
mod authorize;
mod blob;
mod breaker;
mod challenge;
mod check;
mod credentials;
mod endpoint;
mod error;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod pages;
mod send;
mod settings;
mod token;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use self::accounts::Accounts;
use self::address::Origin;
use self::endpoint::{Endpoint, Limits};
use self::send::{Answer, Ask};
use self::token::Tokens;
use crate::clock::Clock;
use crate::gate::{Client, ClientSettings, Gate, ProxySettings, Purpose};
use crate::oci::{Descriptor, Digest, MANIFEST_SIZE_MAX, MediaType, Reference, RepositoryName, Tag};
use crate::tls;

pub use self::blob::BlobStream;
pub use self::check::{CheckStep, EndpointCheck, Step, UpstreamCheck};
pub use self::error::{UpstreamError, UpstreamSetupError};
pub use self::settings::{CredentialSettings, UpstreamSettings};

/// One remote registry. Cheap to clone.
#[derive(Clone)]
pub struct Upstream(Arc<Remote>);

/// How long an answer may be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Something kept can be served instead: 1.5 s in all, one try per endpoint. While an endpoint rests, not at all; it is
    /// then probed in the background.
    Short,
    /// There is nothing else: retries and pauses, within the settings' time-outs.
    Full,
}

/// What a HEAD of a manifest told.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// `None` where upstream does not say it: GET tells.
    pub digest: Option<Digest>,
    pub media_type: Option<MediaType>,
    pub size: Option<u64>,
}

/// A manifest as it came; not yet verified.
#[derive(Clone, Debug)]
pub struct FetchedManifest {
    pub bytes: Bytes,
    pub media_type: Option<MediaType>,
}

/// How an upstream is doing, for `sealock status`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct UpstreamHealth {
    pub name: String,
    pub host: String,
    /// Set while every endpoint is being left alone.
    pub resting_until: Option<Timestamp>,
    pub last_error: Option<String>,
}

struct Remote {
    name: Arc<str>,
    host: Arc<str>,
    endpoints: Vec<Arc<Endpoint>>,
    token_realms: Vec<Origin>,
    redirect_origins: Vec<Origin>,
    accounts: Accounts,
    tokens: Tokens,
    limits: Limits,
    gate: Gate,
    gate_changes: Mutex<watch::Receiver<u64>>,
    client: Client,
    clock: Clock,
    retries_max: u32,
    retry_pause: Duration,
    resumes_max: u32,
    blob_size_max: u64,
}

impl UpstreamSettings {
    /// The first of the files and variables named here that is of no use: its key, and why. Never tells what it holds.
    pub fn check_files(&self, name: &str) -> Result<(), (&'static str, String)> {
        let readable_twice =
            |path: &Option<PathBuf>| path.as_deref().is_none_or(|path| !credentials::can_be_read_but_once(path));
        if readable_twice(&self.ca_file) {
            let tls = tls::client_config(self.ca_file.as_deref());
            let failed = |source| UpstreamSetupError::Tls { upstream: name.to_owned(), source };
            tls.map_err(|source| failed(source).of_setting())?;
        }
        let mut all = self.credentials.values().cloned().chain([self.own_credentials()]);
        if all.all(|one| readable_twice(&one.password_file) && readable_twice(&one.docker_config)) {
            Accounts::read(name, self).map_err(|error| error.of_setting())?;
        }
        Ok(())
    }
}

impl Upstream {
    /// Reads credentials and CA files; never touches the network. `name` is the key of `[upstream.NAME]`.
    pub fn new(
        name: &str,
        settings: &UpstreamSettings,
        gate: &Gate,
        clock: &Clock,
    ) -> Result<Self, UpstreamSetupError> {
        let upstream = || name.to_owned();
        if let Some((key, message)) = settings.check().into_iter().next() {
            return Err(UpstreamSetupError::Setting { upstream: upstream(), key, message });
        }
        let tls = tls::client_config(settings.ca_file.as_deref());
        let tls = tls.map_err(|source| UpstreamSetupError::Tls { upstream: upstream(), source })?;
        let proxy = ProxySettings::from_env();
        let proxy = proxy.map_err(|source| UpstreamSetupError::Proxy { upstream: upstream(), source })?;
        let accounts = Accounts::read(name, settings)?;
        let name: Arc<str> = name.into();
        let client = ClientSettings {
            upstream: name.clone(),
            tls,
            proxy: proxy.map(Arc::new),
            connect_timeout: settings.connect_timeout.0,
            response_timeout: settings.response_timeout.0,
            stall_timeout: settings.stall_timeout.0,
        };
        // Both lists were checked above: nothing is left out.
        let origins = |texts: &[String]| texts.iter().filter_map(|text| Origin::parse(text)).collect::<Vec<_>>();
        let endpoints = origins(&settings.endpoint_texts()).into_iter().map(|origin| Arc::new(Endpoint::new(origin)));
        Ok(Self(Arc::new(Remote {
            name,
            host: settings.host.as_str().into(),
            endpoints: endpoints.collect(),
            token_realms: origins(&settings.token_realms),
            redirect_origins: origins(&settings.redirect_origins),
            accounts,
            tokens: Tokens::default(),
            limits: Limits::default(),
            gate: gate.clone(),
            gate_changes: Mutex::new(gate.changes()),
            client: Client::new(gate.clone(), client),
            clock: clock.clone(),
            retries_max: settings.retries_max,
            retry_pause: settings.retry_pause.0,
            resumes_max: settings.resumes_max,
            blob_size_max: settings.blob_size_max.0,
        })))
    }

    /// The key of `[upstream.NAME]`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The name by which clients know it.
    pub fn host(&self) -> &str {
        &self.0.host
    }

    /// HEAD of a manifest. Falls back to nothing: where upstream's answer lacks a digest, `digest` is `None`.
    pub async fn resolve(&self, repository: &RepositoryName, reference: &Reference) -> Result<Resolved, UpstreamError> {
        let answer = self.ask_manifest(Method::HEAD, repository, reference).await?;
        let (head, success) = (&answer.head.headers, answer.head.status.is_success());
        let told = head.get("docker-content-digest").filter(|_| success).and_then(|value| value.to_str().ok());
        let digest = match reference {
            Reference::Digest(digest) => success.then_some(*digest),
            Reference::Tag(_) => told.and_then(|text| text.parse().ok()),
        };
        let media_type = pages::media_type(head).filter(|_| success);
        Ok(Resolved { digest, media_type, size: stated_size(&answer) })
    }

    /// At most `MANIFEST_SIZE_MAX` bytes.
    pub async fn manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<FetchedManifest, UpstreamError> {
        let answer = self.ask_manifest(Method::GET, repository, reference).await?;
        Ok(FetchedManifest { media_type: pages::media_type(&answer.head.headers), bytes: answer.bytes })
    }

    /// The bytes from `from` on; see [`BlobStream::start`].
    pub async fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        from: u64,
    ) -> Result<BlobStream, UpstreamError> {
        BlobStream::open(&self.0, repository, digest, from).await
    }

    /// HEAD of a blob: its size, where upstream says it.
    pub async fn has_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<u64>, UpstreamError> {
        let ask = Ask {
            purpose: Purpose::Blob,
            method: Method::HEAD,
            repository: repository.clone(),
            path_and_query: format!("/v2/{repository}/blobs/{digest}"),
            accept: "*/*",
            range_from: None,
            whole: None,
            tolerates: &[],
        };
        Ok(stated_size(&self.0.ask(&ask, Patience::Full).await?))
    }

    /// Every tag, over as many pages as it takes (bounded).
    pub async fn tags(&self, repository: &RepositoryName) -> Result<Vec<Tag>, UpstreamError> {
        self.tags_with(repository, Patience::Full).await
    }

    /// As [`Self::tags`]; `patience` is that for each page.
    pub async fn tags_with(&self, repository: &RepositoryName, patience: Patience) -> Result<Vec<Tag>, UpstreamError> {
        self.0.tags(repository, patience).await
    }

    /// The referrers list, by the API or else by the tag schema.
    pub async fn referrers(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Vec<Descriptor>, UpstreamError> {
        self.referrers_with(repository, digest, Patience::Full).await
    }

    /// As [`Self::referrers`]; `patience` is that for each page.
    pub async fn referrers_with(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        patience: Patience,
    ) -> Result<Vec<Descriptor>, UpstreamError> {
        self.0.referrers(repository, digest, patience).await
    }

    /// Why it is being left alone now (breaker), for `sealock status`.
    pub fn health(&self) -> UpstreamHealth {
        let now = self.0.clock.now();
        let rests: Option<Vec<Timestamp>> =
            self.0.endpoints.iter().map(|endpoint| endpoint.resting_until(now)).collect();
        let last_error = self.0.endpoints.iter().find_map(|endpoint| endpoint.last_error());
        UpstreamHealth {
            name: self.0.name.to_string(),
            host: self.0.host.to_string(),
            resting_until: rests.and_then(|rests| rests.into_iter().min()),
            last_error: last_error.map(|error| error.to_string()),
        }
    }

    async fn ask_manifest(
        &self,
        method: Method,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Answer, UpstreamError> {
        // Registries without HEAD of manifests: GET tells.
        let tolerates: &[u16] = if method == Method::HEAD { &[405, 501] } else { &[] };
        let ask = Ask {
            purpose: Purpose::Manifest,
            whole: (method == Method::GET).then_some(MANIFEST_SIZE_MAX),
            method,
            repository: repository.clone(),
            path_and_query: format!("/v2/{repository}/manifests/{reference}"),
            accept: MediaType::ACCEPT,
            range_from: None,
            tolerates,
        };
        self.0.ask(&ask, Patience::Full).await
    }
}

impl Remote {
    /// What failed before the gate last moved says nothing about now.
    fn begin_afresh_when_the_gate_moved(&self) {
        let mut changes = self.gate_changes.lock().unwrap_or_else(PoisonError::into_inner);
        if changes.has_changed().unwrap_or(false) {
            changes.mark_unchanged();
            self.endpoints.iter().for_each(|endpoint| endpoint.forget_failures());
            self.limits.forget();
            self.accounts.forget_failures();
        }
    }
}

/// `Content-Length` of a good answer; 0 is what a careless registry writes on HEAD.
fn stated_size(answer: &Answer) -> Option<u64> {
    send::length(&answer.head.headers).filter(|size| *size > 0 && answer.head.status.is_success())
}
