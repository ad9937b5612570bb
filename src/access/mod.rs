//! Who asks, and whether they may: logins, tokens and rules.
//!
//! ```text
//! identify ── nothing, Basic, Bearer ── book (users, robots) ── Caller
//!     │           │          └ token (ours), issuer (GitLab's jobs)
//!     │           └ password, behind brake and a few places
//! decide ── the token's scope, then rules (pure): caller, verb, repository -> allowed, or why not
//! issue  ── a token of ours for some of what the caller may do; keys signs it
//! ```
//! Files in `access/` of the data folder: `users` (htpasswd), `robots.json` (hashes of tokens), `keys.json`.
//!
//! Invariants kept here:
//! * 12: passwords and tokens are [`Secret`]s; nothing of them is in a log or an error.
//! * 14: a decision is about the repository that a name leads to, and is taken before the store is asked.
//! * 17: what is remembered, hashed at one time, waited for and read has a bound.
//! * What a token says is checked against the users, robots and rules of now: who is removed is out at once.

mod book;
mod brake;
mod caller;
mod certificate;
mod explain;
mod file;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod identify;
mod issuer;
mod keys;
mod known;
mod member;
mod password;
mod robots;
mod rules;
mod scope;
mod settings;
mod token;
mod users;

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::Semaphore;

pub use self::brake::{ACCOUNT_TRIES, ADDRESS_TRIES, WAIT_MAX};
pub use self::caller::{Caller, Grants, Mark, Subject, Verb, Verbs};
pub use self::explain::{Explanation, Question, explain};
pub use self::issuer::IssuerError;
pub use self::keys::KeysError;
pub use self::password::{HashError, PASSWORD_BYTES_MAX};
pub use self::robots::{RobotOrder, RobotRecord, RobotsError, RobotsFile, TOKEN_PREFIX};
pub use self::rules::{Grounds, Mode, Private, Reason, Rules};
pub use self::scope::{SCOPES_MAX, Scope};
pub use self::settings::{AccessSettings, IssuerSettings, RuleSettings, Signature};
pub use self::users::{BrokenLine, UsersError, UsersFile};

use self::book::{Book, Entries};
use self::brake::Brake;
use self::issuer::Issuer;
use self::keys::Keys;
use self::known::Remembered;
use self::rules::Members;
use self::token::{NoToken, Use};
use crate::clock::Clock;
use crate::gate::Gate;
use crate::names::{Repository, Routes};
use crate::secret::Secret;

/// Passwords that are hashed at one time: each takes some 20 MiB and a processor.
const HASHING_MAX: usize = 2;
/// Logins that may wait for a place among them.
const WAITING_MAX: usize = 64;

/// Logins and rules. Cheap to clone.
#[derive(Clone)]
pub struct Access(Arc<Inner>);

struct Inner {
    rules: Rules,
    book: Book,
    keys: Keys,
    issuers: Vec<Arc<Issuer>>,
    brake: Brake,
    remembered: Remembered,
    hashing: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    anonymous: Caller,
    /// Who may read the metrics without being allowed anything else.
    watchers: Members,
    token_life: SignedDuration,
    refresh_life: SignedDuration,
    realm: Option<String>,
    clock: Clock,
}

/// What a client shows of itself. No Debug: it holds what must not be printed.
pub enum Shown {
    Nothing,
    /// Something that is neither a password nor a token.
    Unreadable,
    Basic {
        username: String,
        password: Secret,
    },
    Bearer(Secret),
}

/// Where a client stands.
#[derive(Clone, Copy, Debug)]
pub struct Visitor<'a> {
    pub address: IpAddr,
    /// Who it is by its certificate, if it showed one and TLS has checked it.
    pub certificate: Option<&'a Caller>,
}

/// Why a client is not identified.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unidentified {
    #[error("the `Authorization` header is neither Basic nor Bearer credentials")]
    Unreadable,
    #[error("the name or the password is wrong")]
    WrongPassword,
    /// Also a token of a user or robot that is no more.
    #[error("the token is invalid, expired or revoked; log in again")]
    InvalidToken,
    #[error("the token is not taken: {0}")]
    NotTaken(&'static str),
    #[error("the keys of the token's issuer cannot be had; the server's log says why")]
    NoKeys,
    #[error("too many failed logins; try again in {} s", wait.as_secs() + 1)]
    TooManyFailures { wait: Duration },
    #[error("too many logins at once; try again in a moment")]
    Busy,
}

