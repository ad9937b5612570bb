//! Referrers in pages: each once, in bounded pages, however many there are and however large.

use sealock::store::{REFERRERS_BYTES_MAX, REFERRERS_PAGE_MAX};

use super::*;

const SBOM: &str = "application/x.sbom";

/// Refers to `subject`, with a note of so many bytes.
fn referrer(subject: &Digest, number: usize, artifact_type: &str, note_bytes: usize) -> Manifest {
    let mut value = image_json(b"{}", &[]);
    value["artifactType"] = json!(artifact_type);
    value["annotations"] = json!({"number": number.to_string(), "note": "x".repeat(note_bytes)});
    value["subject"] = json!({"mediaType": MediaType::OCI_MANIFEST, "digest": subject.to_string(), "size": 1});
    parse(value, MediaType::OCI_MANIFEST)
}

/// The digests of each page, as a client walks them.
async fn walk(site: &Site, here: &Repository, subject: &Digest, artifact_type: Option<&str>) -> Vec<Vec<Digest>> {
    let (mut pages, mut after) = (Vec::new(), None);
    loop {
        let page = site.store.referrers(here, subject, artifact_type, after.as_ref()).await.unwrap();
        let bytes: usize = page.descriptors.iter().map(|one| serde_json::to_vec(one).unwrap().len()).sum();
        assert!(bytes <= REFERRERS_BYTES_MAX || page.descriptors.len() == 1, "{bytes} bytes in one page");
        assert!(page.descriptors.len() <= REFERRERS_PAGE_MAX);
        pages.push(page.descriptors.iter().map(|one| one.digest).collect());
        match page.more_after {
            Some(last) => after = Some(last),
            None => return pages,
        }
    }
}

#[tokio::test]
async fn many_referrers_come_in_pages_each_once_and_by_type_as_well() {
    // Invariant 17
    let (site, here) = (Site::in_memory().await, repository("team/app"));
    let subject = Digest::sha256(b"a subject");
    let kind = |number: usize| if number.is_multiple_of(3) { SBOM } else { "application/x.signature" };
    let all: Vec<Manifest> =
        (0..REFERRERS_PAGE_MAX + 300).map(|number| referrer(&subject, number, kind(number), 1)).collect();
    for some in all.chunks(64) {
        futures_util::future::join_all(some.iter().map(|one| site.keep_manifest(&here, one))).await;
    }
    site.keep_manifest(&here, &referrer(&Digest::sha256(b"another"), 0, SBOM, 1)).await;
    site.keep_manifest(&repository("team/other"), &referrer(&subject, 9_999, SBOM, 1)).await;
    for artifact_type in [None, Some(SBOM), Some("x/y")] {
        let of_type =
            all.iter().enumerate().filter(|(number, _)| artifact_type.is_none_or(|named| named == kind(*number)));
        let mut expected: Vec<Digest> = of_type.map(|(_, one)| one.digest).collect();
        let pages = walk(&site, &here, &subject, artifact_type).await;
        assert_eq!(pages.len(), if artifact_type.is_none() { 2 } else { 1 }, "{artifact_type:?}");
        let mut walked = pages.concat();
        if artifact_type.is_some() {
            walked.sort();
        }
        expected.sort();
        assert_eq!(walked, expected, "{artifact_type:?}");
    }
}

#[tokio::test]
async fn large_referrers_fill_a_page_early_and_the_largest_has_one_of_its_own() {
    // Invariant 17
    let (site, here) = (Site::in_memory().await, repository("team/app"));
    let subject = Digest::sha256(b"a subject");
    let sizes = [1 << 20, 1 << 20, 100, 2 << 20, (4 << 20) - 2_000, 100, 1 << 20, (4 << 20) - 2_000];
    let mut expected = Vec::new();
    for (number, note_bytes) in sizes.into_iter().enumerate() {
        let one = referrer(&subject, number, SBOM, note_bytes);
        site.keep_manifest(&here, &one).await;
        expected.push(one.digest);
    }
    expected.sort();
    for artifact_type in [None, Some(SBOM)] {
        let pages = walk(&site, &here, &subject, artifact_type).await;
        assert!(pages.len() >= 4, "{} pages", pages.len());
        assert_eq!(pages.concat(), expected);
    }
}

#[tokio::test]
async fn few_referrers_are_listed_with_the_newest_first() {
    let (site, here) = (Site::new().await, repository("team/app"));
    let subject = Digest::sha256(b"a subject");
    let mut expected = Vec::new();
    for number in 0..9 {
        let one = referrer(&subject, number, SBOM, 1);
        site.keep_manifest(&here, &one).await;
        expected.insert(0, one.digest);
        site.clock.advance(jiff::SignedDuration::from_secs(1));
    }
    assert_eq!(walk(&site, &here, &subject, None).await, [expected]);
}

#[tokio::test]
async fn a_referrer_that_came_or_went_between_two_pages_changes_nothing_for_the_others() {
    let (site, here) = (Site::in_memory().await, repository("team/app"));
    let subject = Digest::sha256(b"a subject");
    let all: Vec<Manifest> = (0..6).map(|number| referrer(&subject, number, SBOM, 1 << 20)).collect();
    for one in &all {
        site.keep_manifest(&here, one).await;
    }
    let first = site.store.referrers(&here, &subject, None, None).await.unwrap();
    let last = first.more_after.unwrap();
    assert_eq!(first.descriptors.last().unwrap().digest, last);
    assert!(site.store.delete_manifest(&here, &last).await.unwrap());
    let second = site.store.referrers(&here, &subject, None, Some(&last)).await.unwrap();
    let mut expected: Vec<Digest> = all.iter().map(|one| one.digest).filter(|one| *one > last).collect();
    expected.sort();
    let listed: Vec<Digest> = second.descriptors.iter().map(|one| one.digest).collect();
    assert!(!listed.is_empty() && expected.starts_with(&listed));
}
