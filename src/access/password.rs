//! (pure) Passwords against their hashes: argon2 and bcrypt, as `sealock user` and `htpasswd -B` write them.

use std::sync::{Mutex, PoisonError};

use argon2::password_hash::phc::PasswordHash;
use argon2::{Algorithm, Argon2, Block, Params, PasswordHasher as _, Version};
use aws_lc_rs::constant_time::verify_slices_are_equal;

use crate::secret::Secret;

/// Longest password that is looked at, in bytes.
pub const PASSWORD_BYTES_MAX: usize = 1024;
/// Shortest that `sealock user` takes, in characters.
pub const PASSWORD_LEAST: usize = 8;
/// Memory that one argon2 hash may take, in KiB: what the file asks for comes on top of everything else.
const ARGON2_MEMORY_MAX: u32 = 256 << 10;
const ARGON2_PASSES_MAX: u32 = 64;
/// bcrypt's cost doubles with each; 15 takes seconds.
const BCRYPT_COST_MAX: u32 = 15;

/// A hash of a kind that can be checked.
#[derive(Clone, PartialEq, Eq)]
pub struct Hash(Kind);

#[derive(Clone, PartialEq, Eq)]
enum Kind {
    Argon2(Secret),
    Bcrypt(Secret),
}

/// Why a text is no hash that can be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHash {
    #[error("its hash is neither bcrypt nor argon2; set it anew with `sealock user passwd` or `htpasswd -B`")]
    Unknown,
    #[error("its hash takes too much time or memory to check; set it anew with `sealock user passwd`")]
    TooCostly,
}

/// Why a password cannot be hashed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    #[error("the password has fewer than {PASSWORD_LEAST} characters")]
    TooShort,
    #[error("the password has more than {PASSWORD_BYTES_MAX} bytes")]
    TooLong,
    #[error("the system gave no random salt")]
    NoSalt,
}

impl Hash {
    pub fn parse(text: &str) -> Result<Self, InvalidHash> {
        if text.starts_with("$argon2") {
            let parsed = PasswordHash::new(text).map_err(|_| InvalidHash::Unknown)?;
            let params = Params::try_from(&parsed).map_err(|_| InvalidHash::Unknown)?;
            if params.m_cost() > ARGON2_MEMORY_MAX || params.t_cost() > ARGON2_PASSES_MAX {
                return Err(InvalidHash::TooCostly);
            }
            return Ok(Self(Kind::Argon2(Secret::new(text))));
        }
        let parts: bcrypt::HashParts = text.parse().map_err(|_| InvalidHash::Unknown)?;
        if parts.get_cost() > BCRYPT_COST_MAX {
            return Err(InvalidHash::TooCostly);
        }
        Ok(Self(Kind::Bcrypt(Secret::new(text))))
    }

    /// Argon2id with the parameters that its authors recommend and a salt of its own.
    pub fn new(password: &Secret) -> Result<Self, HashError> {
        let text = password.expose();
        if text.chars().count() < PASSWORD_LEAST {
            return Err(HashError::TooShort);
        }
        if text.len() > PASSWORD_BYTES_MAX {
            return Err(HashError::TooLong);
        }
        let hash = Argon2::default().hash_password(text.as_bytes()).map_err(|_| HashError::NoSalt)?;
        Ok(Self(Kind::Argon2(Secret::new(hash.to_string()))))
    }

    /// Takes long on purpose: not for an async thread.
    pub fn is_of(&self, password: &Secret) -> bool {
        #[cfg(test)]
        CHECKED.with(|checked| checked.set(checked.get() + 1));
        let password = password.expose();
        match &self.0 {
            Kind::Argon2(hash) => is_argon2_of(hash.expose(), password).unwrap_or(false),
            // `htpasswd` cuts off what bcrypt does not look at, too.
            Kind::Bcrypt(hash) => bcrypt::verify(password, hash.expose()).unwrap_or(false),
        }
    }

    /// As it stands in the file.
    pub fn expose(&self) -> &str {
        let (Kind::Argon2(hash) | Kind::Bcrypt(hash)) = &self.0;
        hash.expose()
    }
}

