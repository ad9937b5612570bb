//! `GET /v2/_catalog`, in pages: the names under which anything is kept that the caller may read.

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
    let mut names = readable(call, page.after.clone(), limit).await?;
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

/// One more than is shown, where there is more. What the caller may not read is passed over: a page's end tells nothing
/// of it.
async fn readable(call: &Call<'_>, mut after: Option<String>, limit: usize) -> Result<Vec<String>, Problem> {
    let (store, access) = (&call.face.store, &call.face.access);
    let mut names: Vec<String> = Vec::new();
    loop {
        let found = store.repositories(after.as_deref(), CATALOG_PAGE_MAX).await.map_err(|error| {
            let id = call.id;
            tracing::error!(%id, error = &error as &dyn std::error::Error, "cannot list the repositories: {error}");
            Problem::internal("listing the repositories")
        })?;
        let is_last = found.len() < CATALOG_PAGE_MAX;
        after = found.last().map(ToString::to_string);
        for repository in found.iter().filter(|repository| access.may_pull(call.caller, repository)) {
            let name = repository.to_string();
            // A local repository may be called as an upstream's is shown.
            if names.last() != Some(&name) {
                names.push(name);
            }
        }
        if is_last || names.len() > limit {
            names.truncate(limit + 1);
            return Ok(names);
        }
    }
}
