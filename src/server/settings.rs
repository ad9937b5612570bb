//! `[server]` of the settings: where it listens, where its data is, and what one client may cost.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::de;
use serde::{Deserialize, Deserializer};

use crate::size::{Size, Span};

/// `[server]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerSettings {
    /// Addresses for clients: `address:port`. `[::]:5000` serves IPv4 as well; port 0 takes any free one. They speak TLS
    /// if `[tls]` has a certificate.
    #[serde(deserialize_with = "addresses")]
    pub listen: Vec<SocketAddr>,
    /// Addresses that speak plain HTTP in any case.
    #[serde(deserialize_with = "addresses")]
    pub listen_plain: Vec<SocketAddr>,
    /// The data folder: blobs, catalog, gate state, audit file, admin socket.
    pub data: PathBuf,
    /// Connections at one time; more wait in the kernel's queue until one ends.
    pub connections_max: usize,
    /// Connections at one time from one address; more are turned away with 429. Behind one address may stand many
    /// clients (NAT, a load balancer).
    pub connections_per_address_max: usize,
    /// Longest wait for a whole request head, from its first byte (or from the connection's start) on; for a TLS handshake;
    /// and for the form of a token request.
    pub header_timeout: Span,
    /// Largest request head: request line and headers together.
    pub header_size_max: Size,
    /// How long a connection may stay without a request.
    pub idle_timeout: Span,
    /// Longest time in which a client takes not one byte of a response, or sends not one of a request's body. The whole
    /// may take as long as it likes, if a body brings 1 KiB/s on average over this time; a manifest must come within it.
    pub stall_timeout: Span,
    /// Requests at one time on one HTTP/2 connection.
    pub streams_max: u32,
    /// How long running responses may take to end when the server stops; then they are cut.
    pub shutdown_timeout: Span,
}

/// A value of `[server]` that cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("[server] {key} is {value}; {advice}")]
pub struct InvalidServerSetting {
    pub key: &'static str,
    pub value: String,
    pub advice: &'static str,
}

impl Default for ServerSettings {
    fn default() -> Self {
        let seconds = |count| Span(Duration::from_secs(count));
        Self {
            listen: vec![SocketAddr::from(([127, 0, 0, 1], 5000))],
            listen_plain: Vec::new(),
            data: PathBuf::from("data"),
            connections_max: 4096,
            connections_per_address_max: 1024,
            header_timeout: seconds(10),
            header_size_max: Size(64 << 10),
            idle_timeout: seconds(40),
            stall_timeout: seconds(60),
            streams_max: 128,
            shutdown_timeout: seconds(30),
        }
    }
}

impl ServerSettings {
    /// What an operator should know who lets others than this machine in without TLS, unless `listen_plain` says so.
    pub fn warning(&self, is_tls: bool) -> Option<String> {
        let open = self.listen.iter().find(|address| !is_tls && !address.ip().is_loopback())?;
        Some(format!(
            "clients reach {open} without encryption: anyone on the way can read and change what they are sent; make \
             certificates with `sealock certs init`, or write the address into `listen_plain` if that is meant"
        ))
    }

