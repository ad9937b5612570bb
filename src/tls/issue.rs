//! An authority and a server's certificate of our own, in a folder of four files.
//!
//! ```text
//! ca.crt      the authority: clients trust it          10 years
//! ca.key      its key: needed to renew, nowhere else   0600, may be kept offline
//! server.crt  shown to clients, issued by ca.crt       825 days
//! server.key  its key                                  0600
//! ```
//! Everybody may look into the folder (0755): clients on this machine, and `sealock client-config`, read the authority.
//! ECDSA over P-256 throughout: every client of the last fifteen years takes it. The server's certificate lasts as long
//! as the strictest of them allows one of a private authority (825 days: Apple's limit), because who has to renew by hand
//! renews late. The authority has no name constraints: a renewal may add names, and not every client reads them.
//! Invariant kept here: a file appears whole or not at all, and an old one is only replaced when that was asked for.

use std::fs::{self, File, TryLockError};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::client::{TlsError, read_certificates};
use super::facts::Facts;
use crate::files::{self, Mode};

/// The four files.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

/// What a certificate is for: a host, perhaps `*.` and a domain, or an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    Host(String),
    Address(IpAddr),
}

/// Text that is no host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("an address goes to --ip")]
    Address,
    #[error("write a host name alone, such as registry.site.internal or *.site.internal")]
    Host,
}

/// Why no certificate was made. What was there is as it was, except as [`IssueError::Write`] says.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    #[error("`{}` is there already", path.display())]
    Exists { path: PathBuf },
    #[error("somebody else works on the certificates in `{}`", path.display())]
    Busy { path: PathBuf },
    #[error("cannot write `{}`", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Read(#[from] TlsError),
    #[error("the authority's key `{}` is not there", path.display())]
    NoKey { path: PathBuf },
    #[error("cannot read the authority's key `{}`", path.display())]
    ReadKey {
        path: PathBuf,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("`{}` is not the key of `{}`", key.display(), certificate.display())]
    WrongKey { key: PathBuf, certificate: PathBuf },
    #[error("`{}` is no authority, or has expired", path.display())]
    NoAuthority { path: PathBuf },
    #[error("the certificate in `{}` has no names to take over", path.display())]
    NoNames { path: PathBuf },
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
}

const DAY: SignedDuration = SignedDuration::from_hours(24);
const AUTHORITY_DAYS: i32 = 3653;
const SERVER_DAYS: i32 = 825;
/// A key: to be read by its owner, and by the group that somebody has let read the one before.
const KEY: Mode = Mode { new: 0o600, kept: 0o640 };
const CERTIFICATE: Mode = Mode { new: 0o644, kept: 0o664 };

impl IssueError {
    /// What the reader can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Exists { .. } => {
                "`sealock certs renew` makes a new server's certificate of the same authority; `--force` begins anew, \
                 and then every client must be given the new authority"
                    .to_owned()
            }
            Self::NoKey { .. } | Self::ReadKey { .. } => {
                "bring it back for the renewal, or name it where it is: `--ca-key /media/…/ca.key`; if it is lost, \
                 `sealock certs init --force` makes a new authority"
                    .to_owned()
            }
            Self::WrongKey { .. } => "name the key that was made with this authority".to_owned(),
            Self::NoAuthority { .. } => {
                "`sealock certs init --force` makes a new one, which every client must be given".to_owned()
            }
            Self::NoNames { .. } => "name them: `--host registry.site.internal --ip 10.0.0.5`".to_owned(),
            Self::Busy { path } => format!(
                "try again when the other `sealock certs` is done; if there is none, `fuser -v {}` tells who holds it",
                path.display()
            ),
            Self::Read(TlsError::Read { .. }) => {
                "`sealock certs init` makes an authority; `--folder` names the folder that it is in".to_owned()
            }
            Self::Read(why) => return why.hint(),
            Self::Write { .. } | Self::Make(_) => return None,
        })
    }
}

impl Folder {
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn ca_certificate(&self) -> PathBuf {
        self.0.join("ca.crt")
    }

    pub fn ca_key(&self) -> PathBuf {
        self.0.join("ca.key")
    }

