//! (pure) What a client asks a token for: `repository:team/app:pull,push`, `registry:catalog:*`.

use super::caller::{Verb, Verbs};
use crate::oci::RepositoryName;

/// Scopes of one token; more are left out, and clients are told so with the first request that needs one.
pub const SCOPES_MAX: usize = 64;

/// One scope that is of any use here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    Repository { name: RepositoryName, verbs: Verbs },
    Catalog,
}

impl Scope {
    /// Those of one `scope` parameter, which are parted by spaces. What is not known is left out.
    pub fn parse_all(text: &str) -> impl Iterator<Item = Self> {
        text.split(' ').filter_map(Self::parse)
    }

    fn parse(text: &str) -> Option<Self> {
        let (kind, rest) = text.split_once(':')?;
        let (name, actions) = rest.rsplit_once(':')?;
        // `admin` is no action of a scope: a token for clients gives no orders.
        let verbs = || {
            actions.split(',').fold(Verbs::NONE, |verbs, action| match action {
                "*" => verbs.and(Verbs::CONTENT),
                action => match action.parse::<Verb>() {
                    Ok(verb) if verb.is_of_content() => verbs.with(verb),
                    _ => verbs,
                },
            })
        };
        // `repository(plugin)` is a kind of repository that other registries know.
        match kind {
            "repository" => Some(Self::Repository { name: name.parse().ok()?, verbs: verbs() }),
            "registry" if name == "catalog" => Some(Self::Catalog),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_ask_for_is_understood_and_the_rest_left_out() {
        let repository = |name: &str, verbs: &[Verb]| Scope::Repository {
            name: name.parse().unwrap(),
            verbs: verbs.iter().copied().collect(),
        };
        let (pull, push, delete) = (Verb::Pull, Verb::Push, Verb::Delete);
        let cases = [
            ("repository:team/app:pull", vec![repository("team/app", &[pull])]),
            ("repository:team/app:push,pull", vec![repository("team/app", &[pull, push])]),
            ("repository:a:*", vec![repository("a", &[pull, push, delete])]),
            ("repository:a:pull,fly", vec![repository("a", &[pull])]),
            ("repository:a:pull,admin", vec![repository("a", &[pull])]),
            ("repository:a:pull registry:catalog:*", vec![repository("a", &[pull]), Scope::Catalog]),
            ("", vec![]),
            ("repository:a", vec![]),
            ("repository:A/../b:pull", vec![]),
            ("repository(plugin):a:pull", vec![]),
            ("registry:other:*", vec![]),
            (":::", vec![]),
        ];
        for (text, expected) in cases {
            assert_eq!(Scope::parse_all(text).collect::<Vec<_>>(), expected, "{text}");
        }
    }
}
