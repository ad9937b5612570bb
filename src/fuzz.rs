//! What strangers can send, as functions of any bytes that panic when a promise about them is broken (invariant 16).
//!
//! `fuzz/` feeds them new inputs (`fuzz/README.md`); the test below feeds them `fuzz/corpus/`, what was found before.

use bytes::Bytes;

use crate::oci::{Algorithm, DESCRIPTORS_MAX, Digest, Manifest, MediaType, Platform, Tag};
use crate::{access, config, server, upstream};

/// A promise, under the name of its corpus.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("authorization", server::fuzz::authorization),
    ("challenge", upstream::fuzz::challenge),
    ("digest", digest),
    ("htpasswd", access::fuzz::htpasswd),
    ("index", index),
    ("job", access::fuzz::job),
    ("jwt", access::fuzz::jwt),
    ("link", upstream::fuzz::link),
    ("location", upstream::fuzz::location),
    ("manifest", manifest),
    ("range", server::fuzz::range),
    ("route", server::fuzz::route),
    ("scope", access::fuzz::scope),
    ("settings", config::fuzz::settings),
    ("token_request", server::fuzz::token_request),
];

/// A digest and a tag are written as they are read, and only so: they become paths.
fn digest(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
        assert!(text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b':'));
    }
    if let Ok(tag) = text.parse::<Tag>() {
        assert_eq!(tag.to_string(), text);
        assert!(!text.contains('/') && !text.starts_with('.'), "{text:?}");
    }
}

/// As every media type that a push may give: the digest is of the bytes, and the parts are within their bound.
fn manifest(data: &[u8]) {
    let types = [
        MediaType::OCI_MANIFEST,
        MediaType::OCI_INDEX,
        MediaType::DOCKER_MANIFEST,
        MediaType::DOCKER_LIST,
        MediaType::DOCKER_SCHEMA_1,
        "application/x-any",
    ];
    let sniffed = Manifest::sniff_media_type(data);
    for media_type in types.into_iter().filter_map(MediaType::parse).chain(sniffed) {
        let Ok(manifest) = Manifest::parse(Bytes::copy_from_slice(data), media_type, Algorithm::Sha256) else {
            continue;
        };
        assert_eq!(manifest.digest, Digest::sha256(data));
        assert_eq!(manifest.bytes, data);
        assert!(manifest.parts().count() <= DESCRIPTORS_MAX + 1);
        assert!(manifest.named().is_empty() || manifest.parts().next().is_none());
    }
}

/// What an index says of its manifests, as a referrers list writes it again.
fn index(data: &[u8]) {
    let Some(media_type) = MediaType::parse(MediaType::OCI_INDEX) else { return };
    let Ok(index) = Manifest::parse(Bytes::copy_from_slice(data), media_type, Algorithm::Sha256) else { return };
    for part in index.parts() {
        let written = serde_json::to_value(part).unwrap_or_else(|why| panic!("{part:?}: {why}"));
        assert_eq!(written["digest"], part.digest.to_string());
        let Some(platform) = &part.platform else { continue };
        assert!(platform.serves(platform));
        let text = String::from(platform.clone());
        if let Ok(again) = Platform::try_from(text.clone()) {
            assert_eq!(String::from(again), text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_before_breaks_nothing() {
        // Invariant 16
        for (name, target) in TARGETS {
            let folder = std::path::Path::new("fuzz/corpus").join(name);
            let files: Vec<_> = std::fs::read_dir(&folder).unwrap_or_else(|why| panic!("{folder:?}: {why}")).collect();
            assert!(!files.is_empty(), "{folder:?} is empty");
            for file in files {
                target(&std::fs::read(file.unwrap().path()).unwrap());
            }
            target(b"");
        }
    }
}
