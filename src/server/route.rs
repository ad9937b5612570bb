//! (pure) What a path and query ask for: parsed once, into types that nobody parses again.
//!
//! Only the reference (a tag or digest) and the query are percent-decoded, and once: a name never needs it, so `%` in a
//! name is refused like `//`, `..` and capitals. A name may itself contain `manifests` or `blobs`; the last parts decide.

use percent_encoding::percent_decode_str;

use crate::oci::{Algorithm, Digest, InvalidDigest, InvalidName, InvalidTag, Reference, RepositoryName, Tag};
use crate::store::UploadId;

/// A request's aim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v2/`: whether this is a registry.
    Base,
    Manifest {
        name: RepositoryName,
        reference: Reference,
        /// `?tag=`: what a push names it as well.
        tags: Vec<Tag>,
    },
    Blob {
        name: RepositoryName,
        digest: Digest,
    },
    Tags {
        name: RepositoryName,
        page: Page,
    },
    Referrers {
        name: RepositoryName,
        digest: Digest,
        query: ReferrersQuery,
    },
    /// `…/blobs/uploads/`: where uploads begin.
    Uploads {
        name: RepositoryName,
        begin: Box<Begin>,
    },
    /// `…/blobs/uploads/<id>`: an upload that was begun.
    Upload {
        name: RepositoryName,
        id: UploadId,
        /// `?digest=`: what it is to be kept under.
        digest: Option<Digest>,
    },
    Catalog {
        page: Page,
    },
    /// `/livez`: the process answers.
    Live,
    /// `/readyz`: the store answers.
    Ready,
    /// `/token`: where clients log in. Its query is its own to read.
    Token,
}

/// How a client wants to bring a blob.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Begin {
    /// `digest`: with this one request.
    pub digest: Option<Digest>,
    /// `digest-algorithm`: what its digest will be of.
    pub algorithm: Option<Algorithm>,
    /// `mount`, and `from` where: from another repository.
    pub mount: Option<(Digest, Option<RepositoryName>)>,
}

/// Which of the referrers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReferrersQuery {
    /// `artifactType`: only these.
    pub artifact_type: Option<String>,
    /// `last`, as our own links say it: the list goes on after this one.
    pub after: Option<Digest>,
}

/// Which part of a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// `n`: most entries that the client wants.
    pub limit: Option<u64>,
    /// `last`: the list goes on after this one.
    pub after: Option<String>,
}

/// A route, and the upstream host that containerd names beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub route: Route,
    /// `?ns=`.
    pub namespace: Option<String>,
}

