//! (pure) Which proxy a request goes through: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Uri};
use percent_encoding::percent_decode_str;

use super::dial::literal;
use crate::secret::Secret;

/// Most entries of NO_PROXY.
pub const NO_PROXY_ENTRIES_MAX: usize = 1024;

/// The proxies of this machine. Targets on loopback never go through one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProxySettings {
    https: Option<Arc<Proxy>>,
    http: Option<Arc<Proxy>>,
    except: Vec<Exception>,
}

/// One proxy. Prints without its credentials.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    pub(super) tls: bool,
    pub(super) host: String,
    pub(super) port: u16,
    /// `Basic …`, sent to the proxy alone.
    pub(super) authorization: Option<Secret>,
}

/// A variable that cannot be understood. Never shows the value: it may hold a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the variable `{variable}` {why}")]
pub struct ProxyError {
    pub variable: String,
    pub why: &'static str,
}

impl ProxyError {
    /// What the reader can do about it.
    pub fn hint(&self) -> &'static str {
        "write `http://proxy.example:3128` or `http://user:password@proxy.example:3128`, special characters as `%40`"
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Exception {
    hosts: Hosts,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Hosts {
    Any,
    Network {
        address: IpAddr,
        prefix: u8,
    },
    /// `example.com`: it and what is below it.
    Domain(String),
    /// `.example.com`: only what is below it.
    Below(String),
}

impl ProxySettings {
    /// From the variables HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY; as with curl, the lower-case name wins.
    /// `None` when no proxy is set.
    pub fn from_env() -> Result<Option<Self>, ProxyError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// As [`ProxySettings::from_env`], with the variables from elsewhere.
    pub fn from_variables(read: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, ProxyError> {
        let find = |name: &str| {
            [name.to_ascii_lowercase(), name.to_owned()]
                .into_iter()
                .find_map(|name| read(&name).filter(|value| !value.trim().is_empty()).map(|value| (name, value)))
        };
        let proxy = |name| find(name).map(|(name, value)| Proxy::parse(&name, value.trim()).map(Arc::new)).transpose();
        let all = proxy("ALL_PROXY")?;
        let https = proxy("HTTPS_PROXY")?.or_else(|| all.clone());
        let http = proxy("HTTP_PROXY")?.or(all);
        if https.is_none() && http.is_none() {
            return Ok(None);
        }
        let except = match find("NO_PROXY") {
            Some((name, value)) => exceptions(&name, &value)?,
            None => Vec::new(),
        };
        Ok(Some(Self { https, http, except }))
    }

    /// The proxy for a target, if it goes through one.
    pub(super) fn proxy_for(&self, tls: bool, host: &str, port: u16) -> Option<&Arc<Proxy>> {
        let proxy = if tls { self.https.as_ref() } else { self.http.as_ref() }?;
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let address = literal(&host);
        let local = host == "localhost" || host.ends_with(".localhost") || address.is_some_and(|a| a.is_loopback());
        let excepted = self.except.iter().any(|e| e.port.is_none_or(|p| p == port) && e.hosts.contains(&host, address));
        (!local && !excepted).then_some(proxy)
    }
}

impl Proxy {
    fn parse(variable: &str, text: &str) -> Result<Self, ProxyError> {
        let wrong = |why| ProxyError { variable: variable.to_owned(), why };
        let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let uri: Uri = url.parse().map_err(|_| wrong("is not a URL"))?;
        let tls = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(wrong("names a kind of proxy that sealock does not speak; only http and https are")),
        };
        let authority = uri.authority().ok_or_else(|| wrong("names no host"))?;
        let host = authority.host();
        if host.is_empty() {
            return Err(wrong("names no host"));
        }
        let authorization = match authority.as_str().rsplit_once('@') {
            Some((user_info, _)) => Some(basic(user_info).ok_or_else(|| wrong("has credentials that are not UTF-8"))?),
            None => None,
        };
        let port = authority.port_u16().unwrap_or(if tls { 443 } else { 80 });
        Ok(Self { tls, host: host.to_owned(), port, authorization })
    }

    /// `host:port`.
    pub(super) fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_str(self.authorization.as_ref()?.expose()).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.address())
    }
}

