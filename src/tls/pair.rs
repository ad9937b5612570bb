//! A certificate and its key, read from files and held against each other before anything is served with them.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SigningKey};

use super::client::{TlsError, read_certificates};
use super::facts::Facts;

/// A certificate that can be shown: its chain holds together, and its key is its own.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) file: PathBuf,
    pub(super) certified: Arc<CertifiedKey>,
    /// Of the whole chain, the server's first.
    pub(super) chain: Vec<Facts>,
}

/// Why a certificate and its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    #[error(transparent)]
    Certificates(TlsError),
    #[error("certificate {number} in `{}` is not an X.509 certificate", path.display())]
    NotX509 { path: PathBuf, number: usize },
    #[error("the certificate `{}` cannot be used", path.display())]
    Certificate {
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("certificate {number} in `{}` did not issue the one before it", path.display())]
    Order { path: PathBuf, number: usize },
    #[error("`{}` begins with another certificate than that of the key `{}`: it is number {number}", path.display(), key.display())]
    NotFirst { path: PathBuf, key: PathBuf, number: usize },
    #[error("cannot read the key `{}`", path.display())]
    ReadKey {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the key `{}` can be used by others: its mode is {mode:04o}", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("the key `{}` belongs to user {owner}, who is neither root nor the one that runs sealock", path.display())]
    Owner { path: PathBuf, owner: u32 },
    #[error("the key `{}` is encrypted", path.display())]
    Encrypted { path: PathBuf },
    #[error("`{}` holds no private key", path.display())]
    NoKey { path: PathBuf },
    #[error("the key `{}` cannot be used", path.display())]
    Key {
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
    #[error("the key `{}` is not that of the certificate `{}`", key.display(), certificate.display())]
    Mismatch { certificate: PathBuf, key: PathBuf },
    #[error("`{}` has expired, and the certificate in use has not", path.display())]
    Expired { path: PathBuf },
    #[error("`{}` cannot be used to judge clients", path.display())]
    ClientCa {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("cannot set up TLS")]
    Setup(#[source] rustls::Error),
}

/// Largest key file that is read, in bytes: a key of 16384 bits has 12 KiB.
const KEY_FILE_SIZE_MAX: u64 = 64 << 10;

const ORDER: &str = "put the server's certificate first, then the one that issued it, and so on";

impl PairError {
    /// What the reader can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Certificates(TlsError::Read { .. }) => {
                "check that the file exists and that sealock may read it; `sealock certs init` makes one".to_owned()
            }
            Self::Certificates(_) | Self::NotX509 { .. } => {
                "it must hold the server's certificate and its issuers as `-----BEGIN CERTIFICATE-----` blocks"
                    .to_owned()
            }
            Self::Certificate { .. } => {
                "have it made as X.509 version 3, with extensions: `openssl x509 -req` makes them with -extfile alone"
                    .to_owned()
            }
            Self::Order { .. } | Self::NotFirst { .. } => ORDER.to_owned(),
            Self::ReadKey { .. } => {
                "check that the file exists and belongs to the user that runs sealock, or name it in `key`".to_owned()
            }
            Self::Exposed { path, .. } => format!("run `chmod 600 {}`", path.display()),
            Self::Owner { .. } => "let it belong to the user that runs sealock (`chown`)".to_owned(),
            Self::Encrypted { path } => format!(
                "decrypt it once: `openssl pkey -in {0} -out {0}.plain`, and name that file in `key`",
                path.display()
            ),
            Self::NoKey { .. } => "it must hold one `-----BEGIN PRIVATE KEY-----` block".to_owned(),
            Self::Key { .. } => "use an ECDSA key (P-256, P-384), Ed25519, or RSA of 2048 bits or more".to_owned(),
            Self::Mismatch { .. } => "name the key that the certificate was made with".to_owned(),
            Self::Expired { .. } => "put one there that is valid".to_owned(),
            Self::ClientCa { .. } => {
                "it must hold the authorities of the clients as `-----BEGIN CERTIFICATE-----` blocks".to_owned()
            }
            Self::Setup(_) => return None,
        })
    }

    /// Which of the settings it is about.
    pub(super) fn setting(&self) -> &'static str {
        match self {
            Self::ReadKey { .. }
            | Self::Exposed { .. }
            | Self::Owner { .. }
            | Self::Encrypted { .. }
            | Self::NoKey { .. }
            | Self::Key { .. }
            | Self::Mismatch { .. } => "key",
            Self::ClientCa { .. } => "client_ca",
            _ => "certificate",
        }
    }
}

