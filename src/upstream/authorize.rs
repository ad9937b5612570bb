//! How an endpoint lets us in: what it asked for last, and what we show it next.

use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderValue, StatusCode};
use jiff::Timestamp;

use super::Remote;
use super::breaker::{Admission, Breaker, Weight};
use super::challenge::{Bearer, Challenge};
use super::credentials::Credential;
use super::endpoint::Endpoint;
use super::error::{Fault, UpstreamError};
use super::token::{Key, Token};
use crate::oci::RepositoryName;

/// How an endpoint let us in last, so that the next request need not be refused first.
#[derive(Clone)]
pub(super) enum Memory {
    Basic,
    /// The scope is `None` where it names the repository.
    Bearer(Bearer),
}

/// What a request carries.
pub(super) enum Grant {
    Basic(Arc<Credential>),
    Bearer {
        token: Arc<Token>,
        key: Box<Key>,
        challenge: Bearer,
        /// Just fetched: if it is refused, so will another be.
        fresh: bool,
        credential: bool,
    },
}

/// Whether the credential is good: a refused one rests, so that a wrong password does not lock the account.
#[derive(Default)]
pub(super) struct Standing(Mutex<Stood>);

#[derive(Default)]
struct Stood {
    breaker: Breaker,
    worked: bool,
    refused: Option<(Arc<Credential>, u16)>,
}

impl Grant {
    pub fn header(&self) -> Option<HeaderValue> {
        match self {
            Self::Basic(credential) => credential.basic(),
            Self::Bearer { token, .. } => token.header(),
        }
    }

    pub fn has_credential(&self) -> bool {
        match self {
            Self::Basic(_) => true,
            Self::Bearer { credential, .. } => *credential,
        }
    }
}

impl Remote {
    /// What the endpoint wanted last time, for `repository`; nothing where that leads nowhere any more.
    pub async fn remembered_grant(
        &self,
        endpoint: &Endpoint,
        repository: &RepositoryName,
    ) -> Result<Option<Grant>, Fault> {
        match endpoint.memory() {
            None => Ok(None),
            Some(Memory::Basic) => Ok(self.credential().await?.map(Grant::Basic)),
            Some(Memory::Bearer(challenge)) => match self.bearer(endpoint, repository, challenge).await {
                Ok(grant) => Ok(Some(grant)),
                Err(fault) => match &fault.error {
                    UpstreamError::Refused(_) | UpstreamError::RateLimited { .. } => Err(fault),
                    UpstreamError::AnonymousDenied { .. } | UpstreamError::CredentialsDenied { .. } => Err(fault),
                    // Its realm may have moved: the next request asks where it is, at once if that may help.
                    _ => {
                        endpoint.remember(None);
                        if fault.again { Err(fault) } else { Ok(None) }
                    }
                },
            },
        }
    }

    /// What to show after a 401 that was answered to `shown`.
    pub async fn next_grant(
        &self,
        endpoint: &Endpoint,
        repository: &RepositoryName,
        challenges: Vec<Challenge>,
        shown: Option<Grant>,
    ) -> Result<Grant, Fault> {
        match &shown {
            Some(Grant::Basic(credential)) if !challenges.iter().any(|asked| matches!(asked, Challenge::Bearer(_))) => {
                return Err(self.refused(credential, 401).await);
            }
            Some(Grant::Bearer { fresh: true, credential, .. }) => return Err(self.denied(*credential)),
            Some(Grant::Bearer { token, key, .. }) => self.tokens.forget(key, token).await,
            Some(Grant::Basic(_)) | None => {}
        }
        let bearer = challenges.iter().find_map(|challenge| match challenge {
            Challenge::Bearer(bearer) => Some(bearer.clone()),
            Challenge::Basic => None,
        });
        if let Some(challenge) = bearer {
            return self.bearer(endpoint, repository, challenge).await;
        }
        match self.credential().await? {
            None => Err(self.denied(false)),
            Some(credential) if challenges.contains(&Challenge::Basic) && credential.basic().is_some() => {
                Ok(Grant::Basic(credential))
            }
            Some(_) => {
                Err(Fault::last(self.misbehaved("it answers 401 and asks for nothing that we can show".to_owned())))
            }
        }
    }

