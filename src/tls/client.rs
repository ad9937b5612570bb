//! How an upstream's certificate is judged: PEM files -> the client's rustls settings.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject};
use rustls::{ClientConfig, RootCertStore};
use tracing::warn;

/// Largest file of certificate authorities that is read, in bytes. Debian's whole bundle has 220 KiB.
pub const CA_FILE_SIZE_MAX: u64 = 4 << 20;

/// Why a file of certificate authorities is of no use.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read the certificates in `{path}`")]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("`{path}` has {size} bytes; a file of certificates has at most {CA_FILE_SIZE_MAX}")]
    TooLarge { path: PathBuf, size: u64 },
    #[error("`{path}` is not PEM: {why}")]
    Pem { path: PathBuf, why: String },
    #[error("`{path}` holds no certificate")]
    Empty { path: PathBuf },
    #[error("certificate {number} in `{path}` cannot be used")]
    Certificate {
        path: PathBuf,
        number: usize,
        #[source]
        source: rustls::Error,
    },
    #[error("cannot set up TLS")]
    Setup(#[source] rustls::Error),
}

impl TlsError {
    /// What the reader can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { .. } => Some("check that the file exists and that sealock may read it".to_owned()),
            Self::TooLarge { .. } | Self::Pem { .. } | Self::Empty { .. } | Self::Certificate { .. } => {
                Some("it must hold the authority as `-----BEGIN CERTIFICATE-----` blocks".to_owned())
            }
            Self::Setup(_) => None,
        }
    }
}

/// TLS 1.2 and 1.3 with HTTP/2 before HTTP/1.1, trusting the system's authorities and those in the PEM file `ca_file`.
/// Reads files, never the network.
pub fn client_config(ca_file: Option<&Path>) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(system_roots().iter().cloned());
    if let Some(path) = ca_file {
        for (index, certificate) in read_certificates(path)?.into_iter().enumerate() {
            roots.add(certificate).map_err(|source| TlsError::Certificate {
                path: path.to_owned(),
                number: index + 1,
                source,
            })?;
        }
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(TlsError::Setup)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Every certificate of a PEM file; at least one.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = |source| TlsError::Read { path: path.to_owned(), source };
    let found = std::fs::metadata(path).map_err(read)?;
    if !found.is_file() {
        // A pipe would be waited for.
        return Err(read(std::io::Error::other("it is no ordinary file")));
    }
    let size = found.len();
    if size > CA_FILE_SIZE_MAX {
        return Err(TlsError::TooLarge { path: path.to_owned(), size });
    }
    let text = std::fs::read(path).map_err(read)?;
    let certificates = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|why| TlsError::Pem { path: path.to_owned(), why: in_words(&why) })?;
    if certificates.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned() });
    }
    Ok(certificates)
}

/// Its own words show lines of the file as lists of numbers.
fn in_words(why: &pem::Error) -> String {
    match why {
        pem::Error::MissingSectionEnd { .. } => "a block has no end".to_owned(),
        pem::Error::IllegalSectionStart { .. } => "a block has no proper beginning".to_owned(),
        why => why.to_string(),
    }
}

/// The PEM block of a certificate.
pub fn to_pem(certificate: &CertificateDer<'_>) -> String {
    let encoded = STANDARD.encode(certificate);
    let lines: Vec<_> = encoded.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// The system's authorities, read once. None at all is no error here: a site may trust nothing but its own.
fn system_roots() -> &'static [CertificateDer<'static>] {
    static ROOTS: OnceLock<Vec<CertificateDer<'static>>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            warn!(%error, "some of the system's certificate authorities cannot be read: {error}");
        }
        if found.certs.is_empty() {
            warn!("the system has no certificate authorities; only upstreams with a `ca_file` can be reached by https");
        }
        found.certs
    })
}
