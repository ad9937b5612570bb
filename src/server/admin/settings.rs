//! `[admin]` of the settings: who may give orders besides root and the user that runs the server, and where.

use std::net::SocketAddr;

use serde::Deserialize;

use super::peer::group_number;
use crate::server::settings::addresses;

/// `[admin]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdminSettings {
    /// A group of `/etc/group`, or its number, whose members may give orders by the socket.
    pub group: Option<String>,
    /// Addresses where orders are taken from those who log in. They speak TLS if `[tls]` has a certificate.
    #[serde(deserialize_with = "addresses")]
    pub listen: Vec<SocketAddr>,
    /// Who may read `/metrics` there and nothing else, as in a rule's `to`.
    pub metrics_to: Vec<String>,
}

impl AdminSettings {
    /// Refuses addresses where logins would pass others in the clear; what to write instead.
    pub fn check_listen(&self, is_tls: bool) -> Result<(), String> {
        self.exposed(is_tls).map_or(Ok(()), |address| Err(format!("{}; {EXPOSED_HINT}", exposed(address))))
    }

    /// What does not fit this machine.
    pub fn wrong_here(&self) -> Option<String> {
        let group = self.group.as_deref().filter(|group| group_number(group).is_none())?;
        Some(format!("there is no group `{group}`; write one of /etc/group, or its number"))
    }

    /// Such an address.
    pub(super) fn exposed(&self, is_tls: bool) -> Option<SocketAddr> {
        let is_open = |address: &&SocketAddr| !is_tls && !address.ip().to_canonical().is_loopback();
        self.listen.iter().find(is_open).copied()
    }
}

/// What is wrong with such an address, and what to do.
pub(super) fn exposed(address: SocketAddr) -> String {
    format!("`{address}` would take logins without encryption")
}

pub(super) const EXPOSED_HINT: &str =
    "name a certificate in `tls.certificate` (`sealock certs init` makes one), or take a loopback address";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_tls_only_loopback_takes_logins() {
        // Invariant 12
        let at = |text: &str| AdminSettings { listen: vec![text.parse().unwrap()], ..AdminSettings::default() };
        for (address, good) in [
            ("127.0.0.1:5001", true),
            ("127.8.8.8:5001", true),
            ("[::1]:5001", true),
            ("[::ffff:127.0.0.1]:5001", true),
            ("0.0.0.0:5001", false),
            ("[::]:5001", false),
            ("10.0.0.5:5001", false),
            ("[::ffff:10.0.0.5]:5001", false),
        ] {
            assert_eq!(at(address).check_listen(false).is_ok(), good, "{address}");
            assert!(at(address).check_listen(true).is_ok(), "{address}");
        }
    }
}
