//! What stands between us and an upstream, step by step: for `sealock upstream check`.
//!
//! Every step goes through the gate like any request, and is on record. Nothing here holds a secret.

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use rustls::{CertificateError, Error as TlsFault};
use serde::{Deserialize, Serialize};

use super::challenge::Challenge;
use super::credentials::Credential;
use super::endpoint::Endpoint;
use super::error::{Fault, UpstreamError, causes};
use super::send::{Ask, challenges_in, drain};
use super::{Remote, Upstream};
use crate::gate::{DialError, PeerCertificate, Purpose, SendError};
use crate::oci::{MediaType, Reference, RepositoryName};
use crate::tls::Facts;

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamCheck {
    pub upstream: String,
    pub host: String,
    /// Every endpoint can be used.
    pub good: bool,
    /// The gate let nothing out: its words.
    pub refused: Option<String>,
    pub endpoints: Vec<EndpointCheck>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointCheck {
    pub endpoint: String,
    pub good: bool,
    /// Up to the first that failed.
    pub steps: Vec<CheckStep>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckStep {
    pub step: Step,
    pub good: bool,
    pub detail: String,
    /// What to do about it.
    pub hint: Option<String>,
}

/// In their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    Name,
    Connection,
    Tls,
    /// `GET /v2/`
    Registry,
    Login,
    Manifest,
}

/// The steps of one endpoint in the making.
struct Steps<'a> {
    remote: &'a Remote,
    endpoint: &'a Endpoint,
    steps: Vec<CheckStep>,
}

/// A step failed: there are no further ones.
struct Stopped;

impl Upstream {
    /// Asks every endpoint, resting or not. `probe`: a manifest to ask for, with what it takes to be let in.
    pub async fn check(&self, probe: Option<&(RepositoryName, Reference)>) -> UpstreamCheck {
        let remote = &self.0;
        let (upstream, host) = (remote.name.to_string(), remote.host.to_string());
        if let Some(refusal) = remote.gate.refusal(&remote.name) {
            let refused = Some(refusal.to_string());
            return UpstreamCheck { upstream, host, good: false, refused, endpoints: Vec::new() };
        }
        remote.accounts.forget_failures();
        let endpoints = join_all(remote.endpoints.iter().map(|endpoint| async move {
            let mut steps = Steps { remote, endpoint, steps: Vec::new() };
            let good = steps.walk(probe).await.is_ok();
            if good {
                endpoint.succeeded();
            }
            EndpointCheck { endpoint: endpoint.origin.to_string(), good, steps: steps.steps }
        }));
        let endpoints = endpoints.await;
        // It may have closed meanwhile.
        let refused = remote.gate.refusal(&remote.name).map(|refusal| refusal.to_string());
        let good = refused.is_none() && endpoints.iter().all(|endpoint| endpoint.good);
        UpstreamCheck { upstream, host, good, refused, endpoints }
    }
}