impl Unidentified {
    /// Seconds until it may be tried again, where that is all that is wrong.
    pub fn retry_after(&self) -> Option<u64> {
        match self {
            Self::TooManyFailures { wait } => Some(wait.as_millis().div_ceil(1000) as u64),
            Self::Busy => Some(1),
            _ => None,
        }
    }
}

/// Why a caller may not do something. The same whether or not what it asks for exists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denial {
    /// Nobody has logged in; who does may be allowed.
    LogIn(Reason),
    /// The rules allow it, but the token that was shown was made for something else.
    OutOfScope,
    Forbidden,
}

/// Why logins and rules cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    #[error(transparent)]
    Keys(#[from] KeysError),
}

impl AccessError {
    /// What the reader can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Issuer(_) => None,
            Self::Keys(why) => Some(why.hint()),
        }
    }
}

/// A token that was made.
pub struct Issued {
    pub token: Secret,
    pub refresh: Option<Secret>,
    pub issued_at: Timestamp,
    /// Seconds.
    pub expires_in: i64,
}

/// What `sealock status` says of logins and rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AccessReport {
    /// Everybody may do everything,
    pub open: bool,
    /// but for what upstreams with credentials gave, which needs a login.
    #[serde(default)]
    pub private: bool,
    pub rules: usize,
    pub users: usize,
    pub robots: usize,
}

impl Access {
    /// Reads files; asks nobody. `watchers`: who may read the metrics, as in a rule's `to`.
    pub fn open(
        settings: &AccessSettings,
        watchers: &[String],
        data: &Path,
        routes: Arc<Routes>,
        private: Private,
        gate: &Gate,
        clock: Clock,
    ) -> Result<Self, AccessError> {
        let folder = folder(data);
        let issuers = settings.issuer.iter().map(|(name, issuer)| Issuer::new(name, issuer, gate).map(Arc::new));
        let life = |span: crate::size::Span| SignedDuration::try_from(span.0).unwrap_or_default();
        let (token_life, refresh_life) = (life(settings.token_life), life(settings.refresh_life));
        Ok(Self(Arc::new(Inner {
            rules: Rules::new(settings, routes, private),
            book: Book::open(&folder, settings.htpasswd.as_deref()),
            keys: Keys::open(&folder, token_life.max(refresh_life))?,
            issuers: issuers.collect::<Result<_, _>>()?,
            brake: Brake::new(),
            remembered: Remembered::new(),
            hashing: Arc::new(Semaphore::new(HASHING_MAX)),
            waiting: Arc::new(Semaphore::new(WAITING_MAX)),
            anonymous: Caller::new(Subject::Anonymous, None, None),
            watchers: Members::new(watchers, settings),
            token_life,
            refresh_life,
            realm: settings.realm.clone(),
            clock,
        })))
    }

    /// The token endpoint's URL, where the settings name it.
    pub fn realm(&self) -> Option<&str> {
        self.0.realm.as_deref()
    }

    /// Whether anonymous callers may do all that there is to do, so that no client needs to log in.
    pub fn needs_no_login(&self) -> bool {
        let entries = self.0.book.seen();
        let mode = self.0.mode(&entries);
        let may = |verb| self.0.rules.everywhere(mode, &Subject::Anonymous, None, verb).is_ok();
        Verbs::CONTENT.iter().all(may)
    }

    /// Whether there is nobody who could log in.
    pub fn knows_nobody(&self) -> bool {
        self.0.mode(&self.0.book.seen()) == Mode::Open
    }

    /// Who a refresh token is for.
    pub fn refresh(&self, token: &Secret) -> Result<Caller, Unidentified> {
        let inner = &self.0;
        let caller = token::check(&inner.keys, Use::Refresh, token, inner.clock.now());
        let caller = caller.filter(|caller| inner.still_holds(&inner.book.now(), caller));
        caller.ok_or(Unidentified::InvalidToken)
    }

