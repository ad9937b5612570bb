//! The users: lines of an `htpasswd` file, read and changed.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use super::caller::{Caller, Mark, Subject};
use super::file;
use super::password::{Hash, HashError};
use crate::secret::Secret;

/// Longest name of a user or robot.
pub const NAME_MAX: usize = 128;

/// A user that can log in.
pub struct Account {
    pub(super) hash: Hash,
    pub(super) caller: Caller,
}

/// The users of a file, and its lines that are of no use.
#[derive(Default)]
pub struct Users {
    pub(super) accounts: HashMap<String, Account>,
    /// Names in the order of their marks, which nobody outside can guess: see [`Users::stand_in`].
    order: Vec<String>,
    pub(super) broken: Vec<BrokenLine>,
}

/// A line's number, from 1, and what is wrong with it.
pub type BrokenLine = (usize, String);

/// A users file, as the commands change it.
pub struct UsersFile(PathBuf);

/// Why the users cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    #[error("cannot read or write the users in `{}`", path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{0}` is no name for a user; write letters, digits and `.`, `_`, `@`, `+`, `-`, at most {NAME_MAX}")]
    Name(String),
    #[error("there is a user `{0}` already; set the password with `sealock user passwd {0}`")]
    Exists(String),
    #[error("there is no user `{0}`")]
    Unknown(String),
    #[error(transparent)]
    Password(#[from] HashError),
}

/// Whether users and robots may be called so: names stand in settings, logs and `Basic` credentials.
pub fn is_name(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._@+-".contains(&byte);
    (1..=NAME_MAX).contains(&text.len()) && text.bytes().all(fits) && !text.starts_with('-')
}

impl Users {
    pub fn parse(text: &str) -> Self {
        let mut users = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Err(why) = users.add(line) {
                users.broken.push((number + 1, why));
            }
        }
        let mut order: Vec<(String, String)> =
            users.accounts.iter().map(|(name, account)| (mark(name, &account.hash).0, name.clone())).collect();
        order.sort();
        users.order = order.into_iter().map(|(_, name)| name).collect();
        users
    }

    fn add(&mut self, line: &str) -> Result<(), String> {
        let (name, hash) = line.split_once(':').ok_or("it is not `name:hash`")?;
        if name.is_empty() || name.len() > NAME_MAX || name.chars().any(char::is_control) {
            return Err("its name is empty, too long, or holds control characters".to_owned());
        }
        let hash = Hash::parse(hash.trim()).map_err(|why| format!("user `{name}`: {why}"))?;
        let mark = mark(name, &hash);
        let caller = Caller::new(Subject::User { name: name.to_owned(), mark }, None, None);
        // As for Apache, the first line of a name counts.
        match self.accounts.entry(name.to_owned()) {
            std::collections::hash_map::Entry::Occupied(_) => Err(format!("user `{name}` stands there twice")),
            std::collections::hash_map::Entry::Vacant(entry) => {
                entry.insert(Account { hash, caller });
                Ok(())
            }
        }
    }

    /// The hash that an unknown name's password is held against, so that it takes as long as a known one's: that of one
    /// of the users, always the same for a name. `None` without users.
    pub(super) fn stand_in(&self, number: u64) -> Option<&Hash> {
        let index = (number % (self.order.len() as u64).max(1)) as usize;
        Some(&self.accounts.get(self.order.get(index)?)?.hash)
    }
}

/// A few bytes of a hash of the line: enough to see that it changed, no help to who would guess the password.
fn mark(name: &str, hash: &Hash) -> Mark {
    let mut of = Sha256::new();
    of.update(name.as_bytes());
    of.update([0]);
    of.update(hash.expose().as_bytes());
    Mark(hex::encode(&of.finalize()[..12]))
}

impl UsersFile {
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Names, sorted, and lines that are of no use.
    pub fn list(&self) -> Result<(Vec<String>, Vec<BrokenLine>), UsersError> {
        let users = Users::parse(&self.text()?);
        let mut names: Vec<String> = users.accounts.into_keys().collect();
        names.sort();
        Ok((names, users.broken))
    }

    /// Whether the name could be added, before its password is asked for.
    pub fn check_new(&self, name: &str) -> Result<(), UsersError> {
        check_name(name)?;
        if self.has(name)? { Err(UsersError::Exists(name.to_owned())) } else { Ok(()) }
    }

    /// Whether there is such a user, before its password is asked for.
    pub fn check_known(&self, name: &str) -> Result<(), UsersError> {
        if self.has(name)? { Ok(()) } else { Err(UsersError::Unknown(name.to_owned())) }
    }

