//! Who asks, and for what.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::certificate;
use super::member::Claims;
use crate::names::Repository;

/// What is done to a repository. On everything, `admin` is also what is done to the server itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verb {
    Pull,
    Push,
    Delete,
    /// Giving orders over the network. It implies none of the others, and none of them implies it.
    Admin,
}

/// Some of the verbs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verbs(u8);

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    Anonymous,
    User {
        name: String,
        mark: Mark,
    },
    Robot {
        name: String,
        mark: Mark,
    },
    /// Common name first, then the others.
    Certificate {
        names: Vec<String>,
    },
    /// A job of an issuer: the key in the settings, the token's `sub`, and the claims that rules ask for.
    Job {
        issuer: String,
        subject: String,
        claims: Claims,
    },
}

/// Changes with a user's password and a robot's token: what was handed out before is void.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark(pub(super) String);

/// A caller, identified. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Caller(pub(super) Arc<Known>);

/// What is known of a caller.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) subject: Subject,
    pub(super) id: Arc<str>,
    /// A token's scope; `None`: whatever the rules allow.
    pub(super) grants: Option<Grants>,
    /// Until when what was shown is good.
    pub(super) ends_at: Option<Timestamp>,
}

/// A token's scope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grants {
    pub repositories: Vec<(Repository, Verbs)>,
    pub catalog: bool,
}

impl Verb {
    pub const ALL: [Self; 4] = [Self::Pull, Self::Push, Self::Delete, Self::Admin];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Push => "push",
            Self::Delete => "delete",
            Self::Admin => "admin",
        }
    }

    /// Whether it is done to content: the others take a rule, or a robot's scope, that names them.
    pub fn is_of_content(self) -> bool {
        Verbs::CONTENT.has(self)
    }
}

impl std::str::FromStr for Verb {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|verb| verb.as_str() == text);
        known.ok_or_else(|| format!("`{text}` is no verb; write pull, push, delete or admin"))
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Verbs {
    pub const NONE: Self = Self(0);
    /// What is done to content.
    pub const CONTENT: Self = Self(0b111);

    pub fn has(self, verb: Verb) -> bool {
        self.0 & (1 << verb as u8) != 0
    }

    pub fn with(self, verb: Verb) -> Self {
        Self(self.0 | 1 << verb as u8)
    }

    pub fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn iter(self) -> impl Iterator<Item = Verb> {
        Verb::ALL.into_iter().filter(move |verb| self.has(*verb))
    }
}

impl FromIterator<Verb> for Verbs {
    fn from_iter<T: IntoIterator<Item = Verb>>(verbs: T) -> Self {
        verbs.into_iter().fold(Self::NONE, Self::with)
    }
}

impl fmt::Display for Verbs {
    /// `pull,push`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.iter().map(Verb::as_str).collect::<Vec<_>>().join(","))
    }
}

impl Subject {
    pub fn is_anonymous(&self) -> bool {
        matches!(self, Self::Anonymous)
    }

    /// `user:alice`; empty for anonymous.
    pub fn id(&self) -> String {
        match self {
            Self::Anonymous => String::new(),
            Self::User { name, .. } => format!("user:{name}"),
            Self::Robot { name, .. } => format!("robot:{name}"),
            Self::Certificate { names } => format!("certificate:{}", names.first().map_or("", String::as_str)),
            Self::Job { issuer, subject, .. } => format!("job:{issuer}:{subject}"),
        }
    }
}

impl Caller {
    pub(super) fn new(subject: Subject, grants: Option<Grants>, ends_at: Option<Timestamp>) -> Self {
        let id = subject.id().into();
        Self(Arc::new(Known { subject, id, grants, ends_at }))
    }

    /// By a client's certificate (DER), which TLS has checked; `None` where it names nobody.
    pub fn of_certificate(der: &[u8]) -> Option<Self> {
        let names = certificate::names(der);
        (!names.is_empty()).then(|| Self::new(Subject::Certificate { names }, None, None))
    }

    /// Who owns what this caller begins; empty for anonymous.
    pub fn id(&self) -> &Arc<str> {
        &self.0.id
    }

    pub fn is_anonymous(&self) -> bool {
        self.0.subject.is_anonymous()
    }

    /// Whether it showed a token with a scope of its own.
    pub fn is_scoped(&self) -> bool {
        self.0.grants.is_some()
    }
}

impl fmt::Display for Caller {
    /// For messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_anonymous() { f.write_str("anonymous") } else { f.write_str(&self.0.id) }
    }
}

impl Grants {
    /// Whether the token says so. Of orders, no token of ours says anything.
    pub(super) fn covers(&self, repository: &Repository, verb: Verb) -> bool {
        verb.is_of_content()
            && self.repositories.iter().any(|(granted, verbs)| verbs.has(verb) && granted == repository)
    }
}
