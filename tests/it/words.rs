//! Names, tags, digests, sizes: what the types take and what they refuse.

use proptest::prelude::*;
use sealock::oci::{Algorithm, Digest, InvalidManifest, Manifest, MediaType, RepositoryName, Tag};
use sealock::size::{Size, Span};

fn media_type(text: &str) -> MediaType {
    MediaType::parse(text).unwrap()
}

#[test]
fn repository_names_follow_the_specification() {
    // Invariant 16
    let longest = format!("{}/{}", "a".repeat(127), "b".repeat(127));
    let valid = ["a", "a/b", "0", "a.b", "a_b", "a__b", "a-b", "a---b", "docker.io/library/alpine", &longest];
    for name in valid {
        assert_eq!(name.parse::<RepositoryName>().map(|name| name.to_string()).as_deref(), Ok(name));
    }
    let too_long = format!("{longest}c");
    let invalid = [
        "", "/", "a/", "/a", "a//b", "A", "a/B", "a..b", "..", ".", "a/../b", "a/.", ".a", "a.", "a___b", "_a", "a_",
        "-a", "a-", "a._b", "a-_b", "%2e%2e", "a%2fb", "a b", "a:b", "a@b", "ä", "a/é", "a\0b", "a\nb", "日本",
        &too_long,
    ];
    for name in invalid {
        assert!(name.parse::<RepositoryName>().is_err(), "{name:?}");
    }
    let enormous = "a".repeat(10 << 20);
    assert!(enormous.parse::<RepositoryName>().unwrap_err().to_string().len() < 200, "the message stays short");
}

#[test]
fn tags_follow_the_specification() {
    // Invariant 16
    let longest = "t".repeat(128);
    for tag in ["6", "latest", "_x", "1.2.3-rc.1", "A", "sha256-abc.sig", &longest] {
        assert_eq!(tag.parse::<Tag>().map(|tag| tag.to_string()).as_deref(), Ok(tag));
    }
    let too_long = "t".repeat(129);
    for tag in ["", ".a", "-a", "a/b", "a:b", "a b", "ä", "%41", "a\0", &too_long] {
        assert!(tag.parse::<Tag>().is_err(), "{tag:?}");
    }
}

#[test]
fn digests_are_lower_case_and_of_the_right_length() {
    // Invariant 16
    let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(Digest::sha256(b"").to_string(), empty);
    assert_eq!(empty.parse(), Ok(Digest::sha256(b"")));
    let long = Digest::of(Algorithm::Sha512, b"").to_string();
    assert_eq!(long.parse(), Ok(Digest::of(Algorithm::Sha512, b"")));
    let upper = empty.to_uppercase();
    let odd = format!("{empty}0");
    let traversal = format!("sha256:../{}", &empty[10..]);
    for digest in
        ["", "sha256", "sha256:", "sha256:abc", "md5:d41d8cd98f00b204e9800998ecf8427e", &upper, &odd, &traversal]
    {
        assert!(digest.parse::<Digest>().is_err(), "{digest:?}");
    }
}

proptest! {
    #[test]
    fn a_name_that_parses_is_unchanged_and_harmless(text in "\\PC{0,300}") {
        if let Ok(name) = text.parse::<RepositoryName>() {
            prop_assert_eq!(name.as_str(), &text);
            prop_assert!(text.len() <= 255 && !text.contains("..") && !text.contains("//"));
            prop_assert!(text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-/".contains(&b)));
        }
    }

    #[test]
    fn names_made_by_the_grammar_parse(
        name in "[a-z0-9]{1,9}((\\.|_|__|-{1,3})[a-z0-9]{1,9}){0,3}(/[a-z0-9]{1,9}((\\.|_|__|-{1,3})[a-z0-9]{1,9}){0,3}){0,3}"
    ) {
        prop_assert!(name.len() > 255 || name.parse::<RepositoryName>().is_ok());
    }

    #[test]
    fn tags_made_by_the_grammar_parse(tag in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}") {
        prop_assert!(tag.parse::<Tag>().is_ok());
    }

    #[test]
    fn a_digest_survives_its_text(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(algorithm, &bytes);
            prop_assert_eq!(digest.to_string().parse(), Ok(digest));
        }
    }

    #[test]
    fn rubbish_is_no_manifest_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = Manifest::sniff_media_type(&bytes);
        prop_assert!(Manifest::parse(bytes.into(), media_type(MediaType::OCI_MANIFEST), Algorithm::Sha256).is_err());
    }
}

