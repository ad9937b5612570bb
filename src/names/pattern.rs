//! (pure) Patterns of names, and every name by which clients reach a repository.
//!
//! One repository of an upstream has several names: by each route, by `<host>/…`, with and without Docker Hub's
//! `library`. What a pattern covers is decided over all of them, so that no name is a way around another.

use std::fmt;
use std::str::FromStr;

use super::{Destination, Host, Origin, Repository, Rewrite, Routes, split_pattern};
use crate::oci::RepositoryName;

/// A name as clients write it, or everything below a prefix: `trivy-db`, `security-products/**`; `**` is everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pattern {
    /// Of an open pattern, without the `/**`; empty: everything.
    name: String,
    open: bool,
}

/// A text that is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no pattern; write a name such as `trivy-db`, a prefix such as `security-products/**`, or `**`")]
pub struct InvalidPattern(pub String);

impl FromStr for Pattern {
    type Err = InvalidPattern;

    fn from_str(text: &str) -> Result<Self, InvalidPattern> {
        let (name, open) = split_pattern(text).ok_or_else(|| InvalidPattern(text.chars().take(300).collect()))?;
        Ok(Self { name: name.to_owned(), open })
    }
}

impl Pattern {
    fn is_everything(&self) -> bool {
        self.open && self.name.is_empty()
    }

    pub fn matches(&self, name: &RepositoryName) -> bool {
        match self.open {
            true if self.name.is_empty() => true,
            true => name.as_str().strip_prefix(&self.name).is_some_and(|rest| rest.starts_with('/')),
            false => name.as_str() == self.name,
        }
    }

    /// Whether it covers a repository that clients reach by `names`. Everything covers also what has no name.
    pub fn covers(&self, names: &[RepositoryName]) -> bool {
        self.is_everything() || names.iter().any(|name| self.matches(name))
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.open, self.name.is_empty()) {
            (true, true) => f.write_str("**"),
            (true, false) => write!(f, "{}/**", self.name),
            (false, _) => f.write_str(&self.name),
        }
    }
}

impl Routes {
    /// Every name that leads to the repository, sorted, but for those with `?ns=`. None where only `?ns=` leads there.
    pub fn names_of(&self, repository: &Repository) -> Vec<RepositoryName> {
        let mut names: Vec<RepositoryName> = match &repository.origin {
            Origin::Local => vec![repository.name.clone()],
            Origin::Upstream(host) => match self.hosts.get(host) {
                Some(host) => self.candidates(host, &repository.name),
                None => Vec::new(),
            },
        };
        names.retain(|name| self.resolve(name, None).is_ok_and(|target| target.repository == *repository));
        names.sort();
        names.dedup();
        names
    }

    /// Names that may lead to `there`; some of them lead elsewhere, where a longer route takes them.
    fn candidates(&self, host: &Host, there: &RepositoryName) -> Vec<RepositoryName> {
        let namespace = host.default_namespace.as_deref().and_then(|prefix| below(there.as_str(), prefix));
        let spellings: Vec<&str> = [Some(there.as_str()), namespace].into_iter().flatten().collect();
        let of_host = |(_, to): &(&String, &Destination)| to.host.host == host.host;
        let exact = self.exact.iter().filter(of_host).filter_map(|(name, _)| name.parse().ok());
        let open = self.below.iter().filter(of_host).flat_map(|(prefix, to)| {
            spellings.iter().filter_map(move |there| {
                let rest = match &to.rewrite {
                    Rewrite::Keep => return there.parse().ok(),
                    Rewrite::To(_) => return None,
                    Rewrite::Prefix(there_prefix) => below(there, there_prefix)?,
                };
                if prefix.is_empty() { rest.parse().ok() } else { format!("{prefix}/{rest}").parse().ok() }
            })
        });
        exact.chain(open).collect()
    }
}

