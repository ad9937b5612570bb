//! (pure) The site as its clients see it: where the proxy is, whom they must trust, which names it takes.

use std::net::IpAddr;

use crate::names::{Origin, Routes};
use crate::oci::RepositoryName;
use crate::tls::ClientAuth;

/// What every generator goes by.
#[derive(Debug)]
pub(super) struct Site {
    /// How clients reach the proxy: `host:port`.
    pub(super) address: String,
    pub(super) https: bool,
    /// PEM blocks of the authority that clients must be told to trust; `None` where they trust it already.
    pub(super) authority: Option<String>,
    /// Whether the server asks clients for a certificate.
    pub(super) client_auth: ClientAuth,
    /// What clients show it.
    pub(super) identity: Option<Identity>,
    /// Who logs in, where the proxy asks for it.
    pub(super) user: Option<String>,
    /// Whether clients may go on to the internet where the proxy has no answer.
    pub(super) fallback: bool,
    /// Hosts of the upstreams, sorted.
    pub(super) hosts: Vec<String>,
    pub(super) routes: Routes,
}

/// A client's certificate and key. The key stays in its file: nothing that is printed can hold it.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    /// PEM blocks.
    pub(super) certificate: String,
    /// Absolute.
    pub(super) certificate_file: String,
    /// Absolute.
    pub(super) key_file: String,
}

/// Docker Hub, as references name it.
pub(super) const HUB: &str = "docker.io";

impl Site {
    /// `https://host:port`.
    pub(super) fn url(&self) -> String {
        format!("{}://{}", if self.https { "https" } else { "http" }, self.address)
    }

    /// Whether only clients on this machine reach it.
    pub(super) fn is_loopback(&self) -> bool {
        is_loopback(&self.address)
    }

    /// The reference by which clients get `repository` of the upstream `host` here; the shortest of them.
    pub(super) fn reference(&self, host: &str, repository: &str) -> Option<String> {
        let wanted = format!("{host}/{repository}");
        let described = self.routes.describe().into_iter();
        let names = described.filter_map(|(pattern, _, to)| match pattern.strip_suffix("**") {
            None => (to == wanted).then_some(pattern),
            Some(prefix) => wanted.strip_prefix(to.strip_suffix("**")?).map(|rest| format!("{prefix}{rest}")),
        });
        let name = names.filter(|name| self.leads_to(name, host, repository)).min_by_key(String::len)?;
        Some(format!("{}/{name}", self.address))
    }

    /// Whether a client that asks for `name`, without a host, gets `repository` of `host`.
    pub(super) fn leads_to(&self, name: &str, host: &str, repository: &str) -> bool {
        let Ok(name) = name.parse::<RepositoryName>() else { return false };
        self.routes.resolve(&name, None).is_ok_and(|target| {
            target.repository.origin == Origin::Upstream(host.into()) && target.repository.name.as_str() == repository
        })
    }

    pub(super) fn has(&self, host: &str) -> bool {
        self.hosts.iter().any(|other| other == host)
    }

    /// ` --plain-http` where the proxy has no TLS, ` --ca-file FILE` where its authority is the site's own, and what the
    /// client shows, from where it is.
    pub(super) fn trust_flag(&self, ca_file: &str) -> String {
        let mut flags = match (self.https, &self.authority) {
            (false, _) => " --plain-http".to_owned(),
            (true, Some(_)) => format!(" --ca-file {ca_file}"),
            (true, None) => String::new(),
        };
        if let Some(Identity { certificate_file, key_file, .. }) = &self.identity {
            flags.push_str(&format!(" --cert-file {certificate_file} --key-file {key_file}"));
        }
        flags
    }

    /// Whether a kind that has no way to show a certificate is shut out, or may be.
    pub(super) fn wants_certificates(&self) -> bool {
        self.client_auth == ClientAuth::Required || self.identity.is_some()
    }
}

/// Whether only clients on this machine reach `address`, a host and perhaps a port.
pub(super) fn is_loopback(address: &str) -> bool {
    let Ok(authority) = address.parse::<http::uri::Authority>() else { return false };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let is_name = host == "localhost" || host.ends_with(".localhost");
    is_name || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}
