//! From what a client shows to who it is.
//!
//! Tokens and robots are looked up; a password takes its time, the same for every name. Whoever was let in a moment ago is
//! known by a hash, if nothing about them has changed since.

use std::net::IpAddr;
use std::sync::Arc;

use tracing::{debug, info};

use super::book::Entries;
use super::caller::Caller;
use super::issuer::NotTaken;
use super::robots::TOKEN_PREFIX;
use super::rules::Mode;
use super::token::{self, Use};
use super::{Access, Inner, Shown, Unidentified, Visitor, known, password, users};
use crate::secret::Secret;

impl Access {
    /// Who asks. Memory alone is asked where it can be; a password that is not remembered takes its time. Where
    /// everybody may do everything with content, nobody has a login, and what is shown does not matter; but see
    /// [`Inner::in_the_open`].
    pub async fn identify(&self, shown: Shown, from: Visitor<'_>) -> Result<Caller, Unidentified> {
        let inner = &self.0;
        // The one look at the files of a request.
        let entries = inner.book.now();
        if inner.mode(&entries) == Mode::Open {
            return Ok(inner.in_the_open(&shown, from, &entries));
        }
        let caller = match shown {
            Shown::Nothing => return Ok(inner.without_login(from)),
            Shown::Unreadable => return Err(Unidentified::Unreadable),
            Shown::Bearer(token) => inner.bearer(token, &entries).await?,
            // Boxed: what a hash needs would be moved with every request.
            Shown::Basic { username, password } => Box::pin(self.basic(username, password, from, &entries)).await?,
        };
        // An anonymous token says no more than its scope: what the connection's certificate says stays true.
        if caller.is_anonymous() && from.certificate.is_some() {
            return Ok(inner.without_login(from));
        }
        Ok(caller)
    }

    async fn basic(
        &self,
        username: String,
        password: Secret,
        from: Visitor<'_>,
        entries: &Entries,
    ) -> Result<Caller, Unidentified> {
        if username.is_empty() && password.expose().is_empty() {
            // What skopeo sends where it has nothing to log in with.
            return Ok(self.0.without_login(from));
        }
        if let Some(caller) = self.0.robot(entries, &password, Some(&username)) {
            return Ok(caller);
        }
        if let Some(caller) = self.0.job(&password).await {
            return caller;
        }
        self.user(username, password, from.address, entries).await
    }

    /// The one way for all names: known or not, they are waited for, hashed and counted alike.
    async fn user(
        &self,
        username: String,
        password: Secret,
        address: IpAddr,
        entries: &Entries,
    ) -> Result<Caller, Unidentified> {
        let inner = &self.0;
        if let Some(caller) = inner.remembered(entries, &username, &password) {
            inner.brake.returned(&username, address, inner.clock.now());
            return Ok(caller);
        }
        inner.check_brake(&username, address)?;
        if password.expose().len() > password::PASSWORD_BYTES_MAX || username.len() > users::NAME_MAX {
            inner.brake.failed(&username, address, inner.clock.now());
            return Err(Unidentified::WrongPassword);
        }
        let waiting = Arc::clone(&inner.waiting).try_acquire_owned().map_err(|_| Unidentified::Busy)?;
        let place = Arc::clone(&inner.hashing).acquire_owned().await.map_err(|_| Unidentified::Busy)?;
        drop(waiting);
        // Others may have guessed, or been let in, while this waited.
        inner.check_brake(&username, address)?;
        if let Some(caller) = inner.remembered(&inner.book.now(), &username, &password) {
            return Ok(caller);
        }
        let access = self.clone();
        // To the end also when the client goes away: a guess that is not waited for counts too.
        let hashed = tokio::task::spawn_blocking(move || {
            let _place = place;
            access.0.check_password(&username, &password, address)
        });
        hashed.await.unwrap_or(Err(Unidentified::Busy))
    }
}

impl Inner {
    fn without_login(&self, from: Visitor<'_>) -> Caller {
        from.certificate.unwrap_or(&self.anonymous).clone()
    }

    /// Who asks where everybody may do everything. What was had with credentials is kept from them all the same, so
    /// `/v2/` sends clients for an anonymous token: that one is taken, or they would be sent for it again and again.
    fn in_the_open(&self, shown: &Shown, from: Visitor<'_>, entries: &Entries) -> Caller {
        let token = match shown {
            Shown::Bearer(token) if self.rules.has_private() && from.certificate.is_none() => self.ours(token, entries),
            _ => None,
        };
        token.filter(Caller::is_anonymous).unwrap_or_else(|| self.without_login(from))
    }

    async fn bearer(&self, token: Secret, entries: &Entries) -> Result<Caller, Unidentified> {
        if let Some(caller) = self.ours(&token, entries).or_else(|| self.robot(entries, &token, None)) {
            return Ok(caller);
        }
        self.job(&token).await.unwrap_or(Err(Unidentified::InvalidToken))
    }

    /// Who a token of ours is for, if it is good now.
    fn ours(&self, token: &Secret, entries: &Entries) -> Option<Caller> {
        let (now, key) = (self.clock.now(), known::hash_of(token));
        let caller = match self.remembered.token(&key) {
            Some(caller) => caller,
            None => {
                let caller = token::check(&self.keys, Use::Access, token, now)?;
                self.remembered.keep_token(key, &caller);
                caller
            }
        };
        let good = caller.0.ends_at.is_none_or(|ends_at| now < ends_at) && self.still_holds(entries, &caller);
        good.then_some(caller)
    }

