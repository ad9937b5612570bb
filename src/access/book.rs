//! Who is known: users and robots as their files say now.
//!
//! The files are looked at with each question, and read again when they have changed: who is removed is unknown at once.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tracing::{error, info, warn};

use super::caller::{Known, Subject};
use super::file;
use super::robots::Robots;
use super::users::Users;
use crate::files::Stamp;

/// Two changes within this time may leave the same stamp: file systems count time in ticks.
const TICK: Duration = Duration::from_millis(50);

/// The users and robots.
pub struct Book {
    users: PathBuf,
    robots: PathBuf,
    /// Whether the settings name the file of users: then there are logins, whatever became of the file.
    is_named: bool,
    entries: ArcSwap<Entries>,
    reading: Mutex<()>,
}

/// What the files said when they were last read.
pub struct Entries {
    pub users: Users,
    pub robots: Robots,
    /// Whether logins are needed: there is a file of users or robots, was one since the start, or has to be one. With
    /// nobody left in it, nobody can log in.
    pub exists: bool,
    /// Files that cannot be used, and why.
    problems: Vec<String>,
    stamps: [Stamp; 2],
    /// When they were seen to be changed; `None` once it is certain that they were read after the last change.
    unsettled: Option<Instant>,
}

impl Book {
    /// `folder`: `access/` in the data folder; `users`: another file of users.
    pub fn open(folder: &Path, users: Option<&Path>) -> Self {
        let is_named = users.is_some();
        let users = users.map_or_else(|| folder.join("users"), Path::to_owned);
        let robots = folder.join("robots.json");
        let entries = read(&users, &robots, is_named);
        entries.complain();
        Self { users, robots, is_named, entries: ArcSwap::from_pointee(entries), reading: Mutex::new(()) }
    }

    /// As the files say now.
    pub fn now(&self) -> Arc<Entries> {
        let entries = self.entries.load();
        if entries.unsettled.is_none() && entries.stamps == self.stamps() {
            return Arc::clone(&entries);
        }
        drop(entries);
        let _reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let entries = self.entries.load_full();
        let changed = entries.stamps != self.stamps();
        if !changed && entries.unsettled.is_none() {
            return entries;
        }
        // Before reading, so that the reading that settles it began after the tick.
        let settled = entries.unsettled.filter(|since| !changed && since.elapsed() >= TICK).is_some();
        let mut read = read(&self.users, &self.robots, self.is_named);
        // A file that is away, for an editor's moment or for good, opens nothing to everybody.
        read.exists |= entries.exists;
        if read.stamps == entries.stamps {
            read.unsettled = entries.unsettled.filter(|_| !settled);
        } else {
            read.report();
        }
        let read = Arc::new(read);
        self.entries.store(read.clone());
        read
    }

    /// As the files said when they were last looked at: within one request, everything is decided by the same.
    pub fn seen(&self) -> Arc<Entries> {
        self.entries.load_full()
    }

    fn stamps(&self) -> [Stamp; 2] {
        [Stamp::of(&self.users), Stamp::of(&self.robots)]
    }
}

impl Entries {
    /// Whether what a caller was identified by still holds.
    pub(super) fn still_knows(&self, known: &Known) -> bool {
        match &known.subject {
            Subject::User { name, mark } => self.users.accounts.get(name).is_some_and(
                |account| matches!(&account.caller.0.subject, Subject::User { mark: now, .. } if now == mark),
            ),
            Subject::Robot { name, mark } => self.robots.by_name.get(name).is_some_and(
                |robot| matches!(&robot.caller.0.subject, Subject::Robot { mark: now, .. } if now == mark),
            ),
            Subject::Anonymous | Subject::Certificate { .. } | Subject::Job { .. } => true,
        }
    }
}

