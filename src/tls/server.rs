//! What clients are shown: certificates chosen by the name that they ask for, read again when the files change.
//!
//! A handshake takes what is current when it begins; connections that run are never touched. Files that cannot be used
//! are reported and leave what is in use where it is. An expired certificate is shown all the same, with a warning: a
//! client that refuses it says why, and one that does not look goes on, while a registry that is not there helps nobody.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::{SignedDuration, Timestamp};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{RootCertStore, ServerConfig};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::client::read_certificates;
use super::facts::Facts;
use super::pair::{Pair, PairError, read_chain};
use super::settings::{ClientAuth, TlsSettings};
use super::{TlsError, WARN_DAYS};
use crate::clock::Clock;
use crate::files::Stamp;

/// The server's side of TLS, for all its listeners.
pub struct ServerTls {
    settings: TlsSettings,
    clock: Clock,
    current: ArcSwap<Current>,
    /// Why the files, as they are now, are not in use.
    trouble: Mutex<Option<String>>,
}

/// What new handshakes take.
struct Current {
    config: Arc<ServerConfig>,
    shown: Vec<Shown>,
    /// How the files were just before they were read.
    stamps: Vec<Stamp>,
}

/// A certificate in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shown {
    pub file: PathBuf,
    pub role: Role,
    #[serde(flatten)]
    pub facts: Facts,
    /// Until the first certificate of its chain ends; below 0 once it has.
    pub days_left: i64,
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Clients are shown it.
    Server,
    /// Clients must trust it.
    Authority,
    /// Clients whose certificates it issued are believed.
    ClientAuthority,
}

/// How TLS stands, for the status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsReport {
    pub certificates: Vec<Shown>,
    /// What an operator should do something about, a sentence each.
    pub warnings: Vec<String>,
}

/// A file of `[tls]` that cannot be used.
#[derive(Debug)]
pub struct InvalidTls {
    /// Below `[tls]`: `key`, `also.0.certificate`, …
    key: String,
    why: PairError,
}

// Transparent: it says what `why` says, once.
impl std::error::Error for InvalidTls {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.why)
    }
}

impl fmt::Display for InvalidTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.why.fmt(f)
    }
}

const WARN_EVERY: SignedDuration = SignedDuration::from_hours(24);

impl InvalidTls {
    /// What the reader can do about it.
    pub fn hint(&self) -> Option<String> {
        self.why.hint()
    }

    /// What failed, why, and what to do.
    pub fn in_one_line(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(&self.why);
        while let Some(why) = cause {
            text = format!("{text}: {why}");
            cause = why.source();
        }
        self.hint().map_or(text.clone(), |hint| format!("{text}; {hint}"))
    }

    /// The setting below `[tls]`.
    pub fn key(&self) -> Vec<&str> {
        self.key.split('.').collect()
    }
}

impl ServerTls {
    /// Reads the files, blocking. `None`: no certificate is set.
    pub fn load(settings: &TlsSettings, clock: &Clock) -> Result<Option<Arc<Self>>, InvalidTls> {
        if settings.certificate.is_none() {
            return Ok(None);
        }
        let current = ArcSwap::from_pointee(Current::read(settings, clock)?);
        let (settings, clock) = (settings.clone(), clock.clone());
        Ok(Some(Arc::new(Self { settings, clock, current, trouble: Mutex::new(None) })))
    }

