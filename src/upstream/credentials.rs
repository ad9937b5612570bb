//! What we log in with: from a file, a variable, or Docker's `config.json` and its helpers.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use http::HeaderValue;
use jiff::Timestamp;
use tokio::sync::Mutex;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::error::UpstreamSetupError;
use super::settings::UpstreamSettings;
use crate::secret::Secret;

/// Largest password file and Docker configuration that is read, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Longest wait for a credential helper.
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);
/// A helper's answer is good for so long: those of cloud registries live for hours.
const HELPER_KEPT_SECONDS: i64 = 300;
/// Its failure holds for so long, so that those who waited for it do not each wait for it again.
const FAILURE_KEPT_SECONDS: i64 = 5;

/// What is sent. Hash and equality make it part of the key of tokens that it bought.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Credential {
    Password {
        username: String,
        password: Secret,
    },
    /// Docker's identity token: exchanged for bearer tokens by `grant_type=refresh_token`.
    Refresh(Secret),
}

/// Where credentials come from.
pub(super) enum Source {
    Anonymous,
    Fixed(Arc<Credential>),
    Docker(Docker),
}

/// A Docker configuration, asked for one registry.
pub(super) struct Docker {
    path: PathBuf,
    server: String,
    state: Mutex<DockerState>,
}

#[derive(Default)]
struct DockerState {
    kept: Option<(Timestamp, Found)>,
    /// A helper that did not answer in time is waited for again, not started again.
    running: Option<JoinHandle<Asked>>,
}

/// What came of it; nothing means anonymous.
type Found = Result<Option<Arc<Credential>>, String>;

type Asked = Result<DockerCredential, CredentialRetrievalError>;