    /// Refuses values that would stop the server from working at all.
    pub fn check(&self) -> Result<(), InvalidServerSetting> {
        let wrong = |key, value: String, advice| Err(InvalidServerSetting { key, value, advice });
        if self.listen.is_empty() && self.listen_plain.is_empty() {
            return wrong("listen", "empty".to_owned(), "name an address, such as \"127.0.0.1:5000\"");
        }
        let mut seen = HashSet::new();
        let all = self.listen.iter().map(|address| ("listen", address));
        let all = all.chain(self.listen_plain.iter().map(|address| ("listen_plain", address)));
        for (key, address) in all.filter(|(_, address)| address.port() != 0) {
            if !seen.insert(address) {
                return wrong(key, address.to_string(), "name each address once");
            }
        }
        if self.connections_max == 0 {
            return wrong("connections_max", "0".to_owned(), "write 1 or more");
        }
        if self.connections_per_address_max == 0 {
            return wrong("connections_per_address_max", "0".to_owned(), "write 1 or more");
        }
        if self.streams_max == 0 {
            return wrong("streams_max", "0".to_owned(), "write 1 or more");
        }
        if !(HEADER_SIZE_LEAST..=HEADER_SIZE_MOST).contains(&self.header_size_max.0) {
            return wrong("header_size_max", self.header_size_max.to_string(), "write 8KiB to 1MiB");
        }
        let spans = [
            ("header_timeout", self.header_timeout),
            ("idle_timeout", self.idle_timeout),
            ("stall_timeout", self.stall_timeout),
        ];
        match spans.iter().find(|(_, span)| span.0.is_zero()) {
            Some((key, span)) => wrong(key, span.to_string(), "write a duration above 0, such as \"10s\""),
            None => Ok(()),
        }
    }
}

/// An address to listen on, as settings and `--listen` write it.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let scheme = if text.contains("://") { ", without a scheme: `[tls]` says whether it speaks TLS" } else { "" };
        format!(
            "`{}` is not an address; write an IP address and a port, such as 127.0.0.1:5000, or 0.0.0.0:5000 for every \
             address of this machine{scheme}",
            text.escape_debug()
        )
    })
}

/// A list of addresses to listen on.
pub(super) fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<SocketAddr>, D::Error> {
    struct Address(SocketAddr);
    impl<'de> Deserialize<'de> for Address {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let text = String::deserialize(deserializer)?;
            listen_address(&text).map(Self).map_err(de::Error::custom)
        }
    }
    Ok(Vec::<Address>::deserialize(deserializer)?.into_iter().map(|Address(address)| address).collect())
}

/// hyper reads heads in pieces of 8 KiB.
const HEADER_SIZE_LEAST: u64 = 8 << 10;
const HEADER_SIZE_MOST: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_pass_their_own_check() {
        assert_eq!(ServerSettings::default().check(), Ok(()));
    }

    #[test]
    fn values_that_cannot_work_name_their_key() {
        let zero = ServerSettings { idle_timeout: Span(Duration::ZERO), ..ServerSettings::default() };
        assert_eq!(zero.check().unwrap_err().key, "idle_timeout");
        let tiny = ServerSettings { header_size_max: Size(100), ..ServerSettings::default() };
        assert_eq!(tiny.check().unwrap_err().key, "header_size_max");
        let deaf = ServerSettings { listen: vec![], ..ServerSettings::default() };
        assert!(deaf.check().unwrap_err().to_string().contains("name an address"));
        let at = vec!["127.0.0.1:5000".parse().unwrap()];
        let twice = ServerSettings { listen: at.clone(), listen_plain: at, ..ServerSettings::default() };
        assert_eq!(twice.check().unwrap_err().key, "listen_plain");
    }

    #[test]
    fn plain_http_for_others_is_warned_of_unless_it_is_meant() {
        let at = |text: &str| vec![text.parse().unwrap()];
        let open = ServerSettings { listen: at("0.0.0.0:5000"), ..ServerSettings::default() };
        assert!(open.warning(false).is_some() && open.warning(true).is_none());
        let meant = ServerSettings { listen: vec![], listen_plain: at("0.0.0.0:5000"), ..ServerSettings::default() };
        assert!(meant.warning(false).is_none() && meant.check().is_ok());
        assert!(ServerSettings::default().warning(false).is_none());
    }

    #[test]
    fn unknown_keys_are_errors() {
        // Invariant 20
        let wrong = toml::from_str::<ServerSettings>("liste = [\"127.0.0.1:1\"]").unwrap_err();
        assert!(wrong.to_string().contains("unknown field `liste`"), "{wrong}");
        let right: ServerSettings = toml::from_str("listen = [\"127.0.0.1:0\"]\nheader_timeout = \"3s\"").unwrap();
        assert_eq!(right.header_timeout, Span(Duration::from_secs(3)));
    }
}
