//! What upstreams send, for `fuzz/`.

use http::Uri;

use super::address::{self, Origin};
use super::challenge::{self, Challenge};

/// `WWW-Authenticate`, a value a line: a Bearer challenge names a realm.
pub(crate) fn challenge(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    for one in challenge::parse(text.split('\n')) {
        if let Challenge::Bearer(bearer) = one {
            assert!(!bearer.realm.is_empty());
        }
    }
}

/// `Location`: it stays at the origin that sent it unless it names another.
pub(crate) fn location(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let base = Uri::from_static("https://registry.example:5000/v2/a/blobs/b?c=d");
    let Some(url) = address::resolve(&base, text) else { return };
    assert!(url.scheme().is_some() && url.authority().is_some(), "{url} of {text:?}");
    let names_another = text.starts_with("//") || text.split(['/', '?', '#']).next().is_some_and(|s| s.contains(':'));
    if !names_another {
        assert!(Origin::of(&url) == Origin::of(&base), "{text:?} leads to {url}");
    }
}

/// `Link`, a value a line: the next page is what stands between its brackets.
pub(crate) fn link(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(target) = address::next_page(text.split('\n')) {
        assert!(text.contains(&format!("<{target}>")), "{target:?} of {text:?}");
        assert!(!target.contains('>'));
    }
}
