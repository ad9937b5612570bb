//! The robots: access tokens for programs, by name, with a scope of their own and an end.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::caller::{Caller, Mark, Subject, Verb};
use super::file;
use super::known::hash_of;
use super::rules::RobotScope;
use super::users::is_name;
use crate::names::{InvalidPattern, Pattern};
use crate::secret::Secret;

/// What every robot's token begins with: people and scanners for leaked secrets know it by that.
pub const TOKEN_PREFIX: &str = "slr_";
/// Longest life of a token.
pub const ROBOT_LIFE_MOST: Duration = Duration::from_secs(2 * 366 * 86_400);
/// Most robots, and most patterns of one.
pub const ROBOTS_MAX: usize = 5_000;
const PATTERNS_MAX: usize = 100;

/// A robot, as it is listed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RobotRecord {
    /// Of its token, in hex; the token itself is nowhere.
    sha256: String,
    /// Patterns of names as clients write them; none: only what rules give it.
    pub repositories: Vec<String>,
    pub verbs: Vec<Verb>,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
}

/// What a new robot may do, and for how long.
#[derive(Clone, Debug)]
pub struct RobotOrder {
    pub repositories: Vec<String>,
    pub verbs: Vec<Verb>,
    pub lasting: Duration,
}

/// A robot that can log in.
pub struct Robot {
    pub(super) caller: Caller,
    pub(super) scope: RobotScope,
    pub(super) expires_at: Timestamp,
}

/// The robots of a file.
#[derive(Default)]
pub struct Robots {
    pub(super) by_name: HashMap<String, Robot>,
    /// By the hash of the token.
    by_token: HashMap<[u8; 32], String>,
}

/// The robots file, as the commands change it.
pub struct RobotsFile(PathBuf);

/// Why the robots cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RobotsError {
    #[error("cannot read or write the robots in `{}`", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{0}` is no name for a robot; write letters, digits and `.`, `_`, `@`, `+`, `-`")]
    Name(String),
    #[error("there is a robot `{0}` already; revoke it with `sealock robot revoke {0}`, or choose another name")]
    Exists(String),
    #[error("there is no robot `{0}`")]
    Unknown(String),
    #[error(transparent)]
    Pattern(#[from] InvalidPattern),
    #[error("a robot's token lasts from 1s to {} days", ROBOT_LIFE_MOST.as_secs() / 86_400)]
    Lasting,
    #[error("name the verbs and the repositories together, or neither")]
    HalfAScope,
    #[error("at most {ROBOTS_MAX} robots, with {PATTERNS_MAX} patterns each")]
    TooMany,
    #[error("the system gave no random bytes")]
    NoRandom,
}

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    robots: BTreeMap<String, RobotRecord>,
}

impl Robots {
    /// An error, in words, when the file cannot be understood.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut robots = Self::default();
        for (name, record) in document(bytes)?.robots {
            let wrong = |why: &str| format!("robot `{name}`: {why}");
            let mut hash = [0; 32];
            hex::decode_to_slice(&record.sha256, &mut hash).map_err(|_| wrong("its hash is not one"))?;
            let patterns: Result<Vec<Pattern>, _> = record.repositories.iter().map(|text| text.parse()).collect();
            let patterns = patterns.map_err(|why: InvalidPattern| wrong(&why.to_string()))?;
            let scope = RobotScope { patterns, verbs: record.verbs.iter().copied().collect() };
            let mark = Mark(record.sha256[..24].to_owned());
            let caller = Caller::new(Subject::Robot { name: name.clone(), mark }, None, Some(record.expires_at));
            robots.by_token.insert(hash, name.clone());
            robots.by_name.insert(name, Robot { caller, scope, expires_at: record.expires_at });
        }
        Ok(robots)
    }

    /// The robot that has this token, and its name. By the token's hash: how long it takes tells nothing of it.
    pub(super) fn of_token(&self, token: &Secret) -> Option<(&str, &Robot)> {
        let name = self.by_token.get(&hash_of(token))?;
        Some((name, self.by_name.get(name)?))
    }
}

impl RobotsFile {
    /// `folder`: `access/` in the data folder.
    pub fn new(folder: &Path) -> Self {
        Self(folder.join("robots.json"))
    }

    pub fn list(&self) -> Result<BTreeMap<String, RobotRecord>, RobotsError> {
        Ok(self.read()?.robots)
    }