/// What cannot be read counts as empty: then those who are in it cannot log in, and nobody else can either.
fn read(users: &Path, robots: &Path, is_named: bool) -> Entries {
    // Before reading: what changes meanwhile is read again.
    let stamps = [Stamp::of(users), Stamp::of(robots)];
    let unsettled = Some(Instant::now());
    let (mut exists, mut problems) = (is_named, Vec::new());
    let mut failed = |path: &Path, why: String| problems.push(format!("`{}` cannot be used: {why}", path.display()));
    let users = match file::read(users) {
        Ok(None) => {
            if is_named {
                failed(users, "it is not there".to_owned());
            }
            Users::default()
        }
        Ok(Some(bytes)) => {
            exists = true;
            Users::parse(&String::from_utf8_lossy(&bytes))
        }
        Err(why) => {
            exists = true;
            failed(users, why.to_string());
            Users::default()
        }
    };
    let found = file::read(robots).map_err(|why| why.to_string());
    let robots = match found.and_then(|bytes| bytes.map(|bytes| Robots::parse(&bytes)).transpose()) {
        Ok(None) => Robots::default(),
        Ok(Some(found)) => {
            exists = true;
            found
        }
        Err(why) => {
            exists = true;
            failed(robots, why);
            Robots::default()
        }
    };
    Entries { users, robots, exists, problems, stamps, unsettled }
}

impl Entries {
    /// What is wrong with the files, a sentence each.
    pub(super) fn problems(&self) -> Vec<String> {
        self.problems.iter().cloned().chain(self.broken_lines()).collect()
    }

    fn broken_lines(&self) -> impl Iterator<Item = String> {
        let broken = self.users.broken.iter();
        broken.map(|(line, why)| format!("line {line} of the users' file is left out: {why}"))
    }

    fn report(&self) {
        let (users, robots) = (self.users.accounts.len(), self.robots.by_name.len());
        info!(users, robots, "the logins have changed: {users} users and {robots} robots");
        self.complain();
    }

    fn complain(&self) {
        for problem in &self.problems {
            error!("nobody in it can log in: {problem}");
        }
        self.broken_lines().for_each(|line| warn!("{line}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::users::UsersFile;
    use crate::secret::Secret;

    #[test]
    fn a_change_is_seen_with_the_next_question() {
        let folder = tempfile::tempdir().unwrap();
        let access = folder.path().join("access");
        let book = Book::open(&access, None);
        assert!(!book.now().exists);
        let file = UsersFile::new(access.join("users"));
        file.add("alice", &Secret::new("sesame-open")).unwrap();
        let entries = book.now();
        assert!(entries.exists && entries.users.accounts.contains_key("alice"));
        let alice = entries.users.accounts["alice"].caller.clone();
        assert!(book.now().still_knows(&alice.0));
        file.set_password("alice", &Secret::new("open-sesame")).unwrap();
        assert!(!book.now().still_knows(&alice.0));
        file.remove("alice").unwrap();
        let entries = book.now();
        assert!(entries.exists && entries.users.accounts.is_empty());
    }

    #[test]
    fn a_file_that_goes_away_opens_nothing() {
        // Invariant 14
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("htpasswd");
        let named = Book::open(folder.path(), Some(&path));
        assert!(named.now().exists, "the settings name a file that is not there");
        let book = Book::open(folder.path(), None);
        assert!(!book.now().exists);
        UsersFile::new(folder.path().join("users")).add("alice", &Secret::new("sesame-open")).unwrap();
        assert!(book.now().exists);
        std::fs::remove_file(folder.path().join("users")).unwrap();
        let entries = book.now();
        assert!(entries.exists && entries.users.accounts.is_empty());
    }

    #[test]
    fn a_change_within_one_tick_is_not_missed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        let hash = bcrypt::hash("sesame-open", 4).unwrap();
        std::fs::write(&path, format!("alice:{hash}\n")).unwrap();
        let book = Book::open(folder.path(), Some(&path));
        // In place and of the same length, as an editor might.
        for name in ["bobby", "carol", "david"] {
            std::fs::write(&path, format!("{name}:{hash}\n")).unwrap();
            assert!(book.now().users.accounts.contains_key(name), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_read_lets_nobody_in() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("robots.json"), "rubbish").unwrap();
        std::fs::write(folder.path().join("users"), "rubbish").unwrap();
        let book = Book::open(folder.path(), None);
        let entries = book.now();
        assert!(entries.exists && entries.users.accounts.is_empty() && entries.robots.by_name.is_empty());
        assert_eq!(entries.problems().len(), 2, "{:?}", entries.problems());
    }

    #[test]
    fn a_link_that_leads_nowhere_lets_nobody_in() {
        // Invariant 14
        let folder = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(folder.path().join("unmounted"), folder.path().join("users")).unwrap();
        assert!(Book::open(folder.path(), None).now().exists);
        std::os::unix::fs::symlink(folder.path().join("unmounted"), folder.path().join("access")).unwrap();
        assert!(Book::open(&folder.path().join("access"), None).now().exists);
    }
}
