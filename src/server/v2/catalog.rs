//! `GET /v2/_catalog`, in pages: the names under which anything is kept.

use http::{HeaderValue, StatusCode, header};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use crate::server::face::{Answer, Call};
use crate::server::reply::{self, Problem};
use crate::server::route::Page;

/// Most names in one reply, also for clients that name no number or a larger one; `Link` leads on.
const CATALOG_PAGE_MAX: usize = 1_000;

pub(in crate::server) async fn serve(call: &Call<'_>, page: &Page) -> Answer {
    let limit = page.limit.map_or(CATALOG_PAGE_MAX, |n| usize::try_from(n).unwrap_or(usize::MAX).min(CATALOG_PAGE_MAX));
    // One more than is shown, to know whether there is more.
    let found = call.face.store.repositories(page.after.as_deref(), limit + 1).await;
    let mut names = found.map_err(|error| {
        tracing::error!(id = %call.id, error = &error as &dyn std::error::Error, "cannot list the repositories: {error}");
        Problem::internal("listing the repositories")
    })?;
    let more = names.len() > limit;
    names.truncate(limit);
    let mut response = reply::json_reply(StatusCode::OK, &json!({ "repositories": names }));
    if let (true, Some(last)) = (more, names.last()) {
        let last = utf8_percent_encode(last, NON_ALPHANUMERIC);
        let link = HeaderValue::try_from(format!("</v2/_catalog?n={limit}&last={last}>; rel=\"next\""));
        response.headers_mut().extend(link.ok().map(|link| (header::LINK, link)));
    }
    Ok(response)
}