#[test]
fn a_manifest_that_could_be_two_things_is_refused() {
    // Invariant 16
    let config = format!(r#"{{"mediaType":"a/b","digest":"{}","size":2}}"#, Digest::sha256(b"{}"));
    let parse = |text: String, named: &str| Manifest::parse(text.into(), media_type(named), Algorithm::Sha256);
    let both = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[],"manifests":[]}}"#);
    assert!(matches!(parse(both.clone(), MediaType::OCI_MANIFEST), Err(InvalidManifest::Ambiguous)));
    assert!(matches!(parse(both, MediaType::OCI_INDEX), Err(InvalidManifest::Ambiguous)));
    let index = MediaType::OCI_INDEX;
    let other = format!(r#"{{"schemaVersion":2,"mediaType":"{index}","config":{config},"layers":[]}}"#);
    assert!(matches!(parse(other, MediaType::OCI_MANIFEST), Err(InvalidManifest::MediaTypeDiffers { .. })));
    let twice = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[],"layers":[]}}"#);
    assert!(matches!(parse(twice, MediaType::OCI_MANIFEST), Err(InvalidManifest::Json(_))));
    let bad_digest =
        r#"{"schemaVersion":2,"config":{"mediaType":"a/b","digest":"sha256:../../x","size":2},"layers":[]}"#;
    assert!(parse(bad_digest.to_owned(), MediaType::OCI_MANIFEST).is_err());
    let good = format!(r#"{{"schemaVersion":2,"config":{config},"layers":[]}}"#);
    assert_eq!(parse(good.clone(), MediaType::OCI_MANIFEST).unwrap().digest, Digest::sha256(good.as_bytes()));
}

#[test]
fn a_manifest_has_a_largest_size_and_a_largest_number_of_parts() {
    // Invariant 17
    let large = vec![b' '; (sealock::oci::MANIFEST_SIZE_MAX + 1) as usize];
    let parsed = Manifest::parse(large.into(), media_type(MediaType::OCI_MANIFEST), Algorithm::Sha256);
    assert!(matches!(parsed, Err(InvalidManifest::TooLarge(_))));
    let part = format!(r#"{{"mediaType":"a/b","digest":"{}","size":2}}"#, Digest::sha256(b"{}"));
    let parts = vec![part.as_str(); sealock::oci::DESCRIPTORS_MAX + 1].join(",");
    let many = format!(r#"{{"schemaVersion":2,"manifests":[{parts}]}}"#);
    let parsed = Manifest::parse(many.into(), media_type(MediaType::OCI_INDEX), Algorithm::Sha256);
    assert!(matches!(parsed, Err(InvalidManifest::TooManyDescriptors)));
}

#[test]
fn sizes_and_durations_need_their_units() {
    // Invariant 20
    let sizes = [("20GiB", 20 << 30), ("512MiB", 512 << 20), ("1 kB", 1000), ("7B", 7)];
    for (text, expected) in sizes {
        assert_eq!(text.parse(), Ok(Size(expected)));
    }
    let spans = [("15m", 900_000), ("2h", 7_200_000), ("1h30m", 5_400_000), ("250ms", 250), ("1d 2h", 93_600_000)];
    for (text, ms) in spans {
        assert_eq!(text.parse::<Span>().map(|span| span.0.as_millis()), Ok(ms));
    }
    for text in ["", "5", "-1s", "1.5h", "s", "1x", "1e9s", "99999999999999999999s", "5 GB 3"] {
        assert!(text.parse::<Size>().is_err() && text.parse::<Span>().is_err(), "{text:?}");
    }
    assert_eq!(Size(1536 << 20).to_string(), "1.5 GiB");
    assert_eq!("26h5m3s".parse::<Span>().unwrap().to_string(), "1d 2h");
}