/// Why a path is no route.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unroutable {
    #[error("there is nothing at this path; the registry is at `/v2/`")]
    Elsewhere,
    #[error(transparent)]
    Name(#[from] InvalidName),
    #[error(transparent)]
    Tag(#[from] InvalidTag),
    #[error(transparent)]
    Digest(#[from] InvalidDigest),
    #[error("`n` is a number of entries, 0 or more")]
    PageSize,
    #[error("`digest-algorithm` is `sha256` or `sha512`")]
    Algorithm,
    #[error("there is no such upload: an upload is named by the `Location` of the reply that began it")]
    Upload,
    #[error("`{0}` in the query is not UTF-8")]
    Query(&'static str),
}

impl Asked {
    /// `path` and `query` as they stand in the request line.
    pub fn parse(path: &str, query: Option<&str>) -> Result<Self, Unroutable> {
        let query = Query(query.unwrap_or_default());
        let route = match path {
            "/v2" | "/v2/" => Route::Base,
            "/v2/_catalog" => Route::Catalog { page: query.page()? },
            "/livez" => Route::Live,
            "/readyz" => Route::Ready,
            "/token" => return Ok(Self { route: Route::Token, namespace: None }),
            _ => below(path.strip_prefix("/v2/").ok_or(Unroutable::Elsewhere)?, &query)?,
        };
        Ok(Self { route, namespace: query.value("ns")? })
    }
}

fn below(path: &str, query: &Query<'_>) -> Result<Route, Unroutable> {
    let (rest, last) = path.rsplit_once('/').ok_or(Unroutable::Elsewhere)?;
    let (name, kind) = rest.rsplit_once('/').unwrap_or(("", rest));
    match (kind, last) {
        ("manifests", reference) => {
            let (name, reference) = (name.parse()?, parse_reference(reference)?);
            Ok(Route::Manifest { name, reference, tags: query.tags()? })
        }
        ("blobs", "uploads") => uploads(name, query),
        ("blobs", digest) => Ok(Route::Blob { name: name.parse()?, digest: decode(digest)?.parse()? }),
        ("referrers", digest) => {
            let (name, digest) = (name.parse()?, decode(digest)?.parse()?);
            let query = ReferrersQuery { artifact_type: query.value("artifactType")?, after: query.digest("last")? };
            Ok(Route::Referrers { name, digest, query })
        }
        ("tags", "list") => Ok(Route::Tags { name: name.parse()?, page: query.page()? }),
        // `<name>/blobs/uploads/` and `<name>/blobs/uploads/<session>`
        ("uploads", id) => {
            let name = name.strip_suffix("/blobs").ok_or(Unroutable::Elsewhere)?;
            if id.is_empty() { uploads(name, query) } else { upload(name, id, query) }
        }
        _ => Err(Unroutable::Elsewhere),
    }
}

fn uploads(name: &str, query: &Query<'_>) -> Result<Route, Unroutable> {
    let name = name.parse()?;
    let from: Option<Result<RepositoryName, _>> = query.value("from")?.map(|from| from.parse());
    let mount = match (query.digest("mount")?, from.transpose()) {
        // No repository has such a name, so there is nothing to mount from.
        (None, _) | (Some(_), Err(_)) => None,
        (Some(digest), Ok(from)) => Some((digest, from)),
    };
    let known = |named: String| Algorithm::ALL.into_iter().find(|known| known.as_str() == named);
    let algorithm = query.value("digest-algorithm")?.map(|named| known(named).ok_or(Unroutable::Algorithm));
    let begin = Box::new(Begin { digest: query.digest("digest")?, algorithm: algorithm.transpose()?, mount });
    Ok(Route::Uploads { name, begin })
}

fn upload(name: &str, id: &str, query: &Query<'_>) -> Result<Route, Unroutable> {
    let (name, id) = (name.parse()?, id.parse().map_err(|_| Unroutable::Upload)?);
    Ok(Route::Upload { name, id, digest: query.digest("digest")? })
}

fn parse_reference(text: &str) -> Result<Reference, Unroutable> {
    let text = decode(text)?;
    if text.contains(':') { Ok(Reference::Digest(text.parse()?)) } else { Ok(Reference::Tag(text.parse()?)) }
}

/// Some clients write `sha256%3A…`.
fn decode(text: &str) -> Result<std::borrow::Cow<'_, str>, Unroutable> {
    percent_decode_str(text).decode_utf8().map_err(|_| Unroutable::Tag(InvalidTag))
}

struct Query<'a>(&'a str);

impl Query<'_> {
    /// The first value of `key`. `+` stays a plus: media types contain it and no value of ours contains a space.
    fn value(&self, key: &'static str) -> Result<Option<String>, Unroutable> {
        self.values(key).next().transpose()
    }

    /// All values of `key` that are not empty.
    fn values(&self, key: &'static str) -> impl Iterator<Item = Result<String, Unroutable>> {
        let pairs = self.0.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        pairs.filter(move |(name, value)| *name == key && !value.is_empty()).map(move |(_, value)| {
            let value = percent_decode_str(value).decode_utf8().map_err(|_| Unroutable::Query(key))?;
            Ok(value.into_owned())
        })
    }

    fn digest(&self, key: &'static str) -> Result<Option<Digest>, Unroutable> {
        Ok(self.value(key)?.map(|text| text.parse()).transpose()?)
    }

    fn tags(&self) -> Result<Vec<Tag>, Unroutable> {
        self.values("tag").map(|text| Ok(text?.parse()?)).collect()
    }

    fn page(&self) -> Result<Page, Unroutable> {
        let limit = self.value("n")?.map(|text| text.parse().map_err(|_| Unroutable::PageSize)).transpose()?;
        Ok(Page { limit, after: self.value("last")? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn route(path: &str) -> Result<Route, Unroutable> {
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        Asked::parse(path, query).map(|asked| asked.route)
    }

    const ID: &str = "00112233445566778899aabbccddeeff";

    fn uploads(begin: Begin) -> Route {
        Route::Uploads { name: name("a"), begin: Box::new(begin) }
    }

    fn name(text: &str) -> RepositoryName {
        text.parse().unwrap()
    }

    fn manifest(name_text: &str, tag: &str) -> Route {
        Route::Manifest { name: name(name_text), reference: Reference::Tag(tag.parse().unwrap()), tags: Vec::new() }
    }

    #[test]
    fn each_endpoint_has_its_path() {
        let digest: Digest = format!("sha256:{HEX}").parse().unwrap();
        let page = Page { limit: Some(5), after: Some("a+b".to_owned()) };
        let cases = [
            ("/v2/".to_owned(), Route::Base),
            ("/v2".to_owned(), Route::Base),
            ("/livez".to_owned(), Route::Live),
            ("/readyz".to_owned(), Route::Ready),
            ("/token?scope=repository:a:pull&ns=%ff".to_owned(), Route::Token),
            ("/v2/_catalog".to_owned(), Route::Catalog { page: Page::default() }),
            ("/v2/trivy-db/manifests/2".to_owned(), manifest("trivy-db", "2")),
            (
                format!("/v2/a/b/manifests/sha256:{HEX}"),
                Route::Manifest { name: name("a/b"), reference: Reference::Digest(digest), tags: Vec::new() },
            ),
            (format!("/v2/a/blobs/sha256:{HEX}"), Route::Blob { name: name("a"), digest }),
            (format!("/v2/a/blobs/sha256%3A{HEX}"), Route::Blob { name: name("a"), digest }),
            ("/v2/a/tags/list".to_owned(), Route::Tags { name: name("a"), page: Page::default() }),
            ("/v2/a/tags/list?last=a%2Bb&n=5&n=6".to_owned(), Route::Tags { name: name("a"), page }),
            (
                format!("/v2/a/referrers/sha256:{HEX}"),
                Route::Referrers { name: name("a"), digest, query: ReferrersQuery::default() },
            ),
            (
                format!("/v2/a/referrers/sha256:{HEX}?artifactType=application/vnd.x+json&last=sha256:{HEX}"),
                Route::Referrers {
                    name: name("a"),
                    digest,
                    query: ReferrersQuery {
                        artifact_type: Some("application/vnd.x+json".to_owned()),
                        after: Some(digest),
                    },
                },
            ),
            (
                format!("/v2/a/manifests/sha256:{HEX}?tag=1&tag=2"),
                Route::Manifest {
                    name: name("a"),
                    reference: Reference::Digest(digest),
                    tags: vec!["1".parse().unwrap(), "2".parse().unwrap()],
                },
            ),
            ("/v2/a/blobs/uploads/".to_owned(), uploads(Begin::default())),
            ("/v2/a/blobs/uploads".to_owned(), uploads(Begin::default())),
            (
                format!("/v2/a/blobs/uploads/?from=team%2Fapp&mount=sha256%3A{HEX}"),
                uploads(Begin { mount: Some((digest, Some(name("team/app")))), ..Begin::default() }),
            ),
            (format!("/v2/a/blobs/uploads/?from=Not%2FA%2FName&mount=sha256:{HEX}"), uploads(Begin::default())),
            (
                format!("/v2/a/blobs/uploads/?digest=sha256:{HEX}&digest-algorithm=sha512"),
                uploads(Begin { digest: Some(digest), algorithm: Some(Algorithm::Sha512), mount: None }),
            ),
            (
                format!("/v2/a/b/blobs/uploads/{ID}?digest=sha256:{HEX}"),
                Route::Upload { name: name("a/b"), id: ID.parse().unwrap(), digest: Some(digest) },
            ),
        ];
        for (path, expected) in cases {
            assert_eq!(route(&path), Ok(expected), "{path}");
        }
    }

    #[test]
    fn the_last_parts_decide_when_a_name_holds_the_words() {
        assert_eq!(route("/v2/manifests/manifests/manifests"), Ok(manifest("manifests", "manifests")));
        assert_eq!(route("/v2/a/blobs/uploads/manifests/x"), Ok(manifest("a/blobs/uploads", "x")));
        assert_eq!(route("/v2/tags/list/manifests/list"), Ok(manifest("tags/list", "list")));
        let tags = Route::Tags { name: name("a/manifests/tags"), page: Page::default() };
        assert_eq!(route("/v2/a/manifests/tags/tags/list"), Ok(tags));
    }

    #[test]
    fn bad_input_says_what_is_bad() {
        // Invariant 16
        let long = "a".repeat(256);
        let cases = [
            ("/", "elsewhere"),
            ("/v1/_ping", "elsewhere"),
            ("/v2/foo", "elsewhere"),
            ("/v2/foo/bar/baz", "elsewhere"),
            ("/v2/foo/uploads/", "elsewhere"),
            ("/v2/manifests/1", "name"),
            ("/v2//manifests/1", "name"),
            ("/v2/a//b/manifests/1", "name"),
            ("/v2/a/../b/manifests/1", "name"),
            ("/v2/a%2Fb/manifests/1", "name"),
            ("/v2/%2e%2e/manifests/1", "name"),
            ("/v2/UPPER/manifests/1", "name"),
            ("/v2/ünter/manifests/1", "name"),
            ("/v2/A/blobs/uploads/", "name"),
            (&format!("/v2/{long}/manifests/1"), "name"),
            ("/v2/a/manifests/", "tag"),
            ("/v2/a/manifests/.x", "tag"),
            ("/v2/a/manifests/x%2Fy", "tag"),
            ("/v2/a/manifests/%ff", "tag"),
            ("/v2/a/manifests/sha256:abc", "digest"),
            ("/v2/a/blobs/sha256:baddigeststring", "digest"),
            ("/v2/a/blobs/latest", "digest"),
            ("/v2/a/referrers/latest", "digest"),
            ("/v2/a/tags/list?n=x", "page"),
            ("/v2/a/tags/list?n=-1", "page"),
            ("/v2/a/tags/list?last=%ff", "query"),
            ("/v2/a/manifests/1?tag=.x", "tag"),
            ("/v2/a/blobs/uploads/?digest=sha256:abc", "digest"),
            ("/v2/a/blobs/uploads/?mount=x", "digest"),
            ("/v2/a/blobs/uploads/?digest-algorithm=md5", "algorithm"),
            ("/v2/a/blobs/uploads/7f3a-1", "upload"),
        ];
        for (path, expected) in cases {
            let kind = match route(path) {
                Err(Unroutable::Elsewhere) => "elsewhere",
                Err(Unroutable::Name(_)) => "name",
                Err(Unroutable::Tag(_)) => "tag",
                Err(Unroutable::Digest(_)) => "digest",
                Err(Unroutable::PageSize) => "page",
                Err(Unroutable::Query(_)) => "query",
                Err(Unroutable::Algorithm) => "algorithm",
                Err(Unroutable::Upload) => "upload",
                Ok(route) => panic!("{path} is {route:?}"),
            };
            assert_eq!(kind, expected, "{path}");
        }
    }

    #[test]
    fn the_namespace_is_decoded_once() {
        let asked = Asked::parse("/v2/a/manifests/1", Some("x=1&ns=reg.test%3A5000")).unwrap();
        assert_eq!(asked.namespace.as_deref(), Some("reg.test:5000"));
        assert_eq!(Asked::parse("/v2/a/manifests/1", Some("ns=")).unwrap().namespace, None);
        assert_eq!(Asked::parse("/v2/a/manifests/1", Some("ns=a%2541")).unwrap().namespace.as_deref(), Some("a%41"));
    }

    fn component() -> impl Strategy<Value = String> {
        let words = ["manifests", "blobs", "tags", "list", "uploads", "referrers"].map(str::to_owned).to_vec();
        prop_oneof![proptest::sample::select(words), "[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}"]
    }

    proptest! {
        #[test]
        fn every_valid_name_and_tag_comes_back(
            parts in proptest::collection::vec(component(), 1..12),
            tag in "[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}",
        ) {
            let text = parts.join("/");
            prop_assume!(text.len() <= 255);
            prop_assert_eq!(route(&format!("/v2/{text}/manifests/{tag}")), Ok(manifest(&text, &tag)));
            let digest: Digest = format!("sha256:{HEX}").parse().unwrap();
            prop_assert_eq!(
                route(&format!("/v2/{text}/blobs/{digest}")),
                Ok(Route::Blob { name: name(&text), digest })
            );
            let tags = Route::Tags { name: name(&text), page: Page::default() };
            prop_assert_eq!(route(&format!("/v2/{text}/tags/list")), Ok(tags));
        }

        #[test]
        fn no_path_panics_and_no_odd_name_passes(path in "/v2/[ -~äß]{0,300}", query in "[ -~]{0,60}") {
            if let Ok(Asked { route: Route::Manifest { name, .. } | Route::Blob { name, .. }, .. }) =
                Asked::parse(&path, Some(&query))
            {
                prop_assert!(!name.as_str().contains("..") && !name.as_str().contains('%'));
            }
        }
    }
}
