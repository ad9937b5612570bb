//! `GET /v2/<name>/referrers/<digest>`: an index made here of what refers to the digest, in pages.

use http::{HeaderName, HeaderValue, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use super::warn_if_stale;
use crate::oci::{Descriptor, Digest, MediaType};
use crate::pull::Ask;
use crate::server::face::{Answer, Call};
use crate::server::reply::{self, Wanted};
use crate::server::route::ReferrersQuery;

const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");
/// Most referrers in one reply; `Link` leads on.
const REFERRERS_PAGE_MAX: usize = 1_000;
/// Most bytes of them: clients read no larger index. One that is larger by itself is listed all the same.
const REFERRERS_BYTES_MAX: usize = 3 << 20;

pub(in crate::server) async fn serve(call: &Call<'_>, ask: &Ask, subject: &Digest, query: &ReferrersQuery) -> Answer {
    let artifact_type = query.artifact_type.as_deref();
    let found = call.face.pull.referrers(ask, subject, artifact_type).await;
    let found = found.map_err(|miss| call.missed(&miss, Wanted::Referrers))?;
    let page = page(found.descriptors, query.after.as_ref());
    let index = json!({ "schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": page.shown });
    let mut response = reply::json_reply(StatusCode::OK, &index);
    let headers = response.headers_mut();
    // oras takes the referrers API for missing unless this is exact.
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MediaType::OCI_INDEX));
    if artifact_type.is_some() {
        headers.insert(FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    if let Some(last) = page.more_after {
        let pair = |key, value: Option<&str>| {
            let value = value.map(|value| format!("&{key}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
            value.unwrap_or_default()
        };
        let (filter, namespace) = (pair("artifactType", artifact_type), pair("ns", call.namespace));
        let link =
            format!("</v2/{}/referrers/{subject}?last={last}{filter}{namespace}>; rel=\"next\"", ask.target.asked);
        headers.extend(HeaderValue::try_from(link).ok().map(|link| (header::LINK, link)));
    }
    warn_if_stale(headers, found.stale.as_deref());
    Ok(response)
}

struct ReferrersPage {
    shown: Vec<Descriptor>,
    /// The last one shown, where more follow.
    more_after: Option<Digest>,
}

/// All of them in the order that they came in, if they fit; else those `after` the last page's, by digest, because new
/// ones may come between two pages.
fn page(mut descriptors: Vec<Descriptor>, after: Option<&Digest>) -> ReferrersPage {
    if after.is_none() && fitting(&descriptors) == descriptors.len() {
        return ReferrersPage { shown: descriptors, more_after: None };
    }
    descriptors.sort_by_key(|descriptor| descriptor.digest);
    descriptors.retain(|descriptor| after.is_none_or(|after| descriptor.digest > *after));
    let count = fitting(&descriptors);
    let more = count < descriptors.len();
    descriptors.truncate(count);
    let more_after = descriptors.last().map(|last| last.digest).filter(|_| more);
    ReferrersPage { shown: descriptors, more_after }
}

/// How many of them one reply takes; one at least.
fn fitting(descriptors: &[Descriptor]) -> usize {
    let mut bytes = 0;
    let fits = |descriptor: &&Descriptor| {
        bytes += serde_json::to_vec(descriptor).map_or(0, |text| text.len() + 1);
        bytes <= REFERRERS_BYTES_MAX
    };
    let count = descriptors.iter().take(REFERRERS_PAGE_MAX).take_while(fits).count();
    count.max(1).min(descriptors.len())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

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

    /// The pages, as a client walks them.
    fn walk(all: &[Descriptor]) -> Vec<Vec<Digest>> {
        let (mut pages, mut after) = (Vec::new(), None);
        loop {
            let page = page(all.to_vec(), after.as_ref());
            pages.push(page.shown.iter().map(|shown| shown.digest).collect());
            after = page.more_after;
            if after.is_none() {
                return pages;
            }
        }
    }

    #[test]
    fn few_referrers_are_one_page_in_their_own_order() {
        let all: Vec<_> = (0..10).map(|number| referrer(number, 1)).collect();
        assert_eq!(walk(&all), [all.iter().map(|one| one.digest).collect::<Vec<_>>()]);
        assert_eq!(walk(&[]), [Vec::new()]);
    }

    #[test]
    fn many_or_large_referrers_come_in_pages_each_once() {
        // Invariant 17
        for (count, note_bytes, pages) in [(2_500, 1, 3), (7, 1 << 20, 4), (2, 5 << 20, 2)] {
            let all: Vec<_> = (0..count).map(|number| referrer(number, note_bytes)).collect();
            let walked = walk(&all);
            assert_eq!(walked.len(), pages, "{count} of {note_bytes}");
            let mut expected: Vec<_> = all.iter().map(|one| one.digest).collect();
            expected.sort_unstable();
            assert_eq!(walked.concat(), expected);
        }
    }
}
