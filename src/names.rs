//! (pure) Which upstream a name belongs to: `security-products/semgrep` -> upstream, repository there, policy.
//!
//! A route maps a local name, or everything below a prefix, to a repository of an upstream. The longest match wins.
//! Every upstream is also reachable as `<host>/…`, and by `?ns=<host>` as containerd sends it. A name that matches
//! nothing is local and is never asked of an upstream (invariant 13).

mod pattern;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

pub use self::pattern::{InvalidPattern, Pattern};
use crate::oci::{Platform, RepositoryName};

/// Whose content a repository holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// This site's own: never asked of any upstream.
    Local,
    /// An upstream's, by the host that clients know it by, such as `registry.gitlab.com` or `docker.io`.
    Upstream(Arc<str>),
}

/// A repository as the store knows it. One upstream repository is one of these, by however many names clients reach it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    pub origin: Origin,
    pub name: RepositoryName,
}

/// Where a name that a client asked for leads.
#[derive(Clone, Debug)]
pub struct Target {
    /// As the client wrote it: for messages and the wanted list.
    pub asked: RepositoryName,
    pub repository: Repository,
    /// `None` for a local name.
    pub source: Option<Source>,
}

/// The upstream behind a name, and how its content is treated.
#[derive(Clone, Debug)]
pub struct Source {
    /// The key of `[upstream.…]`.
    pub upstream: Arc<str>,
    pub policy: Arc<Policy>,
}

/// A route's policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long after a check a tag is served without asking upstream again.
    pub fresh_for: Duration,
    /// Whether the rest of what a pulled manifest needs is fetched in the background.
    pub prefetch: bool,
    /// Platforms of an index that are fetched besides those that clients ask for.
    pub platforms: Vec<Platform>,
    pub offline_miss: OfflineMiss,
    /// Whether clients may push to it and delete there.
    pub push: bool,
}

/// How a manifest that is not kept is answered while the gate is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfflineMiss {
    /// 404: clients show its message.
    NotFound,
    /// 503: for clients that try again later.
    Unavailable,
}

/// An upstream as the routing table sees it.
#[derive(Clone, Debug)]
pub struct Host {
    /// The key of `[upstream.…]`.
    pub upstream: Arc<str>,
    /// The name that clients know it by.
    pub host: Arc<str>,
    /// Put before names of one component, as Docker Hub's `library`.
    pub default_namespace: Option<String>,
    pub policy: Arc<Policy>,
}

/// One `[route."…"]`.
#[derive(Clone, Debug)]
pub struct Route {
    pub pattern: String,
    /// The key of `[upstream.…]`.
    pub upstream: String,
    /// Pattern of the repository there; `None`: as asked.
    pub repository: Option<String>,
    pub policy: Arc<Policy>,
}

/// What is wrong with the routing table: the settings' key, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidRoute {
    /// Keys from the top: `["route", "a/**", "upstream"]`.
    pub key: Vec<String>,
    pub message: String,
}

/// `?ns=` names a host that is not configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a configured upstream host; add an `[upstream.…]` with `host = \"{0}\"`")]
pub struct UnknownNamespace(pub String);

/// The routing table.
#[derive(Debug, Default)]
pub struct Routes {
    /// By `host`; a host is also a prefix in `below`.
    hosts: HashMap<Arc<str>, Arc<Host>>,
    exact: HashMap<String, Destination>,
    /// By prefix, without the `/**`; the empty prefix is the catch-all.
    below: HashMap<String, Destination>,
}

#[derive(Clone, Debug)]
struct Destination {
    host: Arc<Host>,
    policy: Arc<Policy>,
    rewrite: Rewrite,
    /// As the settings write it, for reports.
    shown: String,
}

#[derive(Clone, Debug)]
enum Rewrite {
    Keep,
    /// This repository, whatever was asked.
    To(RepositoryName),
    /// This prefix (empty: none) in place of the route's own.
    Prefix(String),
}

