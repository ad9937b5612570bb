//! `gate.json`: the state on disk, whole or not at all.

use std::io;
use std::path::{Path, PathBuf};

use super::GateError;
use super::state::{Kept, VERSION};
use crate::files::{self, Mode};

/// Largest `gate.json` that is read, in bytes.
pub const STATE_SIZE_MAX: u64 = 1 << 20;

#[derive(Clone, Debug)]
pub(super) struct StateFile {
    path: PathBuf,
}

impl StateFile {
    pub(super) fn new(data: &Path) -> Self {
        Self { path: data.join("gate.json") }
    }

    /// `None` when there is none yet; an error, in words, when it cannot be understood.
    pub(super) fn read(&self) -> Result<Option<Kept>, String> {
        match std::fs::metadata(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.to_string()),
            Ok(found) if found.len() > STATE_SIZE_MAX => return Err(format!("it has {} bytes", found.len())),
            Ok(_) => {}
        }
        let text = std::fs::read(&self.path).map_err(|error| error.to_string())?;
        let kept: Kept = serde_json::from_slice(&text).map_err(|error| error.to_string())?;
        match kept.version {
            VERSION => Ok(Some(kept)),
            other => Err(format!("it has version {other}, and this sealock knows {VERSION}")),
        }
    }

    /// Puts an unreadable file aside, as `gate.json.broken`.
    pub(super) fn set_aside(&self) -> io::Result<PathBuf> {
        let aside = self.path.with_extension("json.broken");
        std::fs::rename(&self.path, &aside)?;
        Ok(aside)
    }

    /// On disk when this returns.
    pub(super) async fn write(&self, kept: &Kept) -> Result<(), GateError> {
        let (file, kept) = (self.clone(), kept.clone());
        let written = tokio::task::spawn_blocking(move || file.write_now(&kept)).await;
        written.unwrap_or(Err(GateError::Stopped))
    }

    pub(super) fn write_now(&self, kept: &Kept) -> Result<(), GateError> {
        let written = serde_json::to_vec_pretty(kept).map_err(io::Error::other).and_then(|mut text| {
            text.push(b'\n');
            files::replace(&self.path, &text, Mode { new: 0o600, kept: 0o666 })
        });
        written.map_err(|source| GateError::State { path: self.path.clone(), source })
    }
}