/// What of `name` is below `prefix`; below the empty one, all of it.
fn below<'a>(name: &'a str, prefix: &str) -> Option<&'a str> {
    if prefix.is_empty() { Some(name) } else { name.strip_prefix(prefix)?.strip_prefix('/') }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::super::{OfflineMiss, Policy, Route};
    use super::*;

    fn table() -> Routes {
        let policy = Arc::new(Policy {
            fresh_for: Duration::from_secs(1),
            prefetch: false,
            platforms: Vec::new(),
            offline_miss: OfflineMiss::NotFound,
            push: false,
        });
        let host = |upstream: &str, host: &str, namespace: Option<&str>| Host {
            upstream: upstream.into(),
            host: host.into(),
            default_namespace: namespace.map(str::to_owned),
            policy: policy.clone(),
        };
        let route = |pattern: &str, upstream: &str, repository: Option<&str>| Route {
            pattern: pattern.to_owned(),
            upstream: upstream.to_owned(),
            repository: repository.map(str::to_owned),
            policy: policy.clone(),
        };
        let hosts = vec![host("gitlab", "registry.gitlab.com", None), host("hub", "docker.io", Some("library"))];
        let routes = vec![
            route("security-products/**", "gitlab", None),
            route("old/analyzers/**", "gitlab", Some("security-products/**")),
            route("old/**", "hub", Some("**")),
            route("alpine", "hub", Some("library/alpine")),
            route("docker.io/hidden/**", "gitlab", Some("**")),
        ];
        Routes::new(hosts, routes).unwrap()
    }

    fn names(asked: &str) -> Vec<String> {
        let table = table();
        let target = table.resolve(&asked.parse().unwrap(), None).unwrap();
        table.names_of(&target.repository).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_repository_is_known_by_all_its_names() {
        // Invariant 14
        let semgrep = [
            "docker.io/hidden/security-products/semgrep",
            "old/analyzers/semgrep",
            "registry.gitlab.com/security-products/semgrep",
            "security-products/semgrep",
        ];
        for name in semgrep {
            assert_eq!(names(name), semgrep, "{name}");
        }
        let alpine = ["alpine", "docker.io/alpine", "docker.io/library/alpine", "old/alpine", "old/library/alpine"];
        for name in alpine {
            assert_eq!(names(name), alpine, "{name}");
        }
        assert_eq!(names("team/app"), ["team/app"]);
        // `docker.io/hidden/x` is another's name.
        let hidden = table().resolve(&"hidden/x".parse().unwrap(), Some("docker.io")).unwrap();
        assert_eq!(table().names_of(&hidden.repository), ["old/hidden/x".parse().unwrap()]);
    }

    #[test]
    fn a_pattern_covers_a_prefix_at_its_slashes() {
        let matches = |pattern: &str, name: &str| {
            pattern.parse::<Pattern>().unwrap().matches(&name.parse::<RepositoryName>().unwrap())
        };
        assert!(matches("team/**", "team/app") && matches("team/**", "team/a/b") && matches("**", "x"));
        assert!(!matches("team/**", "team") && !matches("team/**", "teamwork/x") && !matches("team", "team/app"));
        for wrong in ["", "/**", "a/*", "A/**", "a/**/b", "a/", "../**"] {
            assert!(wrong.parse::<Pattern>().is_err(), "{wrong}");
        }
        for text in ["**", "a/**", "a/b"] {
            assert_eq!(text.parse::<Pattern>().unwrap().to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn every_name_is_among_those_of_where_it_leads(
            name in "(security-products|old|old/analyzers|docker\\.io|docker\\.io/hidden|registry\\.gitlab\\.com|alpine|x)(/(library|alpine|hidden|a)){0,3}"
        ) {
            // Invariant 14
            let (table, name) = (table(), name.parse::<RepositoryName>().unwrap());
            let target = table.resolve(&name, None).unwrap();
            prop_assert!(table.names_of(&target.repository).contains(&name));
        }
    }
}