impl Routes {
    /// Builds the table. Every host gets its `<host>/**`.
    pub fn new(hosts: Vec<Host>, routes: Vec<Route>) -> Result<Self, InvalidRoute> {
        let mut table = Self::default();
        let mut by_key: HashMap<Arc<str>, Arc<Host>> = HashMap::new();
        for host in hosts {
            let host = Arc::new(host);
            if let Some(other) = table.hosts.insert(host.host.clone(), host.clone()) {
                let message = format!("`{}` is already the host of [upstream.{}]; keep one", host.host, other.upstream);
                return Err(invalid(&["upstream", &host.upstream, "host"], message));
            }
            let shown = format!("{}/**", host.host);
            let (policy, rewrite) = (host.policy.clone(), Rewrite::Prefix(String::new()));
            table.below.insert(host.host.to_string(), Destination { host: host.clone(), policy, rewrite, shown });
            by_key.insert(host.upstream.clone(), host);
        }
        for route in routes {
            let host = by_key.get(route.upstream.as_str()).ok_or_else(|| no_upstream(&route, &by_key))?;
            table.add(route, host.clone())?;
        }
        Ok(table)
    }

    /// Where `name` leads; `namespace` is the value of `?ns=`.
    pub fn resolve(&self, name: &RepositoryName, namespace: Option<&str>) -> Result<Target, UnknownNamespace> {
        if let Some(namespace) = namespace {
            let host = self.hosts.get(namespace).ok_or_else(|| UnknownNamespace(namespace.to_owned()))?;
            return Ok(target(name, host, &host.policy, name.clone()));
        }
        let found = self.find(name).and_then(|(destination, rest)| {
            let repository = destination.rewritten(name, rest)?;
            Some(target(name, &destination.host, &destination.policy, repository))
        });
        Ok(found.unwrap_or_else(|| Target {
            asked: name.clone(),
            repository: Repository { origin: Origin::Local, name: name.clone() },
            source: None,
        }))
    }

    /// Each route as `(pattern, upstream key, repository there)`, sorted: for the start-up banner and the status.
    pub fn describe(&self) -> Vec<(String, String, String)> {
        let exact = self.exact.values();
        let mut lines: Vec<_> = exact
            .chain(self.below.values())
            .map(|to| {
                let repository = match &to.rewrite {
                    Rewrite::Keep => to.shown.clone(),
                    Rewrite::To(repository) => repository.to_string(),
                    Rewrite::Prefix(prefix) if prefix.is_empty() => "**".to_owned(),
                    Rewrite::Prefix(prefix) => format!("{prefix}/**"),
                };
                (to.shown.clone(), to.host.upstream.to_string(), format!("{}/{repository}", to.host.host))
            })
            .collect();
        lines.sort();
        lines
    }

    /// The longest match, and what of the name lies below its prefix.
    fn find<'a>(&'a self, name: &'a RepositoryName) -> Option<(&'a Destination, &'a str)> {
        let text = name.as_str();
        if let Some(destination) = self.exact.get(text) {
            return Some((destination, ""));
        }
        let prefixes = text.rmatch_indices('/').map(|(at, _)| (&text[..at], &text[at + 1..]));
        prefixes.chain([("", text)]).find_map(|(prefix, rest)| Some((self.below.get(prefix)?, rest)))
    }

    fn add(&mut self, route: Route, host: Arc<Host>) -> Result<(), InvalidRoute> {
        let (prefix, open) = split_pattern(&route.pattern).ok_or_else(|| {
            let message = format!(
                "`{}` is not a route; write a name such as `trivy-db`, a prefix such as `security-products/**`, or `**`",
                route.pattern
            );
            invalid(&["route", &route.pattern], message)
        })?;
        let rewrite = rewrite(&route, open)?;
        let shown = route.pattern.clone();
        let destination = Destination { host, policy: route.policy, rewrite, shown };
        let table = if open { &mut self.below } else { &mut self.exact };
        match table.insert(prefix.to_owned(), destination) {
            None => Ok(()),
            Some(other) => {
                let message = format!("it overlaps `{}` of [upstream.{}]; keep one", other.shown, other.host.upstream);
                Err(invalid(&["route", &route.pattern], message))
            }
        }
    }
}

