//! What we log in with: from a file, a variable, or Docker's `config.json` and its helpers.
//!
//! A file that changes is read again before the next request; a credential that is refused is looked up once more.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as SyncMutex, PoisonError};
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
use super::settings::CredentialSettings;
use crate::files::Stamp;
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
    File(PasswordFile),
    Docker(Docker),
}

/// A file with a password, as it was when it was last looked at.
pub(super) struct PasswordFile {
    upstream: String,
    path: PathBuf,
    username: String,
    state: SyncMutex<(Stamp, Arc<Credential>)>,
}

/// A Docker configuration, asked for one registry.
pub(super) struct Docker {
    path: PathBuf,
    server: String,
    state: Mutex<DockerState>,
}

#[derive(Default)]
struct DockerState {
    /// Since when, of which state of the file, what.
    kept: Option<(Timestamp, Stamp, Found)>,
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
    pub fn read(upstream: &str, host: &str, settings: &CredentialSettings) -> Result<Self, UpstreamSetupError> {
        if let Some(path) = &settings.docker_config {
            let config = read_file(upstream, "docker_config", path)?;
            if !serde_json::from_slice::<serde_json::Value>(&config).is_ok_and(|config| config.is_object()) {
                let message = format!("`{}` is not a JSON object", path.display());
                return Err(wrong(upstream, "docker_config", message));
            }
            // Docker Hub's entries stand under the address of its old index.
            let server = if host == "docker.io" { "https://index.docker.io/v1/" } else { host };
            return Ok(Self::Docker(Docker { path: path.clone(), server: server.to_owned(), state: Mutex::default() }));
        }
        let Some(username) = settings.username.clone() else {
            return Ok(Self::Anonymous);
        };
        match (&settings.password_file, &settings.password_env) {
            (Some(path), _) => {
                let stamp = Stamp::of(path);
                let password = read_password(upstream, path)?;
                let credential = Arc::new(Credential::Password { username: username.clone(), password });
                // What comes through a pipe comes once.
                if can_be_read_but_once(path) {
                    return Ok(Self::Fixed(credential));
                }
                let (upstream, path) = (upstream.to_owned(), path.clone());
                Ok(Self::File(PasswordFile { upstream, path, username, state: SyncMutex::new((stamp, credential)) }))
            }
            (None, Some(variable)) => match std::env::var(variable) {
                Ok(text) => {
                    let password = not_empty(upstream, "password_env", text)?;
                    Ok(Self::Fixed(Arc::new(Credential::Password { username, password })))
                }
                Err(_) => Err(wrong(upstream, "password_env", format!("the variable `{variable}` is not set"))),
            },
            (None, None) => {
                let message = "has no password; add `password_file` or remove `username`".to_owned();
                Err(wrong(upstream, "username", message))
            }
        }
    }

    /// The credential to use now, or none. Runs a helper, which may reach out: only for a request that the gate let through.
    pub async fn credential(&self, now: Timestamp) -> Found {
        match self {
            Self::Anonymous => Ok(None),
            Self::Fixed(credential) => Ok(Some(credential.clone())),
            Self::File(file) => Ok(Some(file.credential(false))),
            Self::Docker(docker) => docker.credential(now).await,
        }
    }

    /// `refused` was refused: another one, if there is one by now. A helper that was asked just before is not asked again.
    pub async fn renewed(&self, refused: &Arc<Credential>, now: Timestamp) -> Option<Arc<Credential>> {
        let found = match self {
            Self::Anonymous | Self::Fixed(_) => None,
            Self::File(file) => Some(file.credential(true)),
            Self::Docker(docker) => docker.renewed(refused, now).await,
        };
        found.filter(|found| found != refused)
    }

    /// The credential was refused: a helper is asked again.
    pub async fn forget(&self) {
        if let Self::Docker(docker) = self {
            docker.state.lock().await.kept = None;
        }
    }
}

impl PasswordFile {
    /// What the file holds. One that cannot be used, as when it is just being written, leaves what it held before.
    fn credential(&self, anew: bool) -> Arc<Credential> {
        let stamp = Stamp::of(&self.path);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.0 == stamp && !anew {
            return state.1.clone();
        }
        state.0 = stamp;
        match read_password(&self.upstream, &self.path) {
            Ok(password) => {
                let read = Credential::Password { username: self.username.clone(), password };
                if *state.1 != read {
                    tracing::info!(upstream = self.upstream, "took a new password from `password_file`");
                    state.1 = Arc::new(read);
                }
            }
            Err(why) => {
                let (_, why) = why.of_setting();
                tracing::warn!(upstream = self.upstream, "the password before is used on: {why}");
            }
        }
        state.1.clone()
    }
}

impl Docker {
    async fn credential(&self, now: Timestamp) -> Found {
        let mut state = self.state.lock().await;
        let stamp = Stamp::of(&self.path);
        if let Some((since, of, kept)) = &state.kept {
            let seconds = if kept.is_ok() { HELPER_KEPT_SECONDS } else { FAILURE_KEPT_SECONDS };
            if *of == stamp && (0..seconds).contains(&now.duration_since(*since).as_secs()) {
                return kept.clone();
            }
        }
        let found = self.look_up(&mut state.running).await;
        state.kept = Some((now, stamp, found.clone()));
        found
    }

    async fn renewed(&self, refused: &Arc<Credential>, now: Timestamp) -> Option<Arc<Credential>> {
        {
            let mut state = self.state.lock().await;
            if let Some((since, _, Ok(Some(kept)))) = &state.kept {
                let just_asked = (0..FAILURE_KEPT_SECONDS).contains(&now.duration_since(*since).as_secs());
                if kept != refused || just_asked {
                    return Some(kept.clone());
                }
            }
            state.kept = None;
        }
        self.credential(now).await.ok().flatten()
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

fn read_password(upstream: &str, path: &Path) -> Result<Secret, UpstreamSetupError> {
    let text = String::from_utf8(read_file(upstream, "password_file", path)?);
    let text = text.map_err(|_| wrong(upstream, "password_file", format!("`{}` is not UTF-8", path.display())))?;
    not_empty(upstream, "password_file", text.trim_end_matches(['\r', '\n']).to_owned())
}

fn not_empty(upstream: &str, key: &'static str, password: String) -> Result<Secret, UpstreamSetupError> {
    if password.is_empty() {
        Err(wrong(upstream, key, "the password is empty".to_owned()))
    } else {
        Ok(Secret::new(password))
    }
}

fn wrong(upstream: &str, key: &'static str, message: String) -> UpstreamSetupError {
    UpstreamSetupError::Setting { upstream: upstream.to_owned(), key, message }
}

/// A pipe, such as the shell's `<(…)`: what is read once is gone.
pub(super) fn can_be_read_but_once(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.file_type().is_fifo() || found.file_type().is_char_device())
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
    fn a_password_is_marked_as_secret_in_its_header() {
        // Invariant 12
        let password = Credential::Password { username: "robot".to_owned(), password: Secret::new("pa55") };
        let header = password.basic().unwrap();
        assert!(header.is_sensitive() && header == "Basic cm9ib3Q6cGE1NQ==");
    }

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