    /// Whether `caller` may do this. By the token's scope and by the rules, users and robots of now.
    pub fn decide(&self, caller: &Caller, verb: Verb, repository: &Repository) -> Result<(), Denial> {
        let inner = &self.0;
        match inner.judge(&inner.book.seen(), caller, verb, repository) {
            Err(why) if caller.is_anonymous() => Err(Denial::LogIn(why)),
            Err(_) => Err(Denial::Forbidden),
            Ok(_) if caller.0.grants.as_ref().is_none_or(|grants| grants.covers(repository, verb)) => Ok(()),
            Ok(_) => Err(Denial::OutOfScope),
        }
    }

    /// As [`Access::decide`], for all that there is. Only who may do this everywhere learns that a name leads nowhere, and
    /// gives orders to the server itself.
    pub fn decide_everywhere(&self, caller: &Caller, verb: Verb) -> Result<(), Denial> {
        let entries = self.0.book.seen();
        let (mode, scope) = (self.0.mode(&entries), self.0.robot_scope(&entries, caller));
        match self.0.rules.everywhere(mode, &caller.0.subject, scope, verb) {
            Ok(_) if !caller.is_scoped() => Ok(()),
            Ok(_) => Err(Denial::OutOfScope),
            Err(_) if caller.is_anonymous() => Err(Denial::LogIn(Reason::NotLoggedIn)),
            Err(_) => Err(Denial::Forbidden),
        }
    }

    /// Whether the caller may ask for the list of repositories; which of them it sees is [`Access::may_pull`]'s to say.
    pub fn decide_catalog(&self, caller: &Caller) -> Result<(), Denial> {
        let entries = self.0.book.seen();
        let (mode, scope) = (self.0.mode(&entries), self.0.robot_scope(&entries, caller));
        match self.0.rules.somewhere(mode, &caller.0.subject, scope, Verb::Pull) {
            true if caller.0.grants.as_ref().is_none_or(|grants| grants.catalog) => Ok(()),
            true => Err(Denial::OutOfScope),
            false if caller.is_anonymous() => Err(Denial::LogIn(Reason::NotLoggedIn)),
            false => Err(Denial::Forbidden),
        }
    }

    /// Whether there is something that the caller may give orders about; what that is, [`Access::decide`] says.
    pub fn may_order_somewhere(&self, caller: &Caller) -> bool {
        let entries = self.0.book.seen();
        let (mode, scope) = (self.0.mode(&entries), self.0.robot_scope(&entries, caller));
        !caller.is_scoped() && self.0.rules.somewhere(mode, &caller.0.subject, scope, Verb::Admin)
    }

    /// Whether the caller may read the metrics: who may give all orders, and those that the settings name for it.
    pub fn may_watch(&self, caller: &Caller) -> bool {
        let is_named = !caller.is_scoped() && self.0.watchers.admits(&caller.0.subject);
        is_named || self.decide_everywhere(caller, Verb::Admin).is_ok()
    }

    /// Whether the rules let the caller read the repository, whatever a token's scope says.
    pub fn may_pull(&self, caller: &Caller, repository: &Repository) -> bool {
        self.0.judge(&self.0.book.seen(), caller, Verb::Pull, repository).is_ok()
    }

    /// Makes a token for as much of `scopes` as the caller may now; with `offline`, one to get more with.
    pub async fn issue(&self, caller: &Caller, scopes: &[Scope], offline: bool) -> Result<Issued, NoToken> {
        let (access, caller, scopes) = (self.clone(), caller.clone(), scopes.to_vec());
        let issued = tokio::task::spawn_blocking(move || access.0.issue(&caller, &scopes, offline)).await;
        issued.unwrap_or(Err(NoToken::Stopped))
    }

    pub fn report(&self) -> AccessReport {
        let entries = self.0.book.now();
        AccessReport {
            open: self.0.mode(&entries) == Mode::Open,
            private: self.0.rules.has_private(),
            rules: self.0.rules.len(),
            users: entries.users.accounts.len(),
            robots: entries.robots.by_name.len(),
        }
    }
}

impl Inner {
    /// Claims that somebody is known by.
    fn claims(&self) -> HashSet<&str> {
        self.rules.claims().into_iter().chain(self.watchers.claims()).collect()
    }

