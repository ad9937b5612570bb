//! Slows down who guesses passwords: by address and by account, known or not.
//!
//! Where an account logged in lately, only failures from there count against it there: whoever guesses at it from
//! elsewhere keeps nobody out of the own account.

use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use quick_cache::sync::Cache;

/// Failures that cost nothing, of one account and of one address; behind an address may stand many people.
pub const ACCOUNT_TRIES: u32 = 5;
pub const ADDRESS_TRIES: u32 = 30;
/// Longest wait that failures add up to.
pub const WAIT_MAX: Duration = Duration::from_secs(60);
/// Failures are forgotten when none was added for so long.
const FORGOTTEN_AFTER: SignedDuration = SignedDuration::from_mins(15);
/// A network is an account's own for so long after a login from there.
const HOME_FOR: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Accounts, networks, and pairs of the two that are remembered.
const REMEMBERED_MAX: usize = 10_000;

/// Failed logins. Guesses at accounts that do not exist count as those at others do.
pub struct Brake {
    /// From networks that are not the account's own.
    accounts: Cache<u64, Tries>,
    networks: Cache<IpAddr, Tries>,
    /// By account and network: where accounts logged in.
    homes: Cache<u64, Home>,
    /// So that nobody can choose names that fall together.
    seed: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tries {
    failed: u32,
    last: Timestamp,
}

#[derive(Clone, Copy, Debug)]
struct Home {
    logged_in_at: Timestamp,
    tries: Tries,
}

impl Brake {
    pub fn new() -> Self {
        let (accounts, networks, homes) =
            (Cache::new(REMEMBERED_MAX), Cache::new(REMEMBERED_MAX), Cache::new(REMEMBERED_MAX));
        Self { accounts, networks, homes, seed: fastrand::u64(..) }
    }

    /// How long until this account may be tried again from this address; `None`: now.
    pub fn wait(&self, account: &str, address: IpAddr, now: Timestamp) -> Option<Duration> {
        let network = network(address);
        let account = match self.home(account, network, now) {
            Some((_, home)) => Some(home.tries),
            None => self.accounts.get(&self.key(account)),
        };
        let account = account.and_then(|tries| tries.wait(ACCOUNT_TRIES, now));
        let network = self.networks.get(&network).and_then(|tries| tries.wait(ADDRESS_TRIES, now));
        account.max(network)
    }

    pub fn failed(&self, account: &str, address: IpAddr, now: Timestamp) {
        let network = network(address);
        match self.home(account, network, now) {
            Some((key, home)) => self.homes.insert(key, Home { tries: Tries::and_one(Some(home.tries), now), ..home }),
            None => {
                let account = self.key(account);
                self.accounts.insert(account, Tries::and_one(self.accounts.get(&account), now));
            }
        }
        self.networks.insert(network, Tries::and_one(self.networks.get(&network), now));
    }

    /// Forgets the account's failures from there; not the address's, where one good login would buy more guesses at
    /// others.
    pub fn succeeded(&self, account: &str, address: IpAddr, now: Timestamp) {
        let home = Home { logged_in_at: now, tries: Tries::default() };
        self.homes.insert(self.key((account, network(address))), home);
    }

    /// Was let in by what is remembered of an earlier login: it is at home there still. Forgets no failures.
    pub fn returned(&self, account: &str, address: IpAddr, now: Timestamp) {
        if let Some((key, home)) = self.home(account, network(address), now)
            && now.duration_since(home.logged_in_at) > FORGOTTEN_AFTER
        {
            self.homes.insert(key, Home { logged_in_at: now, ..home });
        }
    }

    fn home(&self, account: &str, network: IpAddr, now: Timestamp) -> Option<(u64, Home)> {
        let key = self.key((account, network));
        let home = self.homes.get(&key)?;
        (now.duration_since(home.logged_in_at) < HOME_FOR).then_some((key, home))
    }

    fn key(&self, of: impl Hash) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        (self.seed, of).hash(&mut hasher);
        hasher.finish()
    }
}

impl Tries {
    fn and_one(before: Option<Self>, now: Timestamp) -> Self {
        let failed = before.filter(|tries| !tries.is_forgotten(now)).map_or(0, |tries| tries.failed);
        Self { failed: failed.saturating_add(1), last: now }
    }

    fn is_forgotten(&self, now: Timestamp) -> bool {
        now.duration_since(self.last) > FORGOTTEN_AFTER
    }

