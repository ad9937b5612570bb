//! (pure) Origins and where a `Location` or `Link` leads. Credentials belong to an origin: scheme, host and port.

use std::fmt;
use std::net::IpAddr;

use http::Uri;

/// Scheme, host and port.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Origin {
    https: bool,
    /// Lower case, IPv6 in brackets; `example.com.` is another host than `example.com`.
    host: String,
    port: u16,
}

impl Origin {
    /// Of an absolute `http` or `https` URL without user information.
    pub fn of(url: &Uri) -> Option<Self> {
        let https = match url.scheme_str()? {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let authority = url.authority()?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return None;
        }
        // `port_u16` is also `None` for a port that is no number; such a URL leads nowhere.
        let port = match authority.port_u16() {
            Some(port) => port,
            None if authority.as_str().ends_with(']') || !after_host(authority.as_str()).contains(':') => {
                if https {
                    443
                } else {
                    80
                }
            }
            None => return None,
        };
        Some(Self { https, host: authority.host().to_ascii_lowercase(), port })
    }

    /// As written in the settings: `https://registry.gitlab.com`, with nothing after the port.
    pub fn parse(text: &str) -> Option<Self> {
        let url: Uri = text.parse().ok()?;
        let bare = url.path_and_query().is_none_or(|rest| rest.as_str() == "/");
        if !bare || text.contains(['#', '?']) {
            return None;
        }
        Self::of(&url)
    }

    pub fn is_https(&self) -> bool {
        self.https
    }

    pub fn host(&self) -> &str {
        &self.host
    }

    /// An address or name that only means something inside: a redirect from outside has no business there.
    pub fn is_inside(&self) -> bool {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        match bare.parse() {
            Ok(IpAddr::V4(v4)) => {
                v4.is_loopback() || v4.is_private() || v4.is_link_local() || v4.is_unspecified() || v4.is_broadcast()
            }
            Ok(IpAddr::V6(v6)) => match v6.to_ipv4_mapped() {
                Some(v4) => Self { host: v4.to_string(), ..self.clone() }.is_inside(),
                None => v6.is_loopback() || v6.is_unspecified() || v6.is_unique_local() || v6.is_unicast_link_local(),
            },
            Err(_) => {
                let name = bare.trim_end_matches('.');
                name == "localhost" || name.ends_with(".localhost")
            }
        }
    }

    pub fn is_loopback(&self) -> bool {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        bare == "localhost" || bare.parse().is_ok_and(|address: IpAddr| address.is_loopback())
    }

    /// The absolute URL of `path` there.
    pub fn at(&self, path_and_query: &str) -> Option<Uri> {
        format!("{self}{path_and_query}").parse().ok()
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, usual) = if self.https { ("https", 443) } else { ("http", 80) };
        write!(f, "{scheme}://{}", self.host)?;
        if self.port == usual { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn after_host(authority: &str) -> &str {
    authority.rsplit_once(']').map_or(authority, |(_, rest)| rest)
}

/// Why a redirect to `to` is not followed: out of https, or from outside to an address inside that is not `allowed`.
pub(super) fn check_hop(home: &Origin, from_https: bool, to: &Origin, allowed: &[Origin]) -> Result<(), String> {
    if from_https && !to.https {
        return Err(format!("it redirects from https to `{to}`"));
    }
    if to.is_inside() && !home.is_inside() && to.host != home.host && !allowed.contains(to) {
        return Err(format!("it redirects to `{to}`, an address inside; if it is right, add it to `redirect_origins`"));
    }
    Ok(())
}

/// The URL that `location` means when `base` answered it (RFC 3986, 5.2); always absolute.
pub(super) fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next().unwrap_or_default();
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    if has_scheme(location) {
        return location.parse().ok().filter(|url: &Uri| url.scheme().is_some() && url.authority().is_some());
    }
    if location.starts_with("//") {
        return format!("{scheme}:{location}").parse().ok();
    }
    let path = match location.chars().next() {
        None => base.path_and_query()?.to_string(),
        Some('/') => location.to_owned(),
        Some('?') => format!("{}{location}", base.path()),
        Some(_) => format!("{}/{location}", base.path().rsplit_once('/').map_or("", |(folder, _)| folder)),
    };
    format!("{scheme}://{authority}{path}").parse().ok()
}

fn has_scheme(location: &str) -> bool {
    let scheme = location.split(['/', '?']).next().unwrap_or_default();
    scheme.contains(':') && location.starts_with(|c: char| c.is_ascii_alphabetic())
}

/// The target of `rel="next"` in `Link` headers (RFC 8288, 3).
pub(super) fn next_page<'a>(values: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    values.into_iter().find_map(|value| {
        let mut rest = value;
        while let Some((target, after)) = rest.split_once('<').and_then(|(_, link)| link.split_once('>')) {
            let (parameters, others) = after.split_at(end_of_link(after));
            if parameters.split(';').filter_map(|parameter| parameter.split_once('=')).any(is_next) {
                return Some(target);
            }
            rest = others;
        }
        None
    })
}