impl Destination {
    /// `None` when the rewritten name would be longer than a name may be: then it is no name of the upstream's.
    fn rewritten(&self, name: &RepositoryName, rest: &str) -> Option<RepositoryName> {
        match &self.rewrite {
            Rewrite::Keep => Some(name.clone()),
            Rewrite::To(repository) => Some(repository.clone()),
            Rewrite::Prefix(prefix) if prefix.is_empty() => rest.parse().ok(),
            Rewrite::Prefix(prefix) => format!("{prefix}/{rest}").parse().ok(),
        }
    }
}

fn target(asked: &RepositoryName, host: &Host, policy: &Arc<Policy>, mut name: RepositoryName) -> Target {
    if let Some(namespace) = host.default_namespace.as_deref().filter(|_| name.components().nth(1).is_none()) {
        name = format!("{namespace}/{name}").parse().unwrap_or(name);
    }
    let origin = Origin::Upstream(host.host.clone());
    let source = Some(Source { upstream: host.upstream.clone(), policy: policy.clone() });
    Target { asked: asked.clone(), repository: Repository { origin, name }, source }
}

/// The part before `/**`, and whether there was one. `**` alone is the empty prefix.
fn split_pattern(pattern: &str) -> Option<(&str, bool)> {
    let (prefix, open) = match pattern.strip_suffix("**") {
        Some("") => return Some(("", true)),
        Some(prefix) => (prefix.strip_suffix('/')?, true),
        None => (pattern, false),
    };
    prefix.parse::<RepositoryName>().ok().map(|_| (prefix, open))
}

fn rewrite(route: &Route, open: bool) -> Result<Rewrite, InvalidRoute> {
    let Some(repository) = &route.repository else { return Ok(Rewrite::Keep) };
    let wrong = || {
        let example = if open { "`mirror/**` or `**`" } else { "`aquasecurity/trivy-db`" };
        let message = format!("`{repository}` does not fit the route `{}`; write, say, {example}", route.pattern);
        invalid(&["route", &route.pattern, "repository"], message)
    };
    match split_pattern(repository).ok_or_else(wrong)? {
        (prefix, true) if open => Ok(Rewrite::Prefix(prefix.to_owned())),
        (name, false) if !open => Ok(Rewrite::To(name.parse().map_err(|_| wrong())?)),
        _ => Err(wrong()),
    }
}

fn no_upstream(route: &Route, known: &HashMap<Arc<str>, Arc<Host>>) -> InvalidRoute {
    let mut names: Vec<_> = known.keys().map(|key| format!("`{key}`")).collect();
    names.sort();
    let known = if names.is_empty() { "none is configured".to_owned() } else { names.join(", ") };
    let message = format!("there is no [upstream.{}]; name one of {known}, or add it", route.upstream);
    invalid(&["route", &route.pattern, "upstream"], message)
}

fn invalid(key: &[&str], message: String) -> InvalidRoute {
    InvalidRoute { key: key.iter().map(|part| (*part).to_owned()).collect(), message }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Upstream(host) => f.write_str(host),
        }
    }
}

impl fmt::Display for Repository {
    /// `registry.gitlab.com/security-products/semgrep`; a local one without a host.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::Local => self.name.fmt(f),
            Origin::Upstream(host) => write!(f, "{host}/{}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Arc<Policy> {
        let fresh_for = Duration::from_secs(900);
        Arc::new(Policy {
            fresh_for,
            prefetch: true,
            platforms: Vec::new(),
            offline_miss: OfflineMiss::NotFound,
            push: false,
        })
    }

    fn host(upstream: &str, host: &str, default_namespace: Option<&str>) -> Host {
        let default_namespace = default_namespace.map(str::to_owned);
        Host { upstream: upstream.into(), host: host.into(), default_namespace, policy: policy() }
    }

    fn route(pattern: &str, upstream: &str, repository: Option<&str>) -> Route {
        let repository = repository.map(str::to_owned);
        Route { pattern: pattern.to_owned(), upstream: upstream.to_owned(), repository, policy: policy() }
    }

    fn hosts() -> Vec<Host> {
        vec![
            host("gitlab", "registry.gitlab.com", None),
            host("ghcr", "ghcr.io", None),
            host("hub", "docker.io", Some("library")),
        ]
    }

    fn table() -> Routes {
        let routes = vec![
            route("security-products/**", "gitlab", None),
            route("trivy-db", "ghcr", Some("aquasecurity/trivy-db")),
            route("old/analyzers/**", "gitlab", Some("security-products/**")),
            route("old/**", "hub", Some("**")),
        ];
        Routes::new(hosts(), routes).unwrap()
    }