    /// 1 s, 2 s, 4 s … from the last failure on.
    fn wait(&self, free: u32, now: Timestamp) -> Option<Duration> {
        let over = self.failed.checked_sub(free)?;
        if self.is_forgotten(now) {
            return None;
        }
        let wait = Duration::from_secs(1 << over.min(16)).min(WAIT_MAX);
        // A clock that was set back lets nobody wait for longer.
        let waited = Duration::try_from(now.duration_since(self.last)).unwrap_or_default();
        wait.checked_sub(waited).filter(|left| !left.is_zero())
    }
}

/// An IPv6 host has a whole network of addresses.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).unwrap()
    }

    #[test]
    fn guesses_become_slower_and_are_forgotten() {
        let (brake, here): (_, IpAddr) = (Brake::new(), "10.0.0.1".parse().unwrap());
        for _ in 1..ACCOUNT_TRIES {
            brake.failed("alice", here, at(0));
            assert_eq!(brake.wait("alice", here, at(0)), None);
        }
        let mut waits = Vec::new();
        for _ in 0..8 {
            brake.failed("alice", here, at(0));
            waits.push(brake.wait("alice", "10.9.9.9".parse().unwrap(), at(0)).unwrap().as_secs());
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(brake.wait("alice", here, at(59)), Some(Duration::from_secs(1)));
        assert_eq!(brake.wait("alice", here, at(60)), None);
        assert_eq!(brake.wait("alice", here, at(-1000)), Some(WAIT_MAX), "a clock that was set back");
        assert_eq!(brake.wait("bob", here, at(0)), None, "another account");
        brake.succeeded("alice", here, at(0));
        assert_eq!(brake.wait("alice", here, at(0)), None);
        brake.failed("carol", here, at(1000));
        assert_eq!(brake.wait("carol", here, at(1000)), None);
    }

    #[test]
    fn guesses_from_elsewhere_keep_nobody_out_where_they_are_at_home() {
        let (home, elsewhere): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let brake = Brake::new();
        brake.succeeded("alice", home, at(0));
        for _ in 0..ACCOUNT_TRIES + 3 {
            brake.failed("alice", elsewhere, at(1));
        }
        assert_eq!(brake.wait("alice", home, at(1)), None);
        assert!(brake.wait("alice", elsewhere, at(1)).is_some());
        assert!(brake.wait("alice", "10.0.0.3".parse().unwrap(), at(1)).is_some(), "many addresses are no way around");
        // At home guesses are slow as well, and a login there makes those from elsewhere no faster.
        for _ in 0..ACCOUNT_TRIES {
            brake.failed("alice", home, at(2));
        }
        assert_eq!(brake.wait("alice", home, at(2)), Some(Duration::from_secs(1)));
        brake.succeeded("alice", home, at(4));
        assert!(brake.wait("alice", home, at(4)).is_none() && brake.wait("alice", elsewhere, at(4)).is_some());
        brake.returned("alice", home, at(4) + HOME_FOR / 2);
        brake.returned("alice", elsewhere, at(4) + HOME_FOR / 2);
        let later = at(4) + HOME_FOR;
        assert!(brake.wait("alice", home, later).is_none(), "it was there since");
        let later = later + HOME_FOR;
        for _ in 0..ACCOUNT_TRIES {
            brake.failed("alice", elsewhere, later);
        }
        assert!(brake.wait("alice", home, later).is_some(), "it is long ago");
    }

    #[test]
    fn an_address_that_tries_many_accounts_is_slowed_down() {
        // Invariant 17
        let (brake, here): (_, IpAddr) = (Brake::new(), "2001:db8::1".parse().unwrap());
        for number in 0..ADDRESS_TRIES {
            brake.failed(&format!("user{number}"), here, at(0));
        }
        assert!(brake.wait("nobody", "2001:db8::2".parse().unwrap(), at(0)).is_some(), "the same network");
        assert!(brake.wait("nobody", "2001:db8:1::1".parse().unwrap(), at(0)).is_none());
        for number in 0..3 * REMEMBERED_MAX {
            let elsewhere = IpAddr::from([10, (number >> 16) as u8, (number >> 8) as u8, number as u8]);
            brake.failed(&format!("user{number}"), elsewhere, at(0));
            brake.succeeded(&format!("user{number}"), elsewhere, at(0));
        }
        for remembered in [brake.accounts.len(), brake.networks.len(), brake.homes.len()] {
            assert!(remembered <= REMEMBERED_MAX, "{remembered}");
        }
    }
}
