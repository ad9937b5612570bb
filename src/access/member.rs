//! (pure) Whom a rule lets: `user:alice`, `group:ci`, `claim:project_path=team/*`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// One entry of a rule's `to`, or of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Member {
    /// Whoever asks, logged in or not.
    Anonymous,
    /// Users, certificates and jobs; robots only have what names them.
    Authenticated,
    User(String),
    Group(String),
    Robot(String),
    /// By a certificate's common name, or one of its other names.
    Certificate(String),
    /// All of these, of one token.
    Claims(Vec<(String, Glob)>),
}

/// A value with `*` (anything but a slash) and `**` (anything) in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glob(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Within,
    Across,
}

/// The claims of a token that rules may ask for; one may have several values.
pub type Claims = BTreeMap<String, Vec<String>>;

/// Longest value of a claim that is looked at, and longest pattern.
pub const CLAIM_VALUE_MAX: usize = 512;

impl FromStr for Member {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            let shown: String = text.chars().take(100).collect();
            format!(
                "`{shown}` is nobody; write anonymous, authenticated, user:NAME, group:NAME, robot:NAME, \
                 certificate:NAME or claim:NAME=VALUE"
            )
        };
        match text {
            "anonymous" => return Ok(Self::Anonymous),
            "authenticated" => return Ok(Self::Authenticated),
            _ => {}
        }
        let (kind, name) = text.split_once(':').filter(|(_, name)| !name.is_empty()).ok_or_else(wrong)?;
        let named = name.to_owned();
        match kind {
            "user" => Ok(Self::User(named)),
            "group" => Ok(Self::Group(named)),
            "robot" => Ok(Self::Robot(named)),
            "certificate" => Ok(Self::Certificate(named)),
            "claim" => name.split(',').map(claim).collect::<Option<Vec<_>>>().map(Self::Claims).ok_or_else(wrong),
            _ => Err(wrong()),
        }
    }
}

fn claim(text: &str) -> Option<(String, Glob)> {
    let (name, value) = text.split_once('=')?;
    let fits = !name.is_empty() && !value.is_empty() && value.len() <= CLAIM_VALUE_MAX;
    fits.then(|| (name.trim().to_owned(), Glob::new(value)))
}

impl Member {
    /// In a group, a name without a kind is a user.
    pub fn parse_in_group(text: &str) -> Result<Self, String> {
        let plain = !text.is_empty() && !text.contains(':') && !matches!(text, "anonymous" | "authenticated");
        if plain { Ok(Self::User(text.to_owned())) } else { text.parse() }
    }

    /// Whether a token has all the claims.
    pub fn has_claims(wanted: &[(String, Glob)], claims: &Claims) -> bool {
        wanted.iter().all(|(name, glob)| claims.get(name).is_some_and(|values| values.iter().any(|v| glob.matches(v))))
    }
}

impl Glob {
    pub fn new(text: &str) -> Self {
        let mut pieces = Vec::new();
        let mut rest = text;
        while let Some(at) = rest.find('*') {
            if at > 0 {
                pieces.push(Piece::Text(rest[..at].to_owned()));
            }
            let stars = rest[at..].bytes().take_while(|byte| *byte == b'*').count();
            pieces.push(if stars == 1 { Piece::Within } else { Piece::Across });
            rest = &rest[at + stars..];
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.to_owned()));
        }
        Self(pieces)
    }

    /// The whole of `value`, not a part of it.
    pub fn matches(&self, value: &str) -> bool {
        // The ends (in bytes) that what was looked at so far may have: never more than there are bytes, so no pattern
        // takes long.
        let mut ends = vec![false; value.len() + 1];
        ends[0] = true;
        for piece in &self.0 {
            let mut next = vec![false; value.len() + 1];
            match piece {
                Piece::Text(text) => {
                    for at in (0..=value.len()).filter(|at| ends[*at]) {
                        if value.as_bytes()[at..].starts_with(text.as_bytes()) {
                            next[at + text.len()] = true;
                        }
                    }
                }
                Piece::Within | Piece::Across => {
                    let mut reaching = false;
                    for at in 0..=value.len() {
                        let slash = at > 0 && value.as_bytes()[at - 1] == b'/' && *piece == Piece::Within;
                        reaching = (reaching && !slash) || ends[at];
                        next[at] = reaching;
                    }
                }
            }
            ends = next;
        }
        ends[value.len()]
    }
}

impl fmt::Display for Glob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|piece| match piece {
            Piece::Text(text) => f.write_str(text),
            Piece::Within => f.write_str("*"),
            Piece::Across => f.write_str("**"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stays_within_a_group_and_two_go_across() {
        let cases = [
            ("team/*", "team/app", true),
            ("team/*", "team/sub/app", false),
            ("team/*", "team/", true),
            ("team/*", "steam/app", false),
            ("team/**", "team/sub/app", true),
            ("team/*/app", "team/sub/app", true),
            ("*-prod", "a-prod-prod", true),
            ("*-prod", "a/b-prod", false),
            ("main", "main", true),
            ("main", "mainx", false),
            ("*", "", true),
            ("**a**b**", "xxaxxbxx", true),
            ("*a*a*a*a*a*a*a*a*b", &"a".repeat(400), false),
        ];
        for (glob, value, expected) in cases {
            assert_eq!(Glob::new(glob).matches(value), expected, "{glob} {value}");
        }
    }

    #[test]
    fn members_are_written_with_their_kind() {
        assert_eq!("user:alice".parse(), Ok(Member::User("alice".to_owned())));
        assert_eq!(Member::parse_in_group("alice"), Ok(Member::User("alice".to_owned())));
        let claims = "claim:project_path=team/*,ref_protected=true".parse::<Member>().unwrap();
        let Member::Claims(wanted) = &claims else { panic!("{claims:?}") };
        let has = |pairs: &[(&str, &str)]| {
            let claims = pairs.iter().map(|(name, value)| ((*name).to_owned(), vec![(*value).to_owned()])).collect();
            Member::has_claims(wanted, &claims)
        };
        assert!(has(&[("project_path", "team/app"), ("ref_protected", "true")]));
        assert!(!has(&[("project_path", "team/app")]) && !has(&[("project_path", "x/y"), ("ref_protected", "true")]));
        for wrong in ["", "alice", "user:", "claim:x", "claim:=y", "claim:x=", "everyone", "User:x"] {
            assert!(wrong.parse::<Member>().is_err(), "{wrong}");
        }
    }
}
