//! How an endpoint lets us in: what it asked for last, and what we show it next.

use std::sync::Arc;

use http::{HeaderValue, StatusCode};

use super::Remote;
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
            Some(Memory::Basic) => Ok(self.credential(repository).await?.map(Grant::Basic)),
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
                return match self.renewed(repository, credential).await.filter(|renewed| renewed.basic().is_some()) {
                    Some(renewed) => Ok(Grant::Basic(renewed)),
                    None => Err(self.refused(repository, credential, 401).await),
                };
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
        match self.credential(repository).await? {
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
    pub fn granted(&self, endpoint: &Endpoint, repository: &RepositoryName, grant: Option<&Grant>, status: StatusCode) {
        let Some(grant) = grant.filter(|_| status != StatusCode::FORBIDDEN && !status.is_server_error()) else {
            return;
        };
        if grant.has_credential() {
            self.accounts.of(repository).standing.worked();
        }
        endpoint.remember(Some(match grant {
            Grant::Basic(_) => Memory::Basic,
            Grant::Bearer { challenge, .. } => Memory::Bearer(challenge.clone()),
        }));
    }

    pub(super) async fn bearer(
        &self,
        endpoint: &Endpoint,
        repository: &RepositoryName,
        mut challenge: Bearer,
    ) -> Result<Grant, Fault> {
        // A scope such as `aws` is asked for as it stands; one that names a repository is named anew for each.
        if challenge.scope.as_deref().is_some_and(|scope| scope.starts_with("repository:")) {
            challenge.scope = None;
        }
        let mut credential = self.credential(repository).await?;
        let mut renewed = false;
        loop {
            let key = Key::of(self, &endpoint.origin, &challenge, repository, credential.clone());
            let key = key.map_err(Fault::last)?;
            let fault = match self.tokens.token(self, &key).await {
                Ok((token, fresh)) => {
                    let credential = credential.is_some();
                    return Ok(Grant::Bearer { token, key: key.into(), challenge, fresh, credential });
                }
                Err(fault) => fault,
            };
            let (UpstreamError::CredentialsDenied { status, .. }, Some(shown)) = (&fault.error, &credential) else {
                return Err(fault);
            };
            match self.renewed(repository, shown).await.filter(|_| !renewed) {
                Some(other) => (credential, renewed) = (Some(other), true),
                None => return Err(self.refused(repository, shown, *status).await),
            }
        }
    }

    /// The credential for `repository`, unless it was just refused.
    async fn credential(&self, repository: &RepositoryName) -> Result<Option<Arc<Credential>>, Fault> {
        // A helper may reach out by itself.
        if let Some(refusal) = self.gate.refusal(&self.name) {
            return Err(Fault::last(refusal.into()));
        }
        let (upstream, account) = (self.name.to_string(), self.accounts.of(repository));
        let found = account.source.credential(self.clock.now()).await;
        let found = found.map_err(|why| Fault::last(UpstreamError::Unreachable { upstream: upstream.clone(), why }))?;
        match &found {
            Some(credential) => match account.standing.admit(credential, self.clock.now()) {
                Some(status) => Err(Fault::last(UpstreamError::CredentialsDenied { upstream, status })),
                None => Ok(found),
            },
            None => Ok(None),
        }
    }

    /// Another credential in place of one that was refused, if there is one by now.
    async fn renewed(&self, repository: &RepositoryName, refused: &Arc<Credential>) -> Option<Arc<Credential>> {
        if self.gate.refusal(&self.name).is_some() {
            return None;
        }
        self.accounts.of(repository).source.renewed(refused, self.clock.now()).await
    }

    async fn refused(&self, repository: &RepositoryName, credential: &Arc<Credential>, status: u16) -> Fault {
        let account = self.accounts.of(repository);
        account.standing.refused(credential, status, self.clock.now());
        account.source.forget().await;
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
