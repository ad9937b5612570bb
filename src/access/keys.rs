//! The keys that our own tokens are signed with: made here, renewed by age, kept until no token of theirs is left.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{DecodingKey, EncodingKey};
use serde::{Deserialize, Serialize};
use tracing::{error, warn};

use super::file;
use crate::secret::Secret;

/// A key signs for so long.
pub const RENEWED_AFTER: SignedDuration = SignedDuration::from_hours(30 * 24);
/// Most keys that are kept.
const KEYS_MAX: usize = 32;
const VERSION: u32 = 1;

/// The keys. Made with the first token, not before.
pub struct Keys {
    path: PathBuf,
    /// How long after a key was followed by another a token of it may be shown.
    kept_for: SignedDuration,
    ring: ArcSwap<Vec<Arc<Key>>>,
    changing: Mutex<()>,
}

/// One of them.
pub struct Key {
    pub id: String,
    pub signing: EncodingKey,
    pub checking: DecodingKey,
    created_at: Timestamp,
    pkcs8: Secret,
}

/// Why there is no key to sign with.
#[derive(Debug, thiserror::Error)]
#[error("no key could be made to sign tokens with")]
pub struct NoKey;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    version: u32,
    keys: Vec<Record>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    id: String,
    created_at: Timestamp,
    /// Ed25519, PKCS #8, base64.
    pkcs8: String,
}

impl Keys {
    /// `folder`: `access/` in the data folder. `life`: the longest life of a token.
    pub fn open(folder: &Path, life: SignedDuration) -> Self {
        let path = folder.join("keys.json");
        let ring = read(&path).unwrap_or_else(|why| {
            error!(error = %why, "the keys of tokens are made anew, and everybody must log in again: {why}");
            Vec::new()
        });
        Self { path, kept_for: life, ring: ArcSwap::from_pointee(ring), changing: Mutex::new(()) }
    }

    /// This key alone, for `fuzz/`.
    #[cfg(any(test, fuzzing))]
    pub(super) fn of_one(id: &str, pair: &Ed25519KeyPair, created_at: Timestamp) -> Option<Self> {
        let key = Key::load(id.to_owned(), created_at, pair.to_pkcs8v1().ok()?.as_ref())?;
        let ring = ArcSwap::from_pointee(vec![Arc::new(key)]);
        Some(Self { path: PathBuf::new(), kept_for: SignedDuration::ZERO, ring, changing: Mutex::new(()) })
    }

    /// The key that signs now. Makes one, and writes it, if the newest is too old: not for an async thread.
    pub fn signing(&self, now: Timestamp) -> Result<Arc<Key>, NoKey> {
        let young = |key: &&Arc<Key>| now.duration_since(key.created_at).abs() < RENEWED_AFTER;
        if let Some(key) = self.ring.load().first().filter(young) {
            return Ok(key.clone());
        }
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = self.ring.load().first().filter(young) {
            return Ok(key.clone());
        }
        let key = Arc::new(Key::make(now).ok_or(NoKey)?);
        let mut ring = vec![key.clone()];
        let alive = |key: &&Arc<Key>| now.duration_since(key.created_at) < RENEWED_AFTER + self.kept_for;
        ring.extend(self.ring.load().iter().filter(alive).take(KEYS_MAX - 1).cloned());
        if let Err(why) = write(&self.path, &ring) {
            let path = self.path.display();
            warn!(error = %why, "tokens end with this run: their keys cannot be written to `{path}`: {why}");
        }
        self.ring.store(Arc::new(ring));
        Ok(key)
    }

    pub fn find(&self, id: &str) -> Option<Arc<Key>> {
        self.ring.load().iter().find(|key| key.id == id).cloned()
    }
}

impl Key {
    fn make(now: Timestamp) -> Option<Self> {
        let random = SystemRandom::new();
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&random).ok()?;
        let mut id = [0; 8];
        aws_lc_rs::rand::fill(&mut id).ok()?;
        Self::load(hex::encode(id), now, pkcs8.as_ref())
    }

    fn load(id: String, created_at: Timestamp, pkcs8: &[u8]) -> Option<Self> {
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8).ok()?;
        let checking = DecodingKey::from_ed_der(pair.public_key().as_ref());
        let kept = Secret::new(STANDARD.encode(pkcs8));
        Some(Self { id, created_at, signing: EncodingKey::from_ed_der(pkcs8), checking, pkcs8: kept })
    }
}

/// Newest first.
fn read(path: &Path) -> Result<Vec<Arc<Key>>, String> {
    let wrong = |why: &dyn std::fmt::Display| format!("`{}` cannot be used: {why}", path.display());
    let Some(bytes) = file::read(path).map_err(|why| wrong(&why))? else { return Ok(Vec::new()) };
    // The cause may quote what it stumbled over.
    let document: Document = serde_json::from_slice(&bytes).map_err(|_| wrong(&"it is not as sealock writes it"))?;
    if document.version != VERSION {
        return Err(wrong(&format!("it has version {}, and this sealock knows {VERSION}", document.version)));
    }
    let keys = document.keys.into_iter().take(KEYS_MAX).map(|record| {
        let pkcs8 = STANDARD.decode(record.pkcs8).ok()?;
        Key::load(record.id, record.created_at, &pkcs8).map(Arc::new)
    });
    keys.collect::<Option<Vec<_>>>().ok_or_else(|| wrong(&"a key in it is none"))
}

fn write(path: &Path, ring: &[Arc<Key>]) -> io::Result<()> {
    let keys = ring.iter().map(|key| Record {
        id: key.id.clone(),
        created_at: key.created_at,
        pkcs8: key.pkcs8.expose().to_owned(),
    });
    let text = serde_json::to_vec_pretty(&Document { version: VERSION, keys: keys.collect() })?;
    file::replace(path, &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_renewed_and_goes_when_its_tokens_are_gone() {
        let folder = tempfile::tempdir().unwrap();
        let access = folder.path().join("access");
        let life = SignedDuration::from_hours(24);
        let keys = Keys::open(&access, life);
        let now = Timestamp::from_second(1_790_000_000).unwrap();
        let first = keys.signing(now).unwrap();
        assert_eq!(keys.signing(now + life).unwrap().id, first.id);
        let later = now + RENEWED_AFTER;
        let second = Keys::open(&access, life).signing(later).unwrap();
        assert_ne!(second.id, first.id);
        let keys = Keys::open(&access, life);
        assert!(keys.find(&first.id).is_some() && keys.find(&second.id).is_some(), "both are on disk");
        keys.signing(later + RENEWED_AFTER).unwrap();
        assert!(keys.find(&first.id).is_none() && keys.find(&second.id).is_some());
    }

    #[test]
    fn a_broken_file_costs_the_tokens_and_not_the_start() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("keys.json"), "{\"version\":1,\"keys\":[{\"canary\":1}]}").unwrap();
        assert!(!read(&folder.path().join("keys.json")).map(|_| ()).unwrap_err().contains("canary"));
        let keys = Keys::open(folder.path(), SignedDuration::ZERO);
        assert!(keys.signing(Timestamp::UNIX_EPOCH).is_ok());
    }
}