impl Pair {
    /// Reads files, blocking.
    pub(super) fn read(certificate: &Path, key: &Path, provider: &CryptoProvider) -> Result<Self, PairError> {
        let certificates = read_certificates(certificate).map_err(PairError::Certificates)?;
        let chain = read_chain(certificate, &certificates)?;
        let signing = read_key(key, provider)?;
        let fits =
            |one: &CertificateDer<'static>| CertifiedKey::new(vec![one.clone()], Arc::clone(&signing)).keys_match();
        match certificates.iter().position(|one| fits(one).is_ok()) {
            Some(0) => {}
            Some(at) => {
                let (path, key) = (certificate.to_owned(), key.to_owned());
                return Err(PairError::NotFirst { path, key, number: at + 1 });
            }
            None => {
                return Err(match fits(&certificates[0]) {
                    Err(rustls::Error::InvalidCertificate(why)) => {
                        let source = rustls::Error::InvalidCertificate(why);
                        PairError::Certificate { path: certificate.to_owned(), source }
                    }
                    _ => PairError::Mismatch { certificate: certificate.to_owned(), key: key.to_owned() },
                });
            }
        }
        // After the key: a file in reverse order is told by the place of the server's own.
        if let Some(at) = chain.windows(2).position(|two| two[0].issuer != two[1].subject) {
            return Err(PairError::Order { path: certificate.to_owned(), number: at + 2 });
        }
        let certified = Arc::new(CertifiedKey::new(certificates, signing));
        Ok(Self { file: certificate.to_owned(), certified, chain })
    }
}

/// What each certificate of a file says.
pub(super) fn read_chain(path: &Path, certificates: &[CertificateDer<'_>]) -> Result<Vec<Facts>, PairError> {
    let facts = certificates.iter().enumerate();
    facts
        .map(|(at, one)| Facts::of(one).ok_or_else(|| PairError::NotX509 { path: path.to_owned(), number: at + 1 }))
        .collect()
}

fn read_key(path: &Path, provider: &CryptoProvider) -> Result<Arc<dyn SigningKey>, PairError> {
    let read = |source| PairError::ReadKey { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(read)?.is_file() {
        // A pipe would be waited for.
        return Err(read(std::io::Error::other("it is no ordinary file")));
    }
    let mut file = File::open(path).map_err(read)?;
    check_access(path, &file.metadata().map_err(read)?)?;
    let mut text = Vec::new();
    file.by_ref().take(KEY_FILE_SIZE_MAX).read_to_end(&mut text).map_err(read)?;
    if is_encrypted(&text) {
        return Err(PairError::Encrypted { path: path.to_owned() });
    }
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|_| PairError::NoKey { path: path.to_owned() })?;
    let loaded = provider.key_provider.load_private_key(key);
    loaded.map_err(|source| PairError::Key { path: path.to_owned(), source })
}

/// Nobody but its owner has anything to do with a key; one of root's may be lent to a group, as Debian's `ssl-cert` and
/// Kubernetes' `fsGroup` do (PostgreSQL's rule as well).
fn check_access(path: &Path, metadata: &std::fs::Metadata) -> Result<(), PairError> {
    let (owner, mode) = (metadata.uid(), metadata.mode() & 0o7777);
    if owner != 0 && owner != rustix::process::geteuid().as_raw() {
        return Err(PairError::Owner { path: path.to_owned(), owner });
    }
    let lent = if owner == 0 { 0o040 } else { 0 };
    if mode & 0o077 & !lent != 0 {
        return Err(PairError::Exposed { path: path.to_owned(), mode });
    }
    Ok(())
}

fn is_encrypted(text: &[u8]) -> bool {
    let has = |words: &[u8]| text.windows(words.len()).any(|part| part == words);
    has(b"-----BEGIN ENCRYPTED PRIVATE KEY-----") || has(b"Proc-Type: 4,ENCRYPTED")
}
