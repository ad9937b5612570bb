//! Logins that were checked a moment ago: remembered by a hash, so that not every request pays for them anew.

use aws_lc_rs::hmac;
use jiff::{SignedDuration, Timestamp};
use quick_cache::sync::Cache;
use sha2::{Digest as _, Sha256};

use super::caller::Caller;
use crate::secret::Secret;

/// Passwords, tokens of ours, and tokens of others that are remembered.
const PASSWORDS_MAX: usize = 4096;
const TOKENS_MAX: usize = 8192;
const JOBS_MAX: usize = 1024;
/// For so long. What was checked is voided earlier by whatever changes the user.
const PASSWORD_FOR: SignedDuration = SignedDuration::from_mins(5);
/// Use prolongs it, so that guesses at an account from elsewhere, which slow its logins down, keep nobody out who is in.
const PASSWORD_AGAIN: SignedDuration = SignedDuration::from_mins(1);
const JOB_FOR: SignedDuration = SignedDuration::from_mins(5);

/// A token's SHA-256.
pub type TokenHash = [u8; 32];

/// What is remembered.
pub struct Remembered {
    /// By a hash whose key is of this process and is never written.
    passwords: Cache<TokenHash, (Caller, Timestamp)>,
    tokens: Cache<TokenHash, Caller>,
    jobs: Cache<TokenHash, (Caller, Timestamp)>,
    key: hmac::Key,
}

impl Remembered {
    #[expect(
        clippy::expect_used,
        reason = "aws-lc-rs makes a key of any 32 bytes, and ends the process without random ones"
    )]
    pub fn new() -> Self {
        let mut random = [0; 32];
        aws_lc_rs::rand::fill(&mut random).expect("the system has random bytes");
        let key = hmac::Key::new(hmac::HMAC_SHA256, &random);
        let (passwords, jobs) = (Cache::new(PASSWORDS_MAX), Cache::new(JOBS_MAX));
        Self { passwords, tokens: Cache::new(TOKENS_MAX), jobs, key }
    }

    /// Whose password this was a moment ago.
    pub fn password(&self, username: &str, password: &Secret, now: Timestamp) -> Option<Caller> {
        let key = self.key_of(username, password);
        let (caller, at) = self.passwords.get(&key)?;
        let age = now.duration_since(at).abs();
        if age >= PASSWORD_FOR {
            return None;
        }
        if age >= PASSWORD_AGAIN {
            self.passwords.insert(key, (caller.clone(), now));
        }
        Some(caller)
    }

    pub fn keep_password(&self, username: &str, password: &Secret, caller: &Caller, now: Timestamp) {
        self.passwords.insert(self.key_of(username, password), (caller.clone(), now));
    }

    /// Whose token of ours this is; its end is the caller's to look at.
    pub fn token(&self, hash: &TokenHash) -> Option<Caller> {
        self.tokens.get(hash)
    }

    pub fn keep_token(&self, hash: TokenHash, caller: &Caller) {
        self.tokens.insert(hash, caller.clone());
    }

    /// Whose token of an issuer this was a moment ago, if it is still good.
    pub fn job(&self, hash: &TokenHash, now: Timestamp) -> Option<Caller> {
        let (caller, at) = self.jobs.get(hash)?;
        let good = caller.0.ends_at.is_some_and(|ends_at| now < ends_at);
        (good && now.duration_since(at).abs() < JOB_FOR).then_some(caller)
    }

    pub fn keep_job(&self, hash: TokenHash, caller: &Caller, now: Timestamp) {
        self.jobs.insert(hash, (caller.clone(), now));
    }

    /// Always the same for a name, and not to be guessed.
    pub fn number_of(&self, username: &str) -> u64 {
        let tag = hmac::sign(&self.key, username.as_bytes());
        tag.as_ref().iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    fn key_of(&self, username: &str, password: &Secret) -> TokenHash {
        let mut of = hmac::Context::with_key(&self.key);
        // The length parts the two: no name and password are those of another pair.
        of.update(&(username.len() as u64).to_be_bytes());
        of.update(username.as_bytes());
        of.update(password.expose().as_bytes());
        let mut hash = [0; 32];
        hash.copy_from_slice(of.sign().as_ref());
        hash
    }
}

pub fn hash_of(token: &Secret) -> TokenHash {
    Sha256::digest(token.expose().as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::caller::{Mark, Subject};

    #[test]
    fn a_password_is_remembered_for_a_while_and_for_its_name_alone() {
        let remembered = Remembered::new();
        let caller = Caller::new(Subject::User { name: "ab".to_owned(), mark: Mark("m".to_owned()) }, None, None);
        let (now, secret) = (Timestamp::from_second(1_790_000_000).unwrap(), Secret::new("c"));
        remembered.keep_password("ab", &secret, &caller, now);
        assert!(remembered.password("ab", &secret, now).is_some());
        assert!(remembered.password("a", &Secret::new("bc"), now).is_none());
        assert!(remembered.password("ab", &Secret::new("d"), now).is_none());
        assert!(remembered.password("ab", &secret, now + PASSWORD_FOR).is_none());
        assert!(remembered.password("ab", &secret, now - PASSWORD_FOR).is_none());
    }

    #[test]
    fn what_is_remembered_has_a_bound() {
        // Invariant 17
        let remembered = Remembered::new();
        let caller = Caller::new(Subject::Anonymous, None, None);
        for number in 0..3 * TOKENS_MAX {
            remembered.keep_token(hash_of(&Secret::new(number.to_string())), &caller);
            remembered.keep_password(&number.to_string(), &Secret::new("x"), &caller, Timestamp::UNIX_EPOCH);
            remembered.keep_job(hash_of(&Secret::new(number.to_string())), &caller, Timestamp::UNIX_EPOCH);
        }
        assert!(remembered.tokens.len() <= TOKENS_MAX && remembered.passwords.len() <= PASSWORDS_MAX);
        assert!(remembered.jobs.len() <= JOBS_MAX);
    }
}