    pub fn certificate(&self) -> PathBuf {
        self.0.join("server.crt")
    }

    pub fn key(&self) -> PathBuf {
        self.0.join("server.key")
    }
}

impl FromStr for Name {
    type Err = InvalidName;

    /// A host; an address is one too many.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.parse::<IpAddr>().is_ok() {
            return Err(InvalidName::Address);
        }
        let host = text.to_ascii_lowercase();
        let labels = host.strip_prefix("*.").unwrap_or(&host);
        let is_label = |label: &str| {
            let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'_';
            (1..=63).contains(&label.len())
                && label.bytes().all(inner)
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        // OpenSSL and rustls take no wildcard below a single label.
        let wide = labels.len() < host.len() && !labels.contains('.');
        let good = labels.len() <= 253 && labels.split('.').all(is_label) && !wide;
        if good { Ok(Self::Host(host)) } else { Err(InvalidName::Host) }
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Host(host) => f.write_str(host),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// A new authority, and a server's certificate for `names`. Blocking.
pub fn init(folder: &Folder, names: &[Name], force: bool, now: Timestamp) -> Result<(), IssueError> {
    let files = [folder.ca_key(), folder.ca_certificate(), folder.key(), folder.certificate()];
    make_folder(folder.path())?;
    let _alone = alone(folder)?;
    if let Some(path) = files.iter().find(|path| !force && path.symlink_metadata().is_ok()) {
        return Err(IssueError::Exists { path: path.clone() });
    }
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    let of = names.first().map_or_else(String::new, |name| format!(" of {name}"));
    params.distinguished_name = called(&format!("sealock authority{of}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let end = now + DAY * AUTHORITY_DAYS;
    set_validity(&mut params, now - DAY, end);
    params.serial_number = Some(serial());
    let authority = params.self_signed(&key)?.pem();
    let (server, server_key) = issue(names, &Issuer::from_params(&params, &key), now, end)?;
    write(&files[0], &key.serialize_pem(), KEY)?;
    write(&files[1], &authority, CERTIFICATE)?;
    write(&files[2], &server_key, KEY)?;
    write(&files[3], &server, CERTIFICATE)
}

/// A new server's certificate and key of the same authority, for `names`, or for those of the one that is there. Blocking.
pub fn renew(folder: &Folder, names: &[Name], ca_key: Option<&Path>, now: Timestamp) -> Result<(), IssueError> {
    // Where there is no folder, reading says so.
    let _alone = folder.path().is_dir().then(|| alone(folder)).transpose()?;
    let path = folder.ca_certificate();
    let authority = read_certificates(&path)?.swap_remove(0);
    let facts = Facts::of(&authority).filter(|facts| facts.is_ca && facts.not_after > now);
    let facts = facts.ok_or_else(|| IssueError::NoAuthority { path: path.clone() })?;
    let names = if names.is_empty() { names_of(&folder.certificate())? } else { names.to_vec() };
    let key_path = ca_key.map_or_else(|| folder.ca_key(), Path::to_owned);
    let key = read_ca_key(&key_path)?;
    let its_own = X509Certificate::from_der(&authority)
        .is_ok_and(|(_, parsed)| parsed.public_key().subject_public_key.data.as_ref() == key.public_key_raw());
    if !its_own {
        return Err(IssueError::WrongKey { key: key_path, certificate: path });
    }
    let (server, server_key) = issue(&names, &Issuer::from_ca_cert_der(&authority, &key)?, now, facts.not_after)?;
    // A server that looks between the two sees a pair that does not fit, and waits for the next look.
    write(&folder.key(), &server_key, KEY)?;
    write(&folder.certificate(), &server, CERTIFICATE)
}

fn issue(
    names: &[Name],
    issuer: &Issuer<'_, &KeyPair>,
    now: Timestamp,
    end: Timestamp,
) -> Result<(String, String), IssueError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    // The names count, not the subject; and a common name has 64 letters at most.
    let shown = names.first().map(ToString::to_string).filter(|name| name.len() <= 64);
    params.distinguished_name = called(shown.as_deref().unwrap_or("sealock"));
    for name in names {
        params.subject_alt_names.push(match name {
            Name::Host(host) => SanType::DnsName(host.as_str().try_into()?),
            Name::Address(address) => SanType::IpAddress(*address),
        });
    }
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.is_ca = IsCa::ExplicitNoCa;
    // From yesterday on: clocks without a network differ.
    let begin = now - DAY;
    set_validity(&mut params, begin, (begin + DAY * SERVER_DAYS).min(end));
    params.serial_number = Some(serial());
    Ok((params.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}

fn called(name: &str) -> DistinguishedName {
    let mut called = DistinguishedName::new();
    called.push(DnType::CommonName, name);
    called
}

/// 127 random bits: RFC 5280 4.1.2.2 wants it positive.
fn serial() -> SerialNumber {
    let mut bytes = fastrand::u128(..).to_be_bytes();
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

fn set_validity(params: &mut CertificateParams, begin: Timestamp, end: Timestamp) {
    let of = |moment: Timestamp| {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(moment.as_second().try_into().unwrap_or(0))
    };
    (params.not_before, params.not_after) = (of(begin), of(end));
}

fn names_of(path: &Path) -> Result<Vec<Name>, IssueError> {
    let facts = read_certificates(path)?.first().and_then(Facts::of);
    let name = |text: &String| match text.parse::<IpAddr>() {
        Ok(address) => Name::Address(address),
        Err(_) => Name::Host(text.clone()),
    };
    let names: Vec<_> = facts.iter().flat_map(|facts| facts.names.iter().map(name)).collect();
    if names.is_empty() { Err(IssueError::NoNames { path: path.to_owned() }) } else { Ok(names) }
}

fn read_ca_key(path: &Path) -> Result<KeyPair, IssueError> {
    let text = fs::read_to_string(path).map_err(|why| match why.kind() {
        io::ErrorKind::NotFound => IssueError::NoKey { path: path.to_owned() },
        _ => IssueError::ReadKey { path: path.to_owned(), source: why.into() },
    })?;
    KeyPair::from_pem(&text).map_err(|why| IssueError::ReadKey { path: path.to_owned(), source: why.into() })
}

fn make_folder(path: &Path) -> Result<(), IssueError> {
    if path.is_dir() {
        return Ok(());
    }
    // Whatever the umask says, as for the files.
    let made = fs::create_dir_all(path).and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)));
    made.map_err(|source| IssueError::Write { path: path.to_owned(), source })
}

/// Two that write at once would leave the key of one with the certificate of the other. Held until it is dropped; not
/// waited for, because everybody who may look into the folder may hold it.
fn alone(folder: &Folder) -> Result<File, IssueError> {
    let failed = |source| IssueError::Write { path: folder.path().to_owned(), source };
    let opened = File::open(folder.path()).map_err(failed)?;
    match opened.try_lock() {
        Ok(()) => Ok(opened),
        Err(TryLockError::WouldBlock) => Err(IssueError::Busy { path: folder.path().to_owned() }),
        Err(TryLockError::Error(why)) => Err(failed(why)),
    }
}

/// All of it or nothing, also after a power loss.
fn write(path: &Path, text: &str, mode: Mode) -> Result<(), IssueError> {
    let written = files::replace(path, text.as_bytes(), mode);
    written.map_err(|source| IssueError::Write { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_host_and_nothing_else() {
        for good in ["registry.site.internal", "REGISTRY", "*.site.internal", "a-b.c_d.e"] {
            assert_eq!(good.parse(), Ok(Name::Host(good.to_ascii_lowercase())));
        }
        for address in ["10.0.0.5", "::1"] {
            assert_eq!(address.parse::<Name>(), Err(InvalidName::Address));
        }
        for bad in [
            "",
            "a..b",
            "https://a",
            "a:5000",
            "a/b",
            "-a",
            "a-",
            "*",
            "*.",
            "*.site",
            "a.*",
            "a b",
            "ä",
            &"a".repeat(64),
        ] {
            assert_eq!(bad.parse::<Name>(), Err(InvalidName::Host), "{bad}");
        }
    }
}