#[cfg(test)]
thread_local! {
    /// How many passwords this thread has held against a hash.
    pub(super) static CHECKED: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// Memory that hashing is done with, and again: what is allocated and given back each time, 19 MiB in one piece, the C
/// library keeps in fragments.
static BLOCKS: Mutex<Vec<Vec<Block>>> = Mutex::new(Vec::new());
/// Most of these, and the largest of them, in blocks of a KiB.
const BLOCKS_KEPT_MAX: usize = 2;
const BLOCKS_KEPT_SIZE_MAX: usize = 32 << 10;

/// `None`: it is no hash that can be checked.
fn is_argon2_of(hash: &str, password: &str) -> Option<bool> {
    let hash = PasswordHash::new(hash).ok()?;
    let (salt, expected) = (hash.salt.as_ref()?, hash.hash.as_ref()?.as_bytes());
    let algorithm = Algorithm::try_from(hash.algorithm.as_ref()).ok()?;
    let version = hash.version.map_or(Ok(Version::V0x13), Version::try_from).ok()?;
    let params = Params::try_from(&hash).ok()?;
    let lock = || BLOCKS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut blocks = lock().pop().unwrap_or_default();
    if blocks.len() < params.block_count() {
        blocks.resize(params.block_count(), Block::default());
    }
    let mut got = vec![0; expected.len()];
    let hasher = Argon2::new(algorithm, version, params);
    let hashed = hasher.hash_password_into_with_memory(password.as_bytes(), salt.as_ref(), &mut got, &mut blocks);
    let mut kept = lock();
    if kept.len() < BLOCKS_KEPT_MAX && blocks.len() <= BLOCKS_KEPT_SIZE_MAX {
        kept.push(blocks);
    }
    hashed.ok().map(|()| verify_slices_are_equal(&got, expected).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `htpasswd -nbB -C 4 u sesame-open`, in effect.
    fn bcrypt() -> String {
        bcrypt::hash("sesame-open", 4).unwrap()
    }

    #[test]
    fn both_kinds_know_their_password_and_no_other() {
        let argon2 = Hash::new(&Secret::new("sesame-open")).unwrap();
        // htpasswd writes `$2y$`.
        let bcrypt = Hash::parse(&bcrypt().replacen("$2b$", "$2y$", 1)).unwrap();
        for hash in [Hash::parse(argon2.expose()).unwrap(), bcrypt] {
            assert!(hash.is_of(&Secret::new("sesame-open")));
            assert!(!hash.is_of(&Secret::new("sesame-opem")) && !hash.is_of(&Secret::new("")));
        }
    }

    #[test]
    fn hashing_takes_the_same_memory_again() {
        // Invariant 17
        let hash = Hash::new(&Secret::new("sesame-open")).unwrap();
        for _ in 0..4 {
            assert!(hash.is_of(&Secret::new("sesame-open")));
        }
        let kept = BLOCKS.lock().unwrap();
        assert!((1..=BLOCKS_KEPT_MAX).contains(&kept.len()), "{}", kept.len());
    }

    #[test]
    fn other_kinds_and_costly_ones_are_refused() {
        // Invariant 17
        let salt = "c2FsdHNhbHRzYWx0";
        for (text, why) in [
            ("$apr1$x$y".to_owned(), InvalidHash::Unknown),
            ("{SHA}x".to_owned(), InvalidHash::Unknown),
            (String::new(), InvalidHash::Unknown),
            ("plain".to_owned(), InvalidHash::Unknown),
            ("$argon2id$v=19$x".to_owned(), InvalidHash::Unknown),
            (bcrypt().replacen("$04$", "$31$", 1), InvalidHash::TooCostly),
            (format!("$argon2id$v=19$m=4000000,t=2,p=1${salt}${salt}"), InvalidHash::TooCostly),
            (format!("$argon2id$v=19$m=19456,t=4000,p=1${salt}${salt}"), InvalidHash::TooCostly),
        ] {
            assert_eq!(Hash::parse(&text).map(|_| ()), Err(why), "{text}");
        }
        assert_eq!(Hash::new(&Secret::new("short")).map(|_| ()), Err(HashError::TooShort));
        assert_eq!(Hash::new(&Secret::new("x".repeat(2000))).map(|_| ()), Err(HashError::TooLong));
    }
}
