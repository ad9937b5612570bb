//! `GET /v2/<name>/tags/list`, in pages.

use http::{HeaderValue, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use super::warn_if_stale;
use crate::oci::{RepositoryName, Tag};
use crate::pull::Ask;
use crate::server::face::{Answer, Call};
use crate::server::reply::{self, Wanted};
use crate::server::route::Page;

/// Most tags in one reply, also for clients that name no number or a larger one; `Link` leads on.
const TAGS_PAGE_MAX: usize = 10_000;

pub(in crate::server) async fn serve(call: &Call<'_>, ask: &Ask, page: &Page) -> Answer {
    let limit = page.limit.map_or(TAGS_PAGE_MAX, |n| usize::try_from(n).unwrap_or(TAGS_PAGE_MAX).min(TAGS_PAGE_MAX));
    // `n=0` is an empty page, but only of a repository that there is.
    let found = call.face.pull.tags(ask, page.after.as_deref(), limit.max(1)).await;
    let mut found = found.map_err(|miss| call.missed(&miss, Wanted::Tags))?;
    found.tags.truncate(limit);
    let names: Vec<&str> = found.tags.iter().map(Tag::as_str).collect();
    let mut response = reply::json_reply(StatusCode::OK, &json!({ "name": ask.target.asked.as_str(), "tags": names }));
    let headers = response.headers_mut();
    if let (true, Some(last)) = (found.more, found.tags.last()) {
        let link = next_page(&ask.target.asked, limit, last, call.namespace);
        if let Ok(link) = HeaderValue::try_from(link) {
            headers.insert(header::LINK, link);
        }
    }
    warn_if_stale(headers, found.stale.as_deref());
    Ok(response)
}

/// `Link` to the page after `last` (distribution specification, "Listing Tags").
fn next_page(name: &RepositoryName, limit: usize, last: &Tag, namespace: Option<&str>) -> String {
    let namespace = namespace.map(|host| format!("&ns={}", utf8_percent_encode(host, NON_ALPHANUMERIC)));
    format!("</v2/{name}/tags/list?n={limit}&last={last}{}>; rel=\"next\"", namespace.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::route::{Asked, Route};

    #[test]
    fn a_link_leads_to_the_next_page_of_the_same_namespace() {
        let (name, last): (RepositoryName, Tag) = ("a/b".parse().unwrap(), "1.0-x".parse().unwrap());
        let link = next_page(&name, 7, &last, Some("reg.test:5000"));
        assert_eq!(link, "</v2/a/b/tags/list?n=7&last=1.0-x&ns=reg%2Etest%3A5000>; rel=\"next\"");
        let (path, query) = link[1..link.find('>').unwrap()].split_once('?').unwrap();
        let asked = Asked::parse(path, Some(query)).unwrap();
        let page = Page { limit: Some(7), after: Some("1.0-x".to_owned()) };
        assert_eq!(asked, Asked { route: Route::Tags { name, page }, namespace: Some("reg.test:5000".to_owned()) });
    }
}