impl Credential {
    /// `Authorization: Basic …`; `None` for what is no password.
    pub fn basic(&self) -> Option<HeaderValue> {
        let Self::Password { username, password } = self else { return None };
        let mut value =
            HeaderValue::try_from(format!("Basic {}", STANDARD.encode(format!("{username}:{}", password.expose()))))
                .ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl Source {
    /// Reads what the settings name; runs no helper and touches no network.
    pub fn read(upstream: &str, settings: &UpstreamSettings) -> Result<Self, UpstreamSetupError> {
        let wrong = |key, message: &str| UpstreamSetupError::Setting {
            upstream: upstream.to_owned(),
            key,
            message: message.to_owned(),
        };
        if let Some(path) = &settings.docker_config {
            let config = read_file(upstream, "docker_config", path)?;
            if !serde_json::from_slice::<serde_json::Value>(&config).is_ok_and(|config| config.is_object()) {
                return Err(wrong("docker_config", &format!("`{}` is not a JSON object", path.display())));
            }
            // Docker Hub's entries stand under the address of its old index.
            let server = if settings.host == "docker.io" { "https://index.docker.io/v1/" } else { &settings.host };
            return Ok(Self::Docker(Docker { path: path.clone(), server: server.to_owned(), state: Mutex::default() }));
        }
        let Some(username) = settings.username.clone() else {
            return Ok(Self::Anonymous);
        };
        let (key, password) = match (&settings.password_file, &settings.password_env) {
            (Some(path), _) => {
                let bytes = read_file(upstream, "password_file", path)?;
                let text = String::from_utf8(bytes);
                let text = text.map_err(|_| wrong("password_file", &format!("`{}` is not UTF-8", path.display())))?;
                ("password_file", text.trim_end_matches(['\r', '\n']).to_owned())
            }
            (None, Some(variable)) => match std::env::var(variable) {
                Ok(text) => ("password_env", text),
                Err(_) => return Err(wrong("password_env", &format!("the variable `{variable}` is not set"))),
            },
            (None, None) => return Err(wrong("username", "has no password; add `password_file` or remove `username`")),
        };
        if password.is_empty() {
            return Err(wrong(key, "the password is empty"));
        }
        Ok(Self::Fixed(Arc::new(Credential::Password { username, password: Secret::new(password) })))
    }

    /// The credential to use now, or none. Runs a helper, which may reach out: only for a request that the gate let through.
    pub async fn credential(&self, now: Timestamp) -> Found {
        match self {
            Self::Anonymous => Ok(None),
            Self::Fixed(credential) => Ok(Some(credential.clone())),
            Self::Docker(docker) => docker.credential(now).await,
        }
    }

    /// The credential was refused: a helper is asked again.
    pub async fn forget(&self) {
        if let Self::Docker(docker) = self {
            docker.state.lock().await.kept = None;
        }
    }
}

impl Docker {
    async fn credential(&self, now: Timestamp) -> Found {
        let mut state = self.state.lock().await;
        if let Some((since, kept)) = &state.kept {
            let seconds = if kept.is_ok() { HELPER_KEPT_SECONDS } else { FAILURE_KEPT_SECONDS };
            if (0..seconds).contains(&now.duration_since(*since).as_secs()) {
                return kept.clone();
            }
        }
        let found = self.look_up(&mut state.running).await;
        state.kept = Some((now, found.clone()));
        found
    }

    async fn look_up(&self, running: &mut Option<JoinHandle<Asked>>) -> Found {
        let (path, server) = (self.path.clone(), self.server.clone());
        let look_up = running.get_or_insert_with(|| {
            tokio::task::spawn_blocking(move || {
                // Read anew, because `docker login` may have renewed it.
                let file = File::open(path).map_err(|_| CredentialRetrievalError::ConfigReadError)?;
                docker_credential::get_credential_from_reader(file.take(FILE_BYTES_MAX), &server)
            })
        });
        let Ok(ended) = timeout(HELPER_TIMEOUT, look_up).await else {
            return Err(format!("the credential helper for `{}` did not answer in time", self.server));
        };
        *running = None;
        let asked = ended.map_err(|_| format!("the credential helper for `{}` broke off", self.server))?;
        Ok(self.judge(asked)?.map(Arc::new))
    }

    /// No entry means anonymous; anything else that fails must not silently become an anonymous request.
    fn judge(&self, found: Asked) -> Result<Option<Credential>, String> {
        match found {
            Ok(DockerCredential::IdentityToken(token)) => Ok(Some(Credential::Refresh(Secret::new(token)))),
            Ok(DockerCredential::UsernamePassword(username, password)) => {
                Ok(Some(Credential::Password { username, password: Secret::new(password) }))
            }
            Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(None),
            // What helpers print, word for word, for a server that they know nothing of.
            Err(CredentialRetrievalError::HelperFailure { stdout, .. })
                if stdout.trim() == "credentials not found in native keychain" =>
            {
                Ok(None)
            }
            // Its output is left out: it may hold what it should not.
            Err(CredentialRetrievalError::HelperFailure { helper, .. }) => {
                Err(format!("the credential helper `{helper}` failed for `{}`", self.server))
            }
            Err(other) => Err(format!("no credential for `{}` from `docker_config`: {other}", self.server)),
        }
    }
}

fn read_file(upstream: &str, key: &'static str, path: &Path) -> Result<Vec<u8>, UpstreamSetupError> {
    let failed =
        |source| UpstreamSetupError::Read { upstream: upstream.to_owned(), key, path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > FILE_BYTES_MAX {
        let message = format!("`{}` has {size} bytes; at most {FILE_BYTES_MAX}", path.display());
        return Err(UpstreamSetupError::Setting { upstream: upstream.to_owned(), key, message });
    }
    std::fs::read(path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_that_knows_nothing_means_anonymous_and_one_that_fails_does_not() {
        let docker = Docker { path: PathBuf::new(), server: "a.b".to_owned(), state: Mutex::default() };
        let failed = |stdout: &str| {
            let (helper, stderr) = ("docker-credential-x".to_owned(), String::new());
            docker.judge(Err(CredentialRetrievalError::HelperFailure { helper, stdout: stdout.to_owned(), stderr }))
        };
        assert_eq!(failed("credentials not found in native keychain\n"), Ok(None));
        let told = failed("a secret that it should not have printed").unwrap_err();
        assert_eq!(told, "the credential helper `docker-credential-x` failed for `a.b`");
        assert_eq!(docker.judge(Err(CredentialRetrievalError::NoCredentialConfigured)), Ok(None));
        assert!(docker.judge(Err(CredentialRetrievalError::MalformedHelperResponse)).is_err());
        let token = docker.judge(Ok(DockerCredential::IdentityToken("t".to_owned())));
        assert_eq!(token, Ok(Some(Credential::Refresh(Secret::new("t")))));
    }
}