    /// The endpoint let us in, or at least did not answer 401.
    pub fn granted(&self, endpoint: &Endpoint, grant: Option<&Grant>, status: StatusCode) {
        let Some(grant) = grant.filter(|_| status != StatusCode::FORBIDDEN && !status.is_server_error()) else {
            return;
        };
        if grant.has_credential() {
            self.standing.worked();
        }
        endpoint.remember(Some(match grant {
            Grant::Basic(_) => Memory::Basic,
            Grant::Bearer { challenge, .. } => Memory::Bearer(challenge.clone()),
        }));
    }

    async fn bearer(
        &self,
        endpoint: &Endpoint,
        repository: &RepositoryName,
        mut challenge: Bearer,
    ) -> Result<Grant, Fault> {
        // A scope such as `aws` is asked for as it stands; one that names a repository is named anew for each.
        if challenge.scope.as_deref().is_some_and(|scope| scope.starts_with("repository:")) {
            challenge.scope = None;
        }
        let credential = self.credential().await?;
        let has_credential = credential.is_some();
        let key = Key::of(self, &endpoint.origin, &challenge, repository, credential.clone());
        let key = key.map_err(Fault::last)?;
        match self.tokens.token(self, &key).await {
            Ok((token, fresh)) => {
                Ok(Grant::Bearer { token, key: key.into(), challenge, fresh, credential: has_credential })
            }
            Err(fault) => match (&fault.error, credential) {
                (UpstreamError::CredentialsDenied { status, .. }, Some(credential)) => {
                    Err(self.refused(&credential, *status).await)
                }
                _ => Err(fault),
            },
        }
    }

    /// The credential, unless it was just refused.
    async fn credential(&self) -> Result<Option<Arc<Credential>>, Fault> {
        // A helper may reach out by itself.
        if let Some(refusal) = self.gate.refusal(&self.name) {
            return Err(Fault::last(refusal.into()));
        }
        let upstream = self.name.to_string();
        let found = self.credentials.credential(self.clock.now()).await;
        let found = found.map_err(|why| Fault::last(UpstreamError::Unreachable { upstream: upstream.clone(), why }))?;
        match &found {
            Some(credential) => match self.standing.admit(credential, self.clock.now()) {
                Some(status) => Err(Fault::last(UpstreamError::CredentialsDenied { upstream, status })),
                None => Ok(found),
            },
            None => Ok(None),
        }
    }

    async fn refused(&self, credential: &Arc<Credential>, status: u16) -> Fault {
        self.standing.refused(credential, status, self.clock.now());
        self.credentials.forget().await;
        Fault::last(UpstreamError::CredentialsDenied { upstream: self.name.to_string(), status })
    }

    fn denied(&self, credential: bool) -> Fault {
        let (upstream, status) = (self.name.to_string(), 401);
        Fault::last(match credential {
            true => UpstreamError::CredentialsDenied { upstream, status },
            false => UpstreamError::AnonymousDenied { upstream, status },
        })
    }
}

impl Standing {
    /// The status with which `credential` was refused, while it rests.
    fn admit(&self, credential: &Arc<Credential>, now: Timestamp) -> Option<u16> {
        let mut stood = self.lock();
        let status = stood.refused.as_ref().filter(|(refused, _)| refused == credential).map(|(_, status)| *status)?;
        (stood.breaker.admit(now) == Admission::Rest).then_some(status)
    }

    /// One that has worked may have been refused for one repository only: that counts little.
    fn refused(&self, credential: &Arc<Credential>, status: u16, now: Timestamp) {
        let mut stood = self.lock();
        let weight = if stood.worked { Weight::Light } else { Weight::Heavy };
        stood.breaker.failed(now, weight);
        if stood.breaker.resting_until(now).is_some() {
            stood.worked = false;
        }
        stood.refused = Some((credential.clone(), status));
    }

    fn worked(&self) {
        let mut stood = self.lock();
        stood.breaker.succeeded();
        stood.worked = true;
        stood.refused = None;
    }

    pub fn forget_failures(&self) {
        let mut stood = self.lock();
        stood.breaker.succeeded();
        stood.refused = None;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Stood> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