    /// For a handshake that begins now.
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.load().config)
    }

    /// A host that clients can reach it by, as the first certificate says; an address where it says no host.
    pub fn host(&self) -> Option<String> {
        let current = self.current.load();
        let names = &current.shown.first()?.facts.names;
        let is_host = |name: &&String| !name.starts_with("*.") && name.parse::<std::net::IpAddr>().is_err();
        let host = names.iter().find(is_host).or_else(|| names.iter().find(|name| !name.starts_with("*.")))?;
        Some(if host.contains(':') { format!("[{host}]") } else { host.clone() })
    }

    pub fn report(&self) -> TlsReport {
        let now = self.clock.now();
        let mut certificates = self.current.load().shown.clone();
        let mut warnings: Vec<String> = self.trouble().iter().cloned().collect();
        for one in &mut certificates {
            one.days_left = one.facts.days_left(now);
            warnings.extend(one.warning(now));
        }
        TlsReport { certificates, warnings }
    }

    /// Looks for changed files until `stop`, and warns of certificates that end.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let (mut seen, mut warned_at) = (self.current.load().stamps.clone(), None::<Timestamp>);
        loop {
            let now = self.clock.now();
            if warned_at.is_none_or(|at| now.duration_since(at) >= WARN_EVERY) {
                warned_at = Some(now);
                self.report().warnings.iter().for_each(|text| warn!("{text}"));
            }
            let pause = tokio::time::sleep(self.settings.reload_every.0);
            if stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
            let this = Arc::clone(&self);
            let looking = tokio::task::spawn_blocking(move || this.look(seen));
            seen = match looking.await {
                Ok(stamps) => stamps,
                Err(why) => {
                    error!(error = %why, "looking at the certificates ended: {why}");
                    return;
                }
            };
        }
    }

    /// Takes what has changed, once it stands still: files that are just being written are left until the next look.
    fn look(&self, seen: Vec<Stamp>) -> Vec<Stamp> {
        let stamps = stamps(&self.settings);
        let current = self.current.load();
        if stamps == current.stamps {
            *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = None;
        } else if stamps == seen {
            let read =
                Current::read(&self.settings, &self.clock).and_then(|next| next.instead_of(&current, self.clock.now()));
            self.take(read);
        }
        stamps
    }

    fn take(&self, read: Result<Current, InvalidTls>) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(next) => {
                let named: Vec<_> = next.shown.iter().map(|one| format!("`{}`", one.file.display())).collect();
                info!("new certificates are in use: {}", named.join(", "));
                self.current.store(Arc::new(next));
                *trouble = None;
            }
            Err(why) => {
                let text = format!("the new certificates are not used, the old ones still are: {}", why.in_one_line());
                if trouble.as_deref() != Some(&text) {
                    error!("{text}");
                }
                *trouble = Some(text);
            }
        }
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Current {
    fn read(settings: &TlsSettings, clock: &Clock) -> Result<Self, InvalidTls> {
        let stamps = stamps(settings);
        let provider = Arc::new(aws_lc_rs::default_provider());
        let (mut pairs, mut shown, now) = (Vec::new(), Vec::new(), clock.now());
        for (at, certificate, key) in settings.pairs() {
            let pair = Pair::read(certificate, &key, &provider);
            let pair = pair.map_err(|why| InvalidTls { key: format!("{at}{}", why.setting()), why })?;
            shown.extend(Shown::of_chain(&pair.file, &pair.chain, now));
            pairs.push(pair);
        }
        let invalid = |why: PairError| InvalidTls { key: why.setting().to_owned(), why };
        let authorities = match &settings.client_ca {
            Some(path) => read_client_authorities(path).map_err(invalid)?,
            None => Vec::new(),
        };
        if let Some(path) = &settings.client_ca {
            let facts = authorities.iter().filter_map(Facts::of);
            shown.extend(facts.map(|facts| Shown::new(path, Role::ClientAuthority, facts, now)));
        }
        let verifier = verifier(settings, authorities, &provider).map_err(invalid)?;
        let config = config(Certificates(pairs), verifier, provider, clock).map_err(invalid)?;
        Ok(Self { config: Arc::new(config), shown, stamps })
    }

    /// Itself, unless it would put something expired in the place of something that is not.
    fn instead_of(self, old: &Self, now: Timestamp) -> Result<Self, InvalidTls> {
        let expired = |of: &Self| of.shown.iter().find(|one| one.facts.not_after < now).map(|one| one.file.clone());
        match expired(&self) {
            Some(path) if expired(old).is_none() => {
                Err(InvalidTls { key: "certificate".to_owned(), why: PairError::Expired { path } })
            }
            _ => Ok(self),
        }
    }
}

impl Shown {
    fn new(file: &Path, role: Role, facts: Facts, now: Timestamp) -> Self {
        let days_left = facts.days_left(now);
        Self { file: file.to_owned(), role, facts, days_left }
    }

    /// The server's own: it lasts as long as all of its chain does.
    fn of_chain(file: &Path, chain: &[Facts], now: Timestamp) -> Option<Self> {
        let mut facts = chain.first()?.clone();
        facts.not_before = chain.iter().map(|one| one.not_before).max()?;
        facts.not_after = chain.iter().map(|one| one.not_after).min()?;
        Some(Self::new(file, Role::Server, facts, now))
    }