    fn mode(&self, entries: &Entries) -> Mode {
        Mode::of(&self.rules, entries.exists)
    }

    /// Whether who a token was made for is still who it was.
    fn still_holds(&self, entries: &Entries, caller: &Caller) -> bool {
        match &caller.0.subject {
            Subject::Job { issuer, .. } => self.issuers.iter().any(|known| known.name() == issuer),
            _ => entries.still_knows(&caller.0),
        }
    }

    fn robot_scope<'a>(&self, entries: &'a Entries, caller: &Caller) -> Option<&'a rules::RobotScope> {
        let Subject::Robot { name, .. } = &caller.0.subject else { return None };
        Some(&entries.robots.by_name.get(name)?.scope)
    }

    fn judge(
        &self,
        entries: &Entries,
        caller: &Caller,
        verb: Verb,
        repository: &Repository,
    ) -> Result<Grounds, Reason> {
        let scope = self.robot_scope(entries, caller);
        self.rules.judge(self.mode(entries), &caller.0.subject, scope, verb, repository)
    }

    fn issue(&self, caller: &Caller, scopes: &[Scope], offline: bool) -> Result<Issued, NoToken> {
        let entries = self.book.now();
        let mut grants = Grants::default();
        for scope in scopes {
            match scope {
                Scope::Catalog => grants.catalog = true,
                Scope::Repository { name, verbs } => {
                    let Ok(target) = self.rules.routes().resolve(name, None) else { continue };
                    let may = |verb: &Verb| self.judge(&entries, caller, *verb, &target.repository).is_ok();
                    let verbs: Verbs = verbs.iter().filter(may).collect();
                    if !verbs.is_empty() {
                        grants.repositories.push((target.repository, verbs));
                    }
                }
            }
        }
        let now = self.clock.now();
        let until = |life| caller.0.ends_at.map_or(now + life, |ends_at| ends_at.min(now + life));
        let (subject, ends_at) = (&caller.0.subject, until(self.token_life));
        let token = token::sign(&self.keys, Use::Access, subject, &grants, now, ends_at)?;
        // Without a login there is nothing to spare the client; a certificate is shown anew with every connection.
        let lasting = matches!(subject, Subject::User { .. } | Subject::Robot { .. } | Subject::Job { .. });
        let refresh = if offline && lasting && !self.refresh_life.is_zero() {
            let ends_at = until(self.refresh_life);
            Some(token::sign(&self.keys, Use::Refresh, subject, &Grants::default(), now, ends_at)?)
        } else {
            None
        };
        Ok(Issued { token, refresh, issued_at: now, expires_in: ends_at.duration_since(now).as_secs() })
    }
}

impl Denial {
    /// For the log and for messages.
    pub fn reason(&self) -> String {
        match self {
            Self::LogIn(why) => why.to_string(),
            Self::OutOfScope => "the token was made for something else".to_owned(),
            Self::Forbidden => Reason::NoRule.to_string(),
        }
    }
}

/// What a look at the files that the settings name or the commands wrote found, a sentence each.
#[derive(Debug, Default)]
pub struct Findings {
    pub problems: Vec<String>,
    /// Perhaps meant so.
    pub notes: Vec<String>,
}

/// Looks at the files. `watchers`: as for [`Access::open`].
pub fn look(settings: &AccessSettings, watchers: &[String], data: &Path) -> Findings {
    let entries = Book::open(&folder(data), settings.htpasswd.as_deref()).now();
    let mut problems = entries.problems();
    // Who is missing may be in what cannot be read.
    let notes = if problems.is_empty() { explain::missing(settings, watchers, &entries) } else { Vec::new() };
    let of_issuer = |(name, issuer)| Some(format!("[access.issuer.{name}] {}", Issuer::problem(issuer)?));
    problems.extend(settings.issuer.iter().filter_map(of_issuer));
    Findings { problems, notes }
}

/// `access/` in the data folder.
pub fn folder(data: &Path) -> PathBuf {
    data.join("access")
}

/// The users' file: that of the settings, or our own.
pub fn users_file(settings: &AccessSettings, data: &Path) -> UsersFile {
    UsersFile::new(settings.htpasswd.clone().unwrap_or_else(|| folder(data).join("users")))
}
