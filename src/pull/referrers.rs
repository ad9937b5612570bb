//! What refers to a manifest, in pages: what is kept, and while the gate is open what upstream lists besides.

use std::collections::BTreeSet;

use super::lists::patience;
use super::{Ask, FetchError, Miss, Pull, because, stored};
use crate::names::{Repository, Source};
use crate::oci::{Descriptor, Digest, Reference, Tag};
use crate::store::{REFERRERS_BYTES_MAX, REFERRERS_PAGE_MAX, ReferrersPage};
use crate::upstream::Patience;

/// A page of what refers to a manifest.
pub struct Referrers {
    pub page: ReferrersPage,
    /// What the `Warning` says, if upstream could not be asked.
    pub stale: Option<String>,
}

impl Pull {
    /// What refers to `subject` after `after`, of the given artifact type if one is asked for.
    pub async fn referrers(
        &self,
        ask: &Ask,
        subject: &Digest,
        artifact_type: Option<&str>,
        after: Option<&Digest>,
    ) -> Result<Referrers, Miss> {
        let what = || format!("the list of what refers to {}@{subject}", ask.target.asked);
        let repository = &ask.target.repository;
        let kept = self.0.store.referrers(repository, subject, artifact_type, after).await;
        // A registry that has this endpoint never answers 404 on it, not even where nothing is kept.
        let kept = kept.map_err(|why| stored(what(), why))?;
        let Some(source) = &ask.target.source else { return Ok(Referrers { page: kept, stale: None }) };
        let upstreams = match self.0.gate.refusal(&source.upstream) {
            Some(refusal) => Err(because(&refusal)),
            None => {
                let patience = patience(!kept.descriptors.is_empty());
                let listed = self.upstream_referrers(source, repository, subject, patience).await;
                listed.map_err(|why| why.to_string())
            }
        };
        let mut listed = match upstreams {
            Ok(listed) => listed,
            Err(why) => {
                return Ok(Referrers { page: kept, stale: Some(format!("only what is kept is listed: {why}")) });
            }
        };
        if let Some(artifact_type) = artifact_type {
            listed.retain(|descriptor| descriptor.artifact_type.as_deref() == Some(artifact_type));
        }
        Ok(Referrers { page: joined(kept, listed, after), stale: None })
    }

    pub(super) async fn upstream_referrers(
        &self,
        source: &Source,
        repository: &Repository,
        subject: &Digest,
        patience: Patience,
    ) -> Result<Vec<Descriptor>, FetchError> {
        Ok(self.upstream(source)?.referrers_with(&repository.name, subject, patience).await?)
    }

    /// The references under which cosign keeps what it signs: `sha256-<hex>.sig`, `.att`, `.sbom`.
    pub(super) fn cosign_tags(subject: &Digest) -> impl Iterator<Item = Reference> {
        let stem = format!("{}-{}", subject.algorithm(), subject.hex());
        let tags = ["sig", "att", "sbom"].map(|kind| format!("{stem}.{kind}").parse::<Tag>());
        tags.into_iter().flatten().map(Reference::Tag)
    }
}

/// Joins what upstream lists into a page of what is kept: in their own order if that is all and fits, else by digest.
fn joined(kept: ReferrersPage, listed: Vec<Descriptor>, after: Option<&Digest>) -> ReferrersPage {
    let ReferrersPage { mut descriptors, mut more_after } = kept;
    let mut known: BTreeSet<Digest> = descriptors.iter().map(|kept| kept.digest).collect();
    // What stands behind the last kept one of this page may be kept as well: it comes with a later page.
    let is_here = |digest: &Digest| {
        after.is_none_or(|after| digest > after) && more_after.as_ref().is_none_or(|last| digest <= last)
    };
    descriptors.extend(listed.into_iter().filter(|one| is_here(&one.digest) && known.insert(one.digest)));
    if after.is_none() && more_after.is_none() && fitting(&descriptors) == descriptors.len() {
        return ReferrersPage { descriptors, more_after };
    }
    descriptors.sort_by_key(|descriptor| descriptor.digest);
    let count = fitting(&descriptors);
    if count < descriptors.len() {
        descriptors.truncate(count);
        more_after = descriptors.last().map(|last| last.digest);
    }
    ReferrersPage { descriptors, more_after }
}

/// How many of them one page takes; one at least.
fn fitting(descriptors: &[Descriptor]) -> usize {
    let mut bytes = 0;
    let fits = |descriptor: &&Descriptor| {
        bytes += descriptor.wire_bytes();
        bytes <= REFERRERS_BYTES_MAX
    };
    let count = descriptors.iter().take(REFERRERS_PAGE_MAX).take_while(fits).count();
    count.max(1).min(descriptors.len())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::oci::MediaType;

    fn referrer(number: usize, note_bytes: usize) -> Descriptor {
        Descriptor {
            media_type: MediaType::OCI_MANIFEST.to_owned(),
            digest: Digest::sha256(&number.to_be_bytes()),
            size: 7,
            platform: None,
            artifact_type: None,
            annotations: BTreeMap::from([("note".to_owned(), "x".repeat(note_bytes))]),
            foreign: false,
        }
    }

    /// A page of `kept`, as the store cuts it.
    fn kept_page(kept: &[Descriptor], after: Option<&Digest>) -> ReferrersPage {
        joined(ReferrersPage::default(), kept.to_vec(), after)
    }

    /// The pages, as a client walks them.
    fn walk(kept: &[Descriptor], listed: &[Descriptor]) -> Vec<Vec<Digest>> {
        let (mut pages, mut after) = (Vec::new(), None);
        loop {
            let page = joined(kept_page(kept, after.as_ref()), listed.to_vec(), after.as_ref());
            pages.push(page.descriptors.iter().map(|shown| shown.digest).collect());
            after = page.more_after;
            if after.is_none() {
                return pages;
            }
        }
    }

    #[test]
    fn few_referrers_are_one_page_and_what_is_kept_comes_first() {
        let all: Vec<_> = (0..10).map(|number| referrer(number, 1)).collect();
        let walked = walk(&all[..4], &all[2..]);
        assert_eq!(walked, [all.iter().map(|one| one.digest).collect::<Vec<_>>()]);
        assert_eq!(walk(&[], &[]), [Vec::new()]);
    }

    #[test]
    fn many_or_large_referrers_come_in_pages_each_once() {
        // Invariant 17
        for (count, note_bytes) in [(2_500, 1), (9, 1 << 20), (3, 5 << 20)] {
            let all: Vec<_> = (0..count).map(|number| referrer(number, note_bytes)).collect();
            let mut expected: Vec<_> = all.iter().map(|one| one.digest).collect();
            expected.sort_unstable();
            for (kept, listed) in [(0..count, 0..0), (0..0, 0..count), (0..count * 2 / 3, count / 3..count)] {
                let walked = walk(&all[kept], &all[listed]);
                assert!(walked.len() > 2, "{count} of {note_bytes}: {}", walked.len());
                assert_eq!(walked.concat(), expected, "{count} of {note_bytes}");
            }
        }
    }
}