impl Hosts {
    fn contains(&self, host: &str, address: Option<IpAddr>) -> bool {
        match self {
            Self::Any => true,
            Self::Network { address: network, prefix } => address.is_some_and(|a| same_network(a, *network, *prefix)),
            Self::Domain(domain) => host == domain || is_below(host, domain),
            Self::Below(domain) => is_below(host, domain),
        }
    }
}

fn basic(user_info: &str) -> Option<Secret> {
    let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
    let user = percent_decode_str(user).decode_utf8().ok()?;
    let password = percent_decode_str(password).decode_utf8().ok()?;
    Some(Secret::new(format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))))
}

fn exceptions(variable: &str, text: &str) -> Result<Vec<Exception>, ProxyError> {
    let entries = text.split([',', ' ', '\t']).map(str::trim).filter(|entry| !entry.is_empty());
    let except: Vec<_> = entries.map(exception).take(NO_PROXY_ENTRIES_MAX + 1).collect();
    if except.len() > NO_PROXY_ENTRIES_MAX {
        return Err(ProxyError { variable: variable.to_owned(), why: "has more than 1024 entries" });
    }
    Ok(except)
}

/// `*`, `10.0.0.0/8`, `10.1.2.3`, `[::1]:443`, `example.com`, `.example.com`, `*.example.com`, each but networks with `:port`.
fn exception(entry: &str) -> Exception {
    let entry = entry.to_ascii_lowercase();
    if entry == "*" {
        return Exception { hosts: Hosts::Any, port: None };
    }
    if let Some(hosts) = network(&entry) {
        return Exception { hosts, port: None };
    }
    let (host, port) = match entry.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => (host, port.parse().ok()),
        _ => (entry.as_str(), None),
    };
    let hosts = match (literal(host), host.strip_prefix("*.").or_else(|| host.strip_prefix('.'))) {
        (Some(address), _) => Hosts::Network { address, prefix: bits(address).1 },
        (None, Some(domain)) => Hosts::Below(domain.trim_end_matches('.').to_owned()),
        (None, None) => Hosts::Domain(host.trim_end_matches('.').to_owned()),
    };
    Exception { hosts, port }
}

fn network(entry: &str) -> Option<Hosts> {
    let Some((address, prefix)) = entry.split_once('/') else {
        let address = literal(entry)?;
        return Some(Hosts::Network { address, prefix: bits(address).1 });
    };
    let (address, prefix) = (literal(address)?, prefix.parse().ok()?);
    (prefix <= bits(address).1).then_some(Hosts::Network { address, prefix })
}

fn same_network(address: IpAddr, network: IpAddr, prefix: u8) -> bool {
    let ((address, width), (network, of)) = (bits(address.to_canonical()), bits(network.to_canonical()));
    // Shifting by the whole width is no shift in Rust, hence `checked_shr`.
    let shift = u32::from(width.saturating_sub(prefix));
    width == of && address.checked_shr(shift).unwrap_or(0) == network.checked_shr(shift).unwrap_or(0)
}

fn bits(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(v4) => (u128::from(u32::from(v4)), 32),
        IpAddr::V6(v6) => (u128::from(v6), 128),
    }
}

