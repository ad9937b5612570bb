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

/// Why the keys that were written cannot be gone on with. The file is as it was.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error("`{}` has version {version}, and this sealock knows {VERSION}", path.display())]
    Newer { path: PathBuf, version: u32 },
    #[error("cannot read `{}`", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` cannot be used ({why}), and cannot be set aside", path.display())]
    SetAside {
        path: PathBuf,
        why: String,
        #[source]
        source: io::Error,
    },
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

/// What is alike in all versions.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
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
    ///
    /// Keys that cannot be read are set aside, as `keys.json.broken`, and made anew; those of a later version are refused.
    pub fn open(folder: &Path, life: SignedDuration) -> Result<Self, KeysError> {
        let path = folder.join("keys.json");
        let ring = match read(&path) {
            Ok(ring) => ring,
            Err(Unread::Newer(version)) => return Err(KeysError::Newer { path, version }),
            Err(Unread::Io(source)) => return Err(KeysError::Read { path, source }),
            Err(Unread::Broken(why)) => {
                let aside = path.with_extension("json.broken");
                if let Err(source) = std::fs::rename(&path, &aside) {
                    return Err(KeysError::SetAside { path, why, source });
                }
                let (path, aside) = (path.display(), aside.display());
                error!(
                    error = why,
                    "`{path}` cannot be used ({why}) and is now `{aside}`; the keys of tokens are made anew, and \
                     everybody must log in again"
                );
                Vec::new()
            }
        };
        Ok(Self { path, kept_for: life, ring: ArcSwap::from_pointee(ring), changing: Mutex::new(()) })
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

impl KeysError {
    /// What the reader can do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Newer { .. } => {
                "run the sealock that wrote it, or a later one; or move the file away: then everybody \
                                   must log in again"
                    .to_owned()
            }
            Self::Read { path, .. } => format!(
                "let the user that runs sealock read `{}`, or move it away: then everybody must log in again",
                path.display()
            ),
            Self::SetAside { path, .. } => {
                format!("move `{}` away by hand; everybody must log in again", path.display())
            }
        }
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

enum Unread {
    /// It may be good: it is left as it is.
    Io(io::Error),
    Broken(String),
    Newer(u32),
}

/// Newest first.
fn read(path: &Path) -> Result<Vec<Arc<Key>>, Unread> {
    let broken = |why: &str| Unread::Broken(why.to_owned());
    let Some(bytes) = file::read(path).map_err(Unread::Io)? else { return Ok(Vec::new()) };
    // The cause may quote what it stumbled over.
    let strange = |_| broken("it is not as sealock writes it");
    let Versioned { version } = serde_json::from_slice(&bytes).map_err(strange)?;
    if version > VERSION {
        return Err(Unread::Newer(version));
    }
    let document: Document = serde_json::from_slice(&bytes).map_err(strange)?;
    if document.version != VERSION {
        return Err(broken(&format!("it has version {version}, and this sealock knows {VERSION}")));
    }
    let keys = document.keys.into_iter().take(KEYS_MAX).map(|record| {
        let pkcs8 = STANDARD.decode(record.pkcs8).ok()?;
        Key::load(record.id, record.created_at, &pkcs8).map(Arc::new)
    });
    keys.collect::<Option<Vec<_>>>().ok_or_else(|| broken("a key in it is none"))
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
        let keys = Keys::open(&access, life).unwrap();
        let now = Timestamp::from_second(1_790_000_000).unwrap();
        let first = keys.signing(now).unwrap();
        assert_eq!(keys.signing(now + life).unwrap().id, first.id);
        let later = now + RENEWED_AFTER;
        let second = Keys::open(&access, life).unwrap().signing(later).unwrap();
        assert_ne!(second.id, first.id);
        let keys = Keys::open(&access, life).unwrap();
        assert!(keys.find(&first.id).is_some() && keys.find(&second.id).is_some(), "both are on disk");
        keys.signing(later + RENEWED_AFTER).unwrap();
        assert!(keys.find(&first.id).is_none() && keys.find(&second.id).is_some());
    }

    #[test]
    fn a_broken_file_costs_the_tokens_and_not_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        for text in ["{\"version\":1,\"keys\":[{\"canary\":1}]}", "rubbish", "{\"version\":0,\"keys\":[]}"] {
            std::fs::write(&path, text).unwrap();
            assert!(matches!(read(&path), Err(Unread::Broken(why)) if !why.contains("canary")));
            let keys = Keys::open(folder.path(), SignedDuration::ZERO).unwrap();
            assert!(keys.signing(Timestamp::UNIX_EPOCH).is_ok());
            let aside = std::fs::read_to_string(folder.path().join("keys.json.broken")).unwrap();
            assert_eq!(aside, text, "it is still to be had");
            assert!(read(&path).is_ok_and(|ring| ring.len() == 1));
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        // Nobody can read that, root neither.
        let path = folder.path().join("keys.json");
        std::fs::create_dir(&path).unwrap();
        let refused = Keys::open(folder.path(), SignedDuration::ZERO).err().unwrap();
        assert!(matches!(refused, KeysError::Read { .. }), "{refused}");
        assert!(refused.hint().contains("keys.json") && path.is_dir());
    }

    #[test]
    fn a_file_of_a_later_version_is_refused_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        let text = "{\"version\":2,\"rings\":{\"canary\":1}}";
        std::fs::write(&path, text).unwrap();
        let refused = Keys::open(folder.path(), SignedDuration::ZERO).err().unwrap();
        assert!(refused.to_string().ends_with("has version 2, and this sealock knows 1"), "{refused}");
        assert!(refused.hint().contains("run the sealock that wrote it"));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        assert!(!folder.path().join("keys.json.broken").exists());
    }
}