impl Steps<'_> {
    async fn walk(&mut self, probe: Option<&(RepositoryName, Reference)>) -> Result<(), Stopped> {
        let (status, challenges) = self.reach().await?;
        match status.as_u16() {
            200 => self.good(Step::Registry, "answers at /v2/ without a login"),
            401 if !challenges.is_empty() => self.good(Step::Registry, "answers at /v2/ and asks for a login"),
            401 => return self.bad(Step::Registry, "answers 401 at /v2/ and does not say how to log in", None),
            429 => return self.bad(Step::Registry, "asks us to wait (HTTP 429)", Some("try again later, or log in")),
            400 if !self.endpoint.origin.is_https() => {
                let hint = "it may speak TLS there: write `https://` in `endpoints`";
                return self.bad(Step::Registry, "answers 400 at /v2/", Some(hint));
            }
            300..=399 | 404 => {
                let hint = "`endpoints` must name the registry itself: the host that its images' names begin with";
                return self.bad(Step::Registry, &format!("answers {status} at /v2/: no registry"), Some(hint));
            }
            _ => return self.bad(Step::Registry, &format!("answers {status} at /v2/"), None),
        }
        let Some((repository, reference)) = probe else {
            self.good(Step::Login, "not tried: nothing is known that could be asked for; name something with --image");
            return Ok(());
        };
        self.log_in(repository, challenges).await?;
        self.ask(repository, reference).await
    }

    /// Name look-up, connection and TLS by way of `GET /v2/`: its status, and what it asks for.
    async fn reach(&mut self) -> Result<(StatusCode, Vec<Challenge>), Stopped> {
        let url = self.endpoint.origin.at("/v2/");
        let request = url.and_then(|url| Request::get(url).body(Full::new(Bytes::new())).ok());
        let Some(request) = request else { return self.bad(Step::Name, "is not a URL", None) };
        let response = match self.remote.client.send(Purpose::Ping, request).await {
            Ok(response) => response,
            Err(error) => return self.unreached(&error),
        };
        self.good(Step::Name, "has an address");
        self.good(Step::Connection, "is connected to");
        let (head, body) = response.into_parts();
        if let Some(PeerCertificate(shown)) = head.extensions.get() {
            let told = Facts::of(shown).map(|facts| {
                let days = facts.days_left(self.remote.clock.now());
                format!("shows a certificate of `{}`, good for {days} days", facts.issuer)
            });
            self.good(Step::Tls, told.as_deref().unwrap_or("shows a certificate that is believed"));
        }
        let challenges = challenges_in(&head.headers);
        drain(body).await;
        Ok((head.status, challenges))
    }

    fn unreached<T>(&mut self, error: &SendError) -> Result<T, Stopped> {
        let (host, why) = (self.endpoint.origin.host().to_owned(), causes(error));
        let ways = "see that a firewall lets it through; a proxy is taken from HTTPS_PROXY";
        match error.dial() {
            Some(DialError::LookUp { .. } | DialError::NoAddress { .. }) => {
                let hint = format!("see that this machine's name servers know `{host}`, or name another endpoint");
                self.bad(Step::Name, &why, Some(&hint))
            }
            Some(DialError::Tls { .. } | DialError::ServerName { .. }) => {
                self.good(Step::Name, "has an address");
                self.good(Step::Connection, "is connected to");
                let hint = error.dial().and_then(DialError::tls).and_then(|fault| tls_hint(fault, &self.remote.name));
                self.bad(Step::Tls, &why, hint.as_deref())
            }
            Some(DialError::Proxy { .. } | DialError::ProxyRefused { .. }) => {
                self.bad(Step::Connection, &why, Some("see to HTTPS_PROXY and NO_PROXY of the server"))
            }
            Some(_) => self.bad(Step::Connection, &why, Some(ways)),
            None if matches!(error, SendError::TimedOut { .. }) => self.bad(Step::Connection, &why, Some(ways)),
            None if matches!(error, SendError::Broken { .. }) && !self.endpoint.origin.is_https() => {
                self.bad(Step::Registry, &why, Some("it may speak TLS there: write `https://` in `endpoints`"))
            }
            None => self.bad(Step::Registry, &why, None),
        }
    }

    /// The token, where tokens are asked for; a password alone is tried with the manifest.
    async fn log_in(&mut self, repository: &RepositoryName, challenges: Vec<Challenge>) -> Result<(), Stopped> {
        let name = self.remote.name.clone();
        let found = self.remote.accounts.of(repository).source.credential(self.remote.clock.now()).await;
        let account = match found {
            Ok(Some(credential)) => match &*credential {
                Credential::Password { username, .. } => format!("as `{}`", username.escape_debug()),
                Credential::Refresh(_) => "with an identity token".to_owned(),
            },
            Ok(None) => "anonymously".to_owned(),
            Err(why) => return self.bad(Step::Login, &why, Some("run the helper by hand to see what it says")),
        };
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer(bearer) => Some(bearer.clone()),
            Challenge::Basic => None,
        });
        match bearer {
            Some(bearer) => match self.remote.bearer(self.endpoint, repository, bearer).await {
                Ok(_) => self.good(Step::Login, &format!("gives a token for {repository} {account}")),
                Err(fault) => return self.failed(Step::Login, &fault),
            },
            None if challenges.is_empty() => self.good(Step::Login, "is not asked for"),
            None if account == "anonymously" => {
                let hint = format!("add `username` and `password_file` to [upstream.{name}]");
                return self.bad(Step::Login, "wants a password, and there is none", Some(&hint));
            }
            None => self.good(Step::Login, &format!("takes a password with each request; tried {account}")),
        }
        Ok(())
    }

    async fn ask(&mut self, repository: &RepositoryName, reference: &Reference) -> Result<(), Stopped> {
        let separator = if matches!(reference, Reference::Digest(_)) { '@' } else { ':' };
        let named = format!("{repository}{separator}{reference}");
        let ask = Ask {
            purpose: Purpose::Manifest,
            method: Method::HEAD,
            repository: repository.clone(),
            path_and_query: format!("/v2/{repository}/manifests/{reference}"),
            accept: MediaType::ACCEPT,
            range_from: None,
            whole: None,
            tolerates: &[405, 501],
        };
        match self.remote.attempt(self.endpoint, &ask).await {
            Ok(_) => self.good(Step::Manifest, &format!("has {named}")),
            Err(fault) if matches!(fault.error, UpstreamError::NotFound { .. }) => {
                self.good(Step::Manifest, &format!("lets us ask for {named}, which it does not have"));
            }
            Err(fault) => return self.failed(Step::Manifest, &fault),
        }
        Ok(())
    }

    fn failed<T>(&mut self, step: Step, fault: &Fault) -> Result<T, Stopped> {
        let name = &self.remote.name;
        let hint = match &fault.error {
            UpstreamError::CredentialsDenied { .. } => Some(format!(
                "see that `username` and the password of [upstream.{name}] are right, and that the account may read it"
            )),
            UpstreamError::AnonymousDenied { .. } => {
                Some(format!("it is private, or not there: add `username` and `password_file` to [upstream.{name}]"))
            }
            UpstreamError::RateLimited { .. } => {
                Some("try again later, or log in: accounts may ask more often".to_owned())
            }
            UpstreamError::TimedOut { .. } | UpstreamError::Unreachable { .. } => {
                Some("its token service is a host of its own, perhaps: see that it can be reached, too".to_owned())
            }
            _ => None,
        };
        self.bad(step, &causes(&fault.error), hint.as_deref())
    }

    fn good(&mut self, step: Step, detail: &str) {
        self.steps.push(CheckStep { step, good: true, detail: detail.to_owned(), hint: None });
    }

    fn bad<T>(&mut self, step: Step, detail: &str, hint: Option<&str>) -> Result<T, Stopped> {
        let (detail, hint) = (detail.to_owned(), hint.map(str::to_owned));
        self.steps.push(CheckStep { step, good: false, detail, hint });
        Err(Stopped)
    }
}

fn tls_hint(fault: &TlsFault, name: &str) -> Option<String> {
    Some(match fault {
        TlsFault::InvalidMessage(_) => {
            "it speaks no TLS there: write `http://` in `endpoints`, with `plain_http = true` if that is meant"
                .to_owned()
        }
        TlsFault::InvalidCertificate(CertificateError::UnknownIssuer) => {
            format!("if its authority is your own, name it in `ca_file` of [upstream.{name}]")
        }
        TlsFault::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "its certificate has run out, or this machine's clock is wrong".to_owned()
        }
        TlsFault::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            "its certificate is not good yet, or this machine's clock is wrong".to_owned()
        }
        TlsFault::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "its certificate is for other names: write one of them in `endpoints`".to_owned(),
        _ => return None,
    })
}
