//! Repository names, tags, and the references that clients ask for.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::digest::Digest;

/// Longest repository name, in bytes. The specification leaves room for a host in the same 255.
pub const NAME_LENGTH_MAX: usize = 255;
/// Longest tag, in bytes.
pub const TAG_LENGTH_MAX: usize = 128;

/// A repository name such as `security-products/semgrep`: lower-case components parted by `/`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(Arc<str>);

/// A tag such as `6` or `bookworm`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(Arc<str>);

/// What follows `/manifests/`: a tag, or a digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Reference {
    Tag(Tag),
    Digest(Digest),
}

/// Why a text is not a repository name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    #[error("a repository name has 1 to {NAME_LENGTH_MAX} characters, not {0}")]
    Length(usize),
    #[error(
        "`{0}` is not a repository name component: lower-case letters and digits, parted by one `.`, one or two `_`, or any number of `-`"
    )]
    Component(String),
}

/// Why a text is not a tag.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a tag has 1 to {TAG_LENGTH_MAX} letters, digits, `_`, `.` or `-`, and begins with a letter, a digit or `_`")]
pub struct InvalidTag;

impl RepositoryName {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The components, first to last; never empty.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.0.split('/')
    }

    /// What remains below `prefix`: `semgrep` of `security-products/semgrep` below `security-products`.
    pub fn below(&self, prefix: &str) -> Option<&str> {
        self.0.strip_prefix(prefix)?.strip_prefix('/')
    }
}

impl FromStr for RepositoryName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if text.is_empty() || text.len() > NAME_LENGTH_MAX {
            return Err(InvalidName::Length(text.chars().count()));
        }
        match text.split('/').find(|component| !is_component(component.as_bytes())) {
            None => Ok(Self(text.into())),
            Some(wrong) => Err(InvalidName::Component(wrong.escape_debug().to_string())),
        }
    }
}

impl Tag {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = InvalidTag;

    fn from_str(text: &str) -> Result<Self, InvalidTag> {
        let (first, rest) = text.as_bytes().split_first().ok_or(InvalidTag)?;
        let valid = text.len() <= TAG_LENGTH_MAX
            && (first.is_ascii_alphanumeric() || *first == b'_')
            && rest.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        if valid { Ok(Self(text.into())) } else { Err(InvalidTag) }
    }
}

impl Reference {
    /// The reference as an image name carries it: `:6` or `@sha256:…`.
    pub fn suffix(&self) -> String {
        match self {
            Self::Tag(tag) => format!(":{tag}"),
            Self::Digest(digest) => format!("@{digest}"),
        }
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(bytes: &[u8]) -> bool {
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let mut rest = bytes;
    loop {
        let word = rest.iter().take_while(|b| alphanumeric(b)).count();
        if word == 0 {
            return false;
        }
        rest = &rest[word..];
        if rest.is_empty() {
            return true;
        }
        let separator = rest.iter().take_while(|b| !alphanumeric(b)).count();
        if !matches!(&rest[..separator], b"." | b"_" | b"__") && !rest[..separator].iter().all(|b| *b == b'-') {
            return false;
        }
        rest = &rest[separator..];
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}
