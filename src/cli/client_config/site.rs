//! (pure) The site as its clients see it: where the proxy is, whom they must trust, which names it takes.

use crate::names::{Origin, Routes};
use crate::oci::RepositoryName;

/// What every generator goes by.
#[derive(Debug)]
pub(super) struct Site {
    /// How clients reach the proxy: `host:port`.
    pub(super) address: String,
    pub(super) https: bool,
    /// PEM blocks of the authority that clients must be told to trust; `None` where they trust it already.
    pub(super) authority: Option<String>,
    /// Who logs in, where the proxy asks for it.
    pub(super) user: Option<String>,
    /// Whether clients may go on to the internet where the proxy has no answer.
    pub(super) fallback: bool,
    /// Hosts of the upstreams, sorted.
    pub(super) hosts: Vec<String>,
    pub(super) routes: Routes,
}

/// Docker Hub, as references name it.
pub(super) const HUB: &str = "docker.io";

impl Site {
    /// `https://host:port`.
    pub(super) fn url(&self) -> String {
        format!("{}://{}", if self.https { "https" } else { "http" }, self.address)
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

    /// ` --plain-http` where the proxy has no TLS, ` --ca-file FILE` where its authority is the site's own.
    pub(super) fn trust_flag(&self, ca_file: &str) -> String {
        match (self.https, &self.authority) {
            (false, _) => " --plain-http".to_owned(),
            (true, Some(_)) => format!(" --ca-file {ca_file}"),
            (true, None) => String::new(),
        }
    }
}
