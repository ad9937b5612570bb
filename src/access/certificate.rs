//! (pure) The names in a client's certificate, which TLS has checked.

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Most names of one certificate that are looked at, and longest.
const NAMES_MAX: usize = 32;
const NAME_BYTES_MAX: usize = 300;

/// Common name first, then DNS names, mail addresses and URIs. Empty where it has none of them.
pub fn names(der: &[u8]) -> Vec<String> {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return Vec::new() };
    let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let others = certificate.subject_alternative_name().ok().flatten();
    let others = others.iter().flat_map(|found| &found.value.general_names).filter_map(|name| match name {
        GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => Some(*name),
        _ => None,
    });
    let fits = |name: &&str| !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.contains(char::is_control);
    common.chain(others).filter(fits).take(NAMES_MAX).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    #[test]
    fn the_common_name_comes_first() {
        let mut params = CertificateParams::new(vec!["runner-7.site.internal".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "runner-7");
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        assert_eq!(names(certificate.der()), ["runner-7", "runner-7.site.internal"]);
    }

    #[test]
    fn rubbish_has_no_names() {
        // Invariant 16
        assert!(names(b"").is_empty() && names(&[0x30; 500]).is_empty());
    }
}