    pub fn add(&self, name: &str, password: &Secret) -> Result<(), UsersError> {
        check_name(name)?;
        let hash = Hash::new(password)?;
        self.change(|lines| {
            if lines.iter().any(|line| is_of(line, name)) {
                return Err(UsersError::Exists(name.to_owned()));
            }
            lines.push(format!("{name}:{}", hash.expose()));
            Ok(())
        })
    }

    /// Sets a known user's password; what was handed out before is void.
    pub fn set_password(&self, name: &str, password: &Secret) -> Result<(), UsersError> {
        let hash = Hash::new(password)?;
        self.change(|lines| {
            let line = lines.iter_mut().find(|line| is_of(line, name));
            *line.ok_or_else(|| UsersError::Unknown(name.to_owned()))? = format!("{name}:{}", hash.expose());
            Ok(())
        })
    }

    pub fn remove(&self, name: &str) -> Result<(), UsersError> {
        self.change(|lines| {
            let before = lines.len();
            lines.retain(|line| !is_of(line, name));
            if lines.len() == before { Err(UsersError::Unknown(name.to_owned())) } else { Ok(()) }
        })
    }

    /// Comments and other lines stay as they are.
    fn change(&self, change: impl FnOnce(&mut Vec<String>) -> Result<(), UsersError>) -> Result<(), UsersError> {
        let io = |source| UsersError::Io { path: self.0.clone(), source };
        let _lock = file::lock(&self.0).map_err(io)?;
        let mut lines: Vec<String> = self.text()?.lines().map(str::to_owned).collect();
        change(&mut lines)?;
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        file::replace(&self.0, text.as_bytes()).map_err(io)
    }

    fn has(&self, name: &str) -> Result<bool, UsersError> {
        Ok(self.text()?.lines().any(|line| is_of(line, name)))
    }

    fn text(&self) -> Result<String, UsersError> {
        let io = |source| UsersError::Io { path: self.0.clone(), source };
        let bytes = file::read(&self.0).map_err(io)?.unwrap_or_default();
        String::from_utf8(bytes).map_err(|why| io(io::Error::other(why.utf8_error())))
    }
}

fn check_name(name: &str) -> Result<(), UsersError> {
    if is_name(name) { Ok(()) } else { Err(UsersError::Name(name.chars().take(200).collect())) }
}

fn is_of(line: &str, name: &str) -> bool {
    line.trim().split_once(':').is_some_and(|(of, _)| of == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_line_is_reported_and_breaks_no_other() {
        let good = bcrypt::hash("sesame-open", 4).unwrap();
        let users =
            Users::parse(&format!("# staff\nalice:{good}\n\nbob\ncarol:$apr1$x$y\nalice:{good}\ndave:{good}\n"));
        let mut names: Vec<_> = users.accounts.keys().cloned().collect();
        names.sort();
        assert_eq!(names, ["alice", "dave"]);
        assert_eq!(users.broken.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [4, 5, 6]);
        let told: String = users.broken.iter().map(|(_, why)| why.as_str()).collect();
        assert!(!told.contains("$apr1") && !told.contains(&good), "{told}");
    }

    #[test]
    fn users_come_go_and_change_their_password() {
        let folder = tempfile::tempdir().unwrap();
        let file = UsersFile::new(folder.path().join("access/users"));
        let (first, second) = (Secret::new("sesame-open"), Secret::new("open-sesame"));
        file.add("alice", &first).unwrap();
        file.add("bob@site", &first).unwrap();
        assert!(matches!(file.add("alice", &first), Err(UsersError::Exists(_))));
        for wrong in ["", "a:b", "a b", "-x", "ä", "a\nb"] {
            assert!(matches!(file.add(wrong, &first), Err(UsersError::Name(_))), "{wrong}");
        }
        let marks = || {
            let users = Users::parse(&file.text().unwrap());
            ["alice", "bob@site"].map(|name| users.accounts[name].caller.0.subject.clone())
        };
        let before = marks();
        file.set_password("alice", &second).unwrap();
        let after = marks();
        assert!(before[0] != after[0] && before[1] == after[1]);
        let users = Users::parse(&file.text().unwrap());
        assert!(users.accounts["alice"].hash.is_of(&second) && !users.accounts["alice"].hash.is_of(&first));
        file.remove("alice").unwrap();
        assert!(matches!(file.remove("alice"), Err(UsersError::Unknown(_))));
        assert_eq!(file.list().unwrap().0, ["bob@site"]);
    }

    #[test]
    fn an_unknown_name_is_held_against_a_real_hash() {
        let users = Users::parse(&format!("alice:{}\n", bcrypt::hash("sesame-open", 4).unwrap()));
        assert!(users.stand_in(u64::MAX).is_some_and(|hash| hash == &users.accounts["alice"].hash));
        assert!(Users::default().stand_in(3).is_none());
    }
}
