//! What the server speaks and shows: asked of the one that runs, else read from the settings.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::super::block_on;
use super::{Failure, wrong};
use crate::config::Settings;
use crate::files::folder_of;
use crate::server::admin::{AdminClient, AdminError, StatusReport};
use crate::tls::{self, Facts, Folder, Role, TlsError};

/// The server, as far as it can be known from here.
pub(super) struct Served {
    ports: Vec<Port>,
    /// What clients are shown, where it is known.
    certificate: Option<PathBuf>,
    /// Why one that may run did not tell.
    silent: Option<AdminError>,
}

/// Where it listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Port {
    address: SocketAddr,
    pub(super) https: bool,
    /// Whether it was said so: by the server that runs, or by `listen_plain`. A `listen` without a certificate may yet get
    /// one on the command line.
    pub(super) is_said: bool,
}

impl Served {
    pub(super) fn ask(settings: &Settings, client: &AdminClient) -> Result<Self, Failure> {
        match block_on(async { Ok(client.status().await) })? {
            Ok(report) => Ok(Self::running(&report)),
            // Nobody is there: the settings say what will be.
            Err(AdminError::NotServed { .. }) => Ok(Self::by(settings)),
            // Somebody is, but not for us, who may still have the settings.
            Err(why @ (AdminError::Open { .. } | AdminError::Refused { .. })) => {
                Ok(Self { silent: Some(why), ..Self::by(settings) })
            }
            Err(why) => Err(why.into()),
        }
    }

    fn running(report: &StatusReport) -> Self {
        let port = |origin: &String| {
            let (scheme, address) = origin.split_once("://")?;
            Some(Port { address: address.parse().ok()?, https: scheme == "https", is_said: true })
        };
        let shown = report.certificates.iter().find(|one| one.role == Role::Server);
        Self {
            ports: report.origins.iter().filter_map(port).collect(),
            certificate: shown.map(|one| one.file.clone()),
            silent: None,
        }
    }

    pub(super) fn by(settings: &Settings) -> Self {
        let https = settings.tls.certificate.is_some();
        let listen = settings.server.listen.iter().map(|address| Port { address: *address, https, is_said: https });
        let plain = settings.server.listen_plain.iter();
        let plain = plain.map(|address| Port { address: *address, https: false, is_said: true });
        let certificate = settings.tls.certificate.clone().filter(|_| !settings.server.listen.is_empty());
        Self { ports: listen.chain(plain).collect(), certificate, silent: None }
    }

    /// A server that did not tell what it speaks.
    pub(super) fn silent(&self) -> Option<&AdminError> {
        self.silent.as_ref()
    }

    /// The port that `address` leads to. Where none has its number, something stands in between: then the safest.
    pub(super) fn port(&self, address: &str) -> Option<Port> {
        let number = address.parse::<http::uri::Authority>().ok()?.port_u16();
        let best =
            |ports: &mut dyn Iterator<Item = &Port>| ports.max_by_key(|port| (port.https, port.is_said)).copied();
        best(&mut self.ports.iter().filter(|port| Some(port.address.port()) == number))
            .or_else(|| best(&mut self.ports.iter()))
    }

    /// How clients reach it: the first port, by the name that its certificate is for where it has one.
    pub(super) fn address(&self) -> Result<String, Failure> {
        let hint = "name how clients reach it: --address registry.site.internal:5000";
        let Some(first) = self.ports.first().filter(|first| first.address.port() != 0) else {
            return Err(wrong("the settings name no address that clients could use".to_owned(), hint));
        };
        if let Some(host) = self.host().map_err(|why| unread(&why))? {
            return Ok(format!("{host}:{}", first.address.port()));
        }
        match first.address.ip().is_unspecified() {
            true => {
                let message =
                    format!("the server listens on {}, which is no address that clients can use", first.address);
                Err(wrong(message, hint))
            }
            false => Ok(first.address.to_string()),
        }
    }

    /// The first host that its certificate is for.
    fn host(&self) -> Result<Option<String>, TlsError> {
        let Some(path) = &self.certificate else { return Ok(None) };
        let facts = tls::read_certificates(path)?.first().and_then(Facts::of);
        let is_host = |name: &String| !name.starts_with("*.") && name.parse::<std::net::IpAddr>().is_err();
        Ok(facts.and_then(|facts| facts.names.into_iter().find(is_host)))
    }

    /// The authority that `sealock certs init` puts beside the certificate; `None`: there is none, and clients trust the
    /// certificate without it. What cannot be read is not taken for what is not there.
    pub(super) fn authority(&self) -> Result<Option<PathBuf>, Failure> {
        let Some(certificate) = &self.certificate else { return Ok(None) };
        tls::read_certificates(certificate).map_err(|why| unread(&why))?;
        let path = Folder::new(folder_of(certificate)).ca_certificate();
        match path.try_exists() {
            Ok(there) => Ok(there.then_some(path)),
            Err(source) => Err(unread(&TlsError::Read { path, source })),
        }
    }

    /// Whether clients are shown the certificate `facts`, as far as that can be told.
    pub(super) fn may_show(&self, facts: &Facts) -> bool {
        let shown = self.certificate.as_deref().and_then(|path| tls::read_certificates(path).ok());
        let shown = shown.and_then(|shown| shown.first().and_then(Facts::of));
        shown.is_none_or(|shown| shown.fingerprint == facts.fingerprint)
    }
}

fn unread(why: &TlsError) -> Failure {
    let hint = "run this as the user that runs the server; or name what clients need: --address HOST:PORT, and a copy of \
                the authority, --ca-file FILE";
    Failure::new(why, Some(hint.to_owned()))
}

/// The certificates of a file and nothing else of it: a key that stands there, too, goes nowhere.
pub(super) fn certificates_of(path: &Path) -> Result<String, Failure> {
    let certificates = tls::read_certificates(path).map_err(|why| Failure::new(&why, why.hint()))?;
    Ok(certificates.iter().map(tls::to_pem).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_is_that_of_the_port_that_the_address_leads_to() {
        let port = |text: &str, https, is_said| Port { address: text.parse().unwrap(), https, is_said };
        let (tls, plain) = (port("0.0.0.0:5000", true, true), port("0.0.0.0:5080", false, true));
        let served = Served { ports: vec![plain, tls], certificate: None, silent: None };
        assert_eq!(served.port("registry.site:5080"), Some(plain));
        for address in ["registry.site:5000", "registry.site", "registry.site:443", "[fd00::1]:443"] {
            assert_eq!(served.port(address), Some(tls), "{address}");
        }
        assert_eq!(Served { ports: Vec::new(), certificate: None, silent: None }.port("a:1"), None);
    }
}
