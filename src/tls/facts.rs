//! (pure) What a certificate says of itself.

use std::net::IpAddr;

use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What a certificate says, in words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub subject: String,
    pub issuer: String,
    /// Hosts and addresses that it is for.
    pub names: Vec<String>,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    /// SHA-256 of all of it, in hexadecimal.
    pub fingerprint: String,
    pub is_ca: bool,
}

impl Facts {
    /// `None`: it is no X.509 certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let validity = parsed.validity();
        Some(Self {
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            names: names(&parsed),
            not_before: Timestamp::from_second(validity.not_before.timestamp()).ok()?,
            not_after: Timestamp::from_second(validity.not_after.timestamp()).ok()?,
            fingerprint: hex::encode(Sha256::digest(certificate)),
            is_ca: parsed.is_ca(),
        })
    }

    /// Whether `host` is one of its names, or falls under a wildcard of it (RFC 9525 6.3: one label).
    pub fn is_for(&self, host: &str) -> bool {
        self.is_exactly_for(host) || self.names.iter().any(|name| is_under(host, name))
    }

    pub(super) fn is_exactly_for(&self, host: &str) -> bool {
        self.names.iter().any(|name| name.eq_ignore_ascii_case(host))
    }

    /// Whole days until it ends; below 0 once it has.
    pub fn days_left(&self, now: Timestamp) -> i64 {
        (self.not_after.as_second() - now.as_second()).div_euclid(86_400)
    }
}

fn names(parsed: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = parsed.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(host) => Some((*host).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            16 => <[u8; 16]>::try_from(*bytes).ok().map(|bytes| IpAddr::from(bytes).to_string()),
            _ => None,
        },
        _ => None,
    };
    extension.value.general_names.iter().filter_map(name).collect()
}

fn is_under(host: &str, name: &str) -> bool {
    let (Some(suffix), Some((label, rest))) = (name.strip_prefix("*."), host.split_once('.')) else { return false };
    !label.is_empty() && rest.eq_ignore_ascii_case(suffix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(names: &[&str]) -> Facts {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        Facts::of(made.der()).unwrap()
    }

    #[test]
    fn names_are_hosts_and_addresses_and_a_wildcard_is_one_label() {
        let facts = facts(&["registry.site", "*.apps.site", "10.0.0.5", "fd00::5"]);
        assert_eq!(facts.names, ["registry.site", "*.apps.site", "10.0.0.5", "fd00::5"]);
        for (host, fits) in [
            ("registry.site", true),
            ("REGISTRY.site", true),
            ("a.apps.site", true),
            ("a.b.apps.site", false),
            ("apps.site", false),
            (".apps.site", false),
            ("10.0.0.5", true),
            ("site", false),
        ] {
            assert_eq!(facts.is_for(host), fits, "{host}");
        }
    }

    #[test]
    fn what_is_no_certificate_has_no_facts() {
        assert_eq!(Facts::of(&CertificateDer::from(b"nonsense".to_vec())), None);
    }
}