    #[test]
    fn a_name_leads_where_the_longest_route_says() {
        // Invariant 13
        let cases = [
            ("security-products/semgrep", None, Some("registry.gitlab.com/security-products/semgrep")),
            ("security-products/container-scanning/trivy", None, {
                Some("registry.gitlab.com/security-products/container-scanning/trivy")
            }),
            ("security-products", None, None),
            ("trivy-db", None, Some("ghcr.io/aquasecurity/trivy-db")),
            ("trivy-db/x", None, None),
            ("old/analyzers/kics", None, Some("registry.gitlab.com/security-products/kics")),
            ("old/alpine", None, Some("docker.io/library/alpine")),
            ("docker.io/alpine", None, Some("docker.io/library/alpine")),
            ("docker.io/library/alpine", None, Some("docker.io/library/alpine")),
            ("docker.io/acme/app", None, Some("docker.io/acme/app")),
            ("docker.io", None, None),
            ("registry.gitlab.com/gitlab-org/x/y", None, Some("registry.gitlab.com/gitlab-org/x/y")),
            ("alpine", Some("docker.io"), Some("docker.io/library/alpine")),
            ("trivy-db", Some("docker.io"), Some("docker.io/library/trivy-db")),
            ("alpine", None, None),
            ("payroll/secret-project", None, None),
            ("quay.io/x/y", None, None),
        ];
        let table = table();
        for (asked, namespace, expected) in cases {
            let target = table.resolve(&asked.parse().unwrap(), namespace).unwrap();
            assert_eq!(target.source.is_some(), expected.is_some(), "{asked} {namespace:?}");
            assert_eq!(target.repository.to_string(), expected.unwrap_or(asked), "{asked} {namespace:?}");
        }
    }

    #[test]
    fn an_unknown_namespace_is_refused() {
        // Invariant 13
        let wrong = table().resolve(&"x/y".parse().unwrap(), Some("evil.example")).unwrap_err();
        assert_eq!(wrong, UnknownNamespace("evil.example".to_owned()));
    }

    #[test]
    fn a_catch_all_takes_what_nothing_else_takes() {
        let table = Routes::new(hosts(), vec![route("**", "hub", None)]).unwrap();
        let target = table.resolve(&"alpine".parse().unwrap(), None).unwrap();
        assert_eq!(target.repository.to_string(), "docker.io/library/alpine");
        let target = table.resolve(&"ghcr.io/x/y".parse().unwrap(), None).unwrap();
        assert_eq!(target.repository.to_string(), "ghcr.io/x/y");
    }

    #[test]
    fn a_name_that_grows_too_long_is_not_rewritten_to_another() {
        let table = Routes::new(hosts(), vec![route("a/**", "hub", Some("long-prefix/**"))]).unwrap();
        let asked: RepositoryName = format!("a/{}", "b".repeat(252)).parse().unwrap();
        assert!(table.resolve(&asked, None).unwrap().source.is_none());
    }

    #[test]
    fn wrong_tables_name_their_key() {
        // Invariant 20
        let cases = [
            (vec![route("a/**", "nope", None)], vec!["route", "a/**", "upstream"]),
            (vec![route("A/**", "hub", None)], vec!["route", "A/**"]),
            (vec![route("a/*", "hub", None)], vec!["route", "a/*"]),
            (vec![route("a/**/b", "hub", None)], vec!["route", "a/**/b"]),
            (vec![route("docker.io/**", "ghcr", None)], vec!["route", "docker.io/**"]),
            (vec![route("a", "hub", Some("b/**"))], vec!["route", "a", "repository"]),
            (vec![route("a/**", "hub", Some("b"))], vec!["route", "a/**", "repository"]),
        ];
        for (routes, key) in cases {
            let wrong = Routes::new(hosts(), routes).unwrap_err();
            assert_eq!(wrong.key, key);
        }
        let twice = vec![host("a", "x.io", None), host("b", "x.io", None)];
        assert_eq!(Routes::new(twice, Vec::new()).unwrap_err().key, ["upstream", "b", "host"]);
    }
}