    /// What an operator should do something about.
    pub fn warning(&self, now: Timestamp) -> Option<String> {
        let (file, facts) = (self.file.display(), &self.facts);
        let until = facts.not_after.strftime("%Y-%m-%d %H:%M UTC");
        let renew = match self.role {
            Role::Server => "put a new one there, or run `sealock certs renew` if sealock made it",
            Role::Authority | Role::ClientAuthority => "put a new one there, and give it to those who trust it",
        };
        if facts.not_after < now {
            Some(format!("the certificate `{file}` has expired on {until}: it is refused; {renew}"))
        } else if facts.not_before > now {
            let from = facts.not_before.strftime("%Y-%m-%d %H:%M UTC");
            Some(format!("the certificate `{file}` is valid from {from} on only: is this machine's clock right?"))
        } else if facts.days_left(now) < WARN_DAYS {
            Some(format!("the certificate `{file}` expires on {until}, in {} days; {renew}", facts.days_left(now)))
        } else if self.role == Role::Server && facts.names.is_empty() {
            Some(format!("the certificate `{file}` names no host (subjectAltName): clients refuse it; {renew}"))
        } else {
            None
        }
    }
}

/// Whether a server could show the certificate with that key. One that is another user's is not looked at.
pub fn check_key(certificate: &Path, key: &Path) -> Result<(), PairError> {
    match Pair::read(certificate, key, &aws_lc_rs::default_provider()) {
        Err(PairError::Owner { .. }) => Ok(()),
        Err(PairError::ReadKey { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        Err(why) => Err(why),
        Ok(_) => Ok(()),
    }
}

/// What is in a file, as it would be shown: a server's certificate with its chain is one.
pub fn shown(path: &Path, role: Role, now: Timestamp) -> Result<Vec<Shown>, PairError> {
    let certificates = read_certificates(path).map_err(PairError::Certificates)?;
    let chain = read_chain(path, &certificates)?;
    Ok(match role {
        Role::Server => Shown::of_chain(path, &chain, now).into_iter().collect(),
        _ => chain.into_iter().map(|facts| Shown::new(path, role, facts, now)).collect(),
    })
}

/// The certificates, in the order of the settings.
#[derive(Debug)]
struct Certificates(Vec<Pair>);

impl ResolvesServerCert for Certificates {
    /// By the name asked for, and of those the first whose key the client can verify. Who asks for no name, as clients
    /// by address do, or for one that no certificate has, gets the first.
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let suits = |pair: &&Pair| pair.certified.key.choose_scheme(hello.signature_schemes()).is_some();
        let host = hello.server_name().unwrap_or_default();
        let exact = || self.0.iter().filter(|pair| pair.chain[0].is_exactly_for(host));
        let named = || self.0.iter().filter(|pair| pair.chain[0].is_for(host));
        let found = exact().find(suits).or_else(|| named().find(suits)).or_else(|| self.0.iter().find(suits));
        found.or(self.0.first()).map(|pair| Arc::clone(&pair.certified))
    }
}

fn config(
    certificates: Certificates,
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    provider: Arc<CryptoProvider>,
    clock: &Clock,
) -> Result<ServerConfig, PairError> {
    let builder = ServerConfig::builder_with_details(provider, Arc::new(Time(clock.clone())))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(PairError::Setup)?;
    let judges = verifier.is_some();
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(certificates));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    if judges {
        // A resumed session is not judged again, however long ago its certificate ended.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    } else {
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(PairError::Setup)?;
    }
    Ok(config)
}

fn read_client_authorities(path: &Path) -> Result<Vec<CertificateDer<'static>>, PairError> {
    let wrong = |source: TlsError| PairError::ClientCa { path: path.to_owned(), source: source.into() };
    read_certificates(path).map_err(wrong)
}

fn verifier(
    settings: &TlsSettings,
    authorities: Vec<CertificateDer<'static>>,
    provider: &Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, PairError> {
    let Some(path) = settings.client_ca.as_deref().filter(|_| settings.client_auth != ClientAuth::Off) else {
        return Ok(None);
    };
    type Cause = Box<dyn std::error::Error + Send + Sync>;
    let wrong = |source: Cause| PairError::ClientCa { path: path.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority).map_err(|why| wrong(why.into()))?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let builder = match settings.client_auth {
        ClientAuth::Optional => builder.allow_unauthenticated(),
        ClientAuth::Off | ClientAuth::Required => builder,
    };
    builder.build().map(Some).map_err(|why| wrong(why.into()))
}

/// The clock by which clients' certificates are judged.
#[derive(Debug)]
struct Time(Clock);

impl TimeProvider for Time {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

fn stamps(settings: &TlsSettings) -> Vec<Stamp> {
    let pairs = settings.pairs();
    let files = pairs.iter().flat_map(|(_, certificate, key)| [*certificate, key.as_path()]);
    files.chain(settings.client_ca.as_deref()).map(Stamp::of).collect()
}