    /// The robot whose token this is, if it has not expired; where a name is given with it, it must be the robot's.
    fn robot(&self, entries: &Entries, token: &Secret, username: Option<&str>) -> Option<Caller> {
        if !token.expose().starts_with(TOKEN_PREFIX) {
            return None;
        }
        let (name, robot) = entries.robots.of_token(token)?;
        let good = username.is_none_or(|username| username == name) && self.clock.now() < robot.expires_at;
        good.then(|| robot.caller.clone())
    }

    /// The job whose token this is; `None` where it claims to be of no issuer that is known.
    async fn job(&self, token: &Secret) -> Option<Result<Caller, Unidentified>> {
        let iss = token::claimed_issuer(token)?;
        let issuer = self.issuers.iter().find(|issuer| issuer.is(&iss))?;
        let (now, key) = (self.clock.now(), known::hash_of(token));
        if let Some(caller) = self.remembered.job(&key, now) {
            return Some(Ok(caller));
        }
        Some(match issuer.check(token, &self.claims(), now).await {
            Ok(caller) => {
                debug!(caller = %caller, "a token of `{iss}` is taken for {caller}");
                self.remembered.keep_job(key, &caller, now);
                Ok(caller)
            }
            Err(NotTaken::Invalid(why)) => {
                info!("a token of `{iss}` is not taken: {why}");
                Err(Unidentified::NotTaken(why))
            }
            Err(NotTaken::NoKeys) => Err(Unidentified::NoKeys),
        })
    }

    fn remembered(&self, entries: &Entries, username: &str, password: &Secret) -> Option<Caller> {
        let caller = self.remembered.password(username, password, self.clock.now())?;
        entries.still_knows(&caller.0).then_some(caller)
    }

    fn check_brake(&self, username: &str, address: IpAddr) -> Result<(), Unidentified> {
        match self.brake.wait(username, address, self.clock.now()) {
            Some(wait) => Err(Unidentified::TooManyFailures { wait }),
            None => Ok(()),
        }
    }

    /// Takes long on purpose; as long for names that nobody has.
    fn check_password(&self, username: &str, password: &Secret, address: IpAddr) -> Result<Caller, Unidentified> {
        let entries = self.book.now();
        let account = entries.users.accounts.get(username);
        let hash = account.map(|account| &account.hash);
        let hash = hash.or_else(|| entries.users.stand_in(self.remembered.number_of(username)));
        let fits = hash.is_some_and(|hash| hash.is_of(password));
        let now = self.clock.now();
        match account.filter(|_| fits) {
            Some(account) => {
                self.brake.succeeded(username, address, now);
                self.remembered.keep_password(username, password, &account.caller, now);
                Ok(account.caller.clone())
            }
            None => {
                self.brake.failed(username, address, now);
                // Of the name only that it is one: what stands there may be a password in the wrong field.
                info!(client = %address, known = account.is_some(), "a login from {address} failed");
                Err(Unidentified::WrongPassword)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::path::Path;

    use futures_util::future::join_all;

    use crate::access::password::CHECKED;
    use crate::access::{
        Access, AccessSettings, HASHING_MAX, Shown, Unidentified, UsersFile, Visitor, WAITING_MAX, folder,
    };
    use crate::clock::Clock;
    use crate::gate::{AuditSettings, Gate, GateSettings};
    use crate::secret::Secret;

    /// With one user, alice.
    fn access(data: &Path) -> Access {
        UsersFile::new(folder(data).join("users")).add("alice", &Secret::new("sesame-open")).unwrap();
        let (clock, settings) = (Clock::system(), AccessSettings::default());
        let gate = Gate::load_with(&GateSettings::default(), &AuditSettings::default(), data, clock.clone()).unwrap();
        Access::open(&settings, &[], data, Default::default(), Default::default(), &gate, clock).unwrap()
    }

    #[tokio::test]
    async fn so_many_passwords_are_hashed_and_wait_and_the_others_come_back() {
        // Invariant 17
        const TOO_MANY: usize = 10;
        let data = tempfile::tempdir().unwrap();
        let access = access(data.path());
        // Each from an address of its own: none of them is slowed down.
        let logins = (0..HASHING_MAX + WAITING_MAX + TOO_MANY).map(|number| {
            let (username, password) = (format!("user{number}"), Secret::new("sesame-shut"));
            let visitor = Visitor { address: IpAddr::from([10, 0, 0, number as u8]), certificate: None };
            access.identify(Shown::Basic { username, password }, visitor)
        });
        let outcomes = join_all(logins).await;
        let count = |wanted: fn(&Unidentified) -> bool| {
            outcomes.iter().filter(|outcome| outcome.as_ref().is_err_and(wanted)).count()
        };
        let busy = count(|why| matches!(why, Unidentified::Busy));
        let wrong = count(|why| matches!(why, Unidentified::WrongPassword));
        assert_eq!((busy, wrong), (TOO_MANY, HASHING_MAX + WAITING_MAX));
    }

    #[tokio::test]
    async fn a_name_that_nobody_has_is_hashed_for_like_any_other() {
        // Invariant 16
        let data = tempfile::tempdir().unwrap();
        let access = access(data.path());
        for (name, good) in [("alice", true), ("alice", false), ("nobody", false), ("", false), ("alice ", false)] {
            let before = CHECKED.get();
            let password = Secret::new(if good { "sesame-open" } else { "sesame-shut" });
            let entered = access.0.check_password(name, &password, "10.0.0.1".parse().unwrap());
            assert_eq!((entered.is_ok(), CHECKED.get() - before), (good, 1), "{name:?}");
        }
    }
}