/// Whether it is `rel=next`, or a list of relations with `next` among them.
fn is_next((key, relations): (&str, &str)) -> bool {
    let mut relations = relations.trim().trim_matches('"').split_ascii_whitespace();
    key.trim().eq_ignore_ascii_case("rel") && relations.any(|relation| relation.eq_ignore_ascii_case("next"))
}

/// Where the parameters of one link end: at a comma that is not quoted.
fn end_of_link(parameters: &str) -> usize {
    let (mut quoted, mut escaped) = (false, false);
    let comma = parameters.char_indices().find(|(_, letter)| {
        let plain = !std::mem::take(&mut escaped);
        match letter {
            '\\' if quoted => escaped = plain,
            '"' if plain => quoted = !quoted,
            _ => {}
        }
        *letter == ',' && !quoted
    });
    comma.map_or(parameters.len(), |(at, _)| at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        let same =
            [("https://a.b", "https://A.b:443"), ("http://a", "http://a:80/"), ("http://[::1]", "http://[::1]:80")];
        for (left, right) in same {
            assert_eq!(Origin::parse(left).unwrap(), Origin::parse(right).unwrap());
        }
        let other = ["http://a.b", "https://a.b:444", "https://x.a.b", "https://a.b.", "https://a.bc"];
        for text in other {
            assert_ne!(Origin::parse("https://a.b").unwrap(), Origin::parse(text).unwrap(), "{text}");
        }
    }

    #[test]
    fn what_is_not_an_origin_is_refused() {
        for text in [
            "",
            "a.b",
            "ftp://a",
            "https://u:p@a",
            "https://a/v2",
            "https://a?x",
            "https://a:x",
            "https://",
            "https://a#b",
        ] {
            assert_eq!(Origin::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_location_is_resolved_as_the_rfc_says() {
        let base: Uri = "https://a.b:1/v2/x/blobs/1?q".parse().unwrap();
        let cases = [
            ("https://c/d?e#f", "https://c/d?e"),
            ("//c/d", "https://c/d"),
            ("/d?e", "https://a.b:1/d?e"),
            ("?e", "https://a.b:1/v2/x/blobs/1?e"),
            ("2?last=a:b", "https://a.b:1/v2/x/blobs/2?last=a:b"),
            ("", "https://a.b:1/v2/x/blobs/1?q"),
        ];
        for (location, expected) in cases {
            assert_eq!(resolve(&base, location).unwrap().to_string(), expected, "{location}");
        }
        for location in ["https://", "http:///x", "javascript:x", "https://a b"] {
            let origin = resolve(&base, location).as_ref().and_then(Origin::of);
            assert_eq!(origin, None, "{location}");
        }
    }

    #[test]
    fn inside_addresses_are_known_in_every_spelling() {
        let inside = [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "0.0.0.0",
            "localhost",
            "x.localhost",
            "[::1]",
            "[fd00::1]",
            "[fe80::1]",
            "[::ffff:10.0.0.1]",
        ];
        for host in inside {
            assert!(Origin::parse(&format!("http://{host}:8")).unwrap().is_inside(), "{host}");
        }
        for host in ["8.8.8.8", "registry.gitlab.com", "[2001:db8::1]", "localhost.example.com"] {
            assert!(!Origin::parse(&format!("http://{host}")).unwrap().is_inside(), "{host}");
        }
    }

    #[test]
    fn a_hop_neither_leaves_https_nor_leads_inside() {
        let origin = |text: &str| Origin::parse(text).unwrap();
        let outside = origin("https://registry.gitlab.com");
        let hop =
            |home: &Origin, to: &str| check_hop(home, home.https, &origin(to), &[origin("https://10.0.0.1:9000")]);
        assert!(hop(&outside, "https://cdn.example.com").is_ok());
        assert!(hop(&outside, "https://10.0.0.1:9000").is_ok());
        for to in ["http://registry.gitlab.com", "https://10.0.0.1", "https://169.254.169.254", "https://localhost"] {
            assert!(hop(&outside, to).is_err(), "{to}");
        }
        assert!(hop(&origin("http://127.0.0.1:5000"), "http://127.0.0.1:5001").is_ok());
    }

    #[test]
    fn the_next_page_is_found() {
        let cases = [
            (r#"</v2/a/tags/list?last=b&n=2>; rel="next""#, Some("/v2/a/tags/list?last=b&n=2")),
            ("<x>;rel=next", Some("x")),
            (r#"<x>; rel="prev""#, None),
            ("x; rel=next", None),
            ("<x", None),
            ("", None),
        ];
        for (value, expected) in cases {
            assert_eq!(next_page([value]), expected, "{value}");
        }
        assert_eq!(next_page(["<p>; rel=prev", "<n>; rel=next"]), Some("n"));
        assert_eq!(next_page(["<p>; rel=\"prev\"; title=\"a, <b>\", <n>; rel=\"last next\""]), Some("n"));
    }

    proptest! {
        #[test]
        fn what_resolves_stays_at_its_origin_unless_it_names_another(location in "\\PC{0,60}") {
            let base: Uri = "https://a.b/v2/".parse().unwrap();
            let named = location.contains("//") || location.contains(':');
            if let Some(url) = resolve(&base, &location) && !named {
                prop_assert_eq!(Origin::of(&url), Origin::of(&base));
            }
        }
    }
}