fn is_below(host: &str, domain: &str) -> bool {
    host.strip_suffix(domain).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(variables: &[(&str, &str)]) -> Result<Option<ProxySettings>, ProxyError> {
        ProxySettings::from_variables(|name| {
            variables.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn no_proxy_is_read_as_other_programs_read_it() {
        let cases: [(&str, &str, u16, bool); 27] = [
            ("", "example.com", 443, true),
            ("*", "example.com", 443, false),
            ("example.com", "example.com", 443, false),
            ("example.com", "EXAMPLE.com.", 443, false),
            ("example.com", "a.b.example.com", 443, false),
            ("example.com", "badexample.com", 443, true),
            (".example.com", "example.com", 443, true),
            (".example.com", "a.example.com", 443, false),
            ("*.example.com", "a.example.com", 443, false),
            ("*.example.com", "example.com", 443, true),
            ("example.com:8443", "example.com", 443, true),
            ("example.com:8443", "example.com", 8443, false),
            ("other.org, example.com", "example.com", 443, false),
            ("other.org example.com", "example.com", 443, false),
            ("10.0.0.0/8", "10.200.3.4", 443, false),
            ("10.0.0.0/8", "11.0.0.1", 443, true),
            ("10.0.0.0/8", "ten.example.com", 443, true),
            ("0.0.0.0/0", "192.0.2.1", 443, false),
            ("192.0.2.7", "192.0.2.7", 443, false),
            ("192.0.2.7", "192.0.2.8", 443, true),
            ("192.0.2.7:5000", "192.0.2.7", 443, true),
            ("192.0.2.7:5000", "192.0.2.7", 5000, false),
            ("2001:db8::/32", "[2001:db8::1]", 443, false),
            ("[2001:db8::1]:5000", "[2001:db8::1]", 5000, false),
            ("", "127.0.0.5", 443, false),
            ("", "localhost", 5000, false),
            ("", "[::1]", 5000, false),
        ];
        for (no_proxy, host, port, proxied) in cases {
            let found = settings(&[("HTTPS_PROXY", "http://proxy:3128"), ("NO_PROXY", no_proxy)]).unwrap().unwrap();
            assert_eq!(found.proxy_for(true, host, port).is_some(), proxied, "NO_PROXY={no_proxy:?} {host}:{port}");
        }
    }

    #[test]
    fn each_scheme_has_its_variable_and_all_proxy_stands_in() {
        let shown = |variables: &[(&str, &str)], tls| {
            let found = settings(variables).unwrap();
            found.and_then(|f| f.proxy_for(tls, "example.com", 443).map(|p| format!("{p:?}")))
        };
        assert_eq!(shown(&[], true), None);
        assert_eq!(shown(&[("HTTPS_PROXY", "")], true), None);
        assert_eq!(shown(&[("HTTPS_PROXY", "p:1")], true).unwrap(), "http://p:1");
        assert_eq!(shown(&[("HTTPS_PROXY", "p:1")], false), None);
        assert_eq!(shown(&[("HTTPS_PROXY", "p:1"), ("https_proxy", "q:2")], true).unwrap(), "http://q:2");
        assert_eq!(shown(&[("all_proxy", "https://p")], false).unwrap(), "https://p:443");
        assert_eq!(shown(&[("http_proxy", "http://[::1]:8/"), ("all_proxy", "p:1")], false).unwrap(), "http://[::1]:8");
    }

    // Invariant 12
    #[test]
    fn a_proxys_password_is_sent_but_never_shown() {
        let found = settings(&[("https_proxy", "http://me:p%40ss@proxy:3128")]).unwrap().unwrap();
        let proxy = found.proxy_for(true, "example.com", 443).unwrap();
        assert_eq!(proxy.authorization.as_ref().unwrap().expose(), format!("Basic {}", STANDARD.encode("me:p@ss")));
        assert!(!format!("{found:?} {:?}", proxy.authorization()).contains("p@ss"));
        assert!(!format!("{found:?}").contains("cEBzcw"));
        for wrong in
            ["http://me:se cret@proxy:1", "socks5://me:secret@proxy:1", "http://me:secret@:1", "http://%ff:x@p:1"]
        {
            let error = settings(&[("https_proxy", wrong)]).unwrap_err();
            assert!(error.to_string().starts_with("the variable `https_proxy` "), "{error}");
            assert!(!format!("{error} {error:?}").contains("cret"), "{error:?}");
        }
    }

    // Invariant 17
    #[test]
    fn no_proxy_has_a_longest_list() {
        let list = |entries: usize| vec!["a.example"; entries].join(",");
        let with = |entries| settings(&[("https_proxy", "p:1"), ("no_proxy", list(entries).as_str())]);
        assert!(with(NO_PROXY_ENTRIES_MAX).is_ok());
        assert!(with(NO_PROXY_ENTRIES_MAX + 1).is_err());
    }
}