    /// Adds a robot and gives its token, which cannot be had again.
    pub fn add(&self, name: &str, order: &RobotOrder, now: Timestamp) -> Result<(Secret, RobotRecord), RobotsError> {
        if !is_name(name) {
            return Err(RobotsError::Name(name.chars().take(200).collect()));
        }
        if order.lasting < Duration::from_secs(1) || order.lasting > ROBOT_LIFE_MOST {
            return Err(RobotsError::Lasting);
        }
        if order.repositories.is_empty() != order.verbs.is_empty() {
            return Err(RobotsError::HalfAScope);
        }
        for pattern in &order.repositories {
            pattern.parse::<Pattern>()?;
        }
        let mut random = [0_u8; 32];
        aws_lc_rs::rand::fill(&mut random).map_err(|_| RobotsError::NoRandom)?;
        let token = Secret::new(format!("{TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(random)));
        let lasting = SignedDuration::try_from(order.lasting).map_err(|_| RobotsError::Lasting)?;
        let record = RobotRecord {
            sha256: hex::encode(hash_of(&token)),
            repositories: order.repositories.clone(),
            verbs: order.verbs.clone(),
            created_at: now,
            expires_at: now + lasting,
        };
        self.change(|robots| {
            if robots.contains_key(name) {
                return Err(RobotsError::Exists(name.to_owned()));
            }
            if robots.len() >= ROBOTS_MAX || order.repositories.len() > PATTERNS_MAX {
                return Err(RobotsError::TooMany);
            }
            robots.insert(name.to_owned(), record.clone());
            Ok(())
        })?;
        Ok((token, record))
    }

    pub fn revoke(&self, name: &str) -> Result<(), RobotsError> {
        self.change(|robots| robots.remove(name).map(drop).ok_or_else(|| RobotsError::Unknown(name.to_owned())))
    }

    fn change(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, RobotRecord>) -> Result<(), RobotsError>,
    ) -> Result<(), RobotsError> {
        let io = |source| RobotsError::Io { path: self.0.clone(), source };
        let _lock = file::lock(&self.0).map_err(io)?;
        let mut document = self.read()?;
        change(&mut document.robots)?;
        let text = serde_json::to_vec_pretty(&document).map_err(|why| io(why.into()))?;
        file::replace(&self.0, &text).map_err(io)
    }

    fn read(&self) -> Result<Document, RobotsError> {
        let io = |source| RobotsError::Io { path: self.0.clone(), source };
        match file::read(&self.0).map_err(io)? {
            None => Ok(Document { version: VERSION, robots: BTreeMap::new() }),
            Some(bytes) => document(&bytes).map_err(|why| io(io::Error::other(why))),
        }
    }
}

fn document(bytes: &[u8]) -> Result<Document, String> {
    let document: Document = serde_json::from_slice(bytes).map_err(|why| why.to_string())?;
    match document.version {
        VERSION => Ok(document),
        other => Err(format!("it has version {other}, and this sealock knows {VERSION}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(repositories: &[&str], verbs: &[Verb], days: u64) -> RobotOrder {
        RobotOrder {
            repositories: repositories.iter().map(|pattern| (*pattern).to_owned()).collect(),
            verbs: verbs.to_vec(),
            lasting: Duration::from_secs(days * 86_400),
        }
    }

    #[test]
    fn a_token_is_shown_once_and_kept_as_a_hash() {
        // Invariant 12
        let folder = tempfile::tempdir().unwrap();
        let file = RobotsFile::new(&folder.path().join("access"));
        let now = Timestamp::from_second(1_790_000_000).unwrap();
        let (token, record) = file.add("ci", &order(&["team/**"], &[Verb::Push], 90), now).unwrap();
        assert_eq!(record.expires_at.duration_since(now).as_hours(), 90 * 24);
        let text = file::read(&file.0).unwrap().unwrap();
        assert!(!String::from_utf8_lossy(&text).contains(&token.expose()[TOKEN_PREFIX.len()..]));
        let robots = Robots::parse(&text).unwrap();
        assert_eq!(robots.of_token(&token).unwrap().0, "ci");
        assert!(robots.of_token(&Secret::new(format!("{}x", token.expose()))).is_none());
        assert!(matches!(file.add("ci", &order(&[], &[], 1), now), Err(RobotsError::Exists(_))));
        file.revoke("ci").unwrap();
        assert!(file.list().unwrap().is_empty() && matches!(file.revoke("ci"), Err(RobotsError::Unknown(_))));
    }

    #[test]
    fn orders_that_make_no_sense_are_refused() {
        // Invariant 16
        let folder = tempfile::tempdir().unwrap();
        let file = RobotsFile::new(&folder.path().join("access"));
        let now = Timestamp::UNIX_EPOCH;
        let tell = |name: &str, order: &RobotOrder| file.add(name, order, now).map(|_| ()).unwrap_err().to_string();
        assert!(tell("a:b", &order(&[], &[], 1)).contains("no name"));
        assert!(tell("a", &order(&["team/*"], &[Verb::Pull], 1)).contains("no pattern"));
        assert!(tell("a", &order(&["team/**"], &[], 1)).contains("together"));
        assert!(tell("a", &order(&[], &[], 0)).contains("lasts from"));
        assert!(tell("a", &order(&[], &[], 1000)).contains("lasts from"));
        assert!(Robots::parse(b"{}").is_err() && Robots::parse(br#"{"version":2,"robots":{}}"#).is_err());
    }
}
