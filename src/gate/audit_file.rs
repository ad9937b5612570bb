//! The audit file: JSON, one record to a line, rotated by size.
//!
//! `audit.jsonl` is written to; `audit.1.jsonl` is the one before it, `audit.2.jsonl` the one before that.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;

use serde::Deserialize;
use tracing::error;

use super::audit::{Entry, Record, Slot};
use crate::size::Size;

/// Most records that are written at once.
const BATCH_MAX: usize = 256;
/// The least size at which the file may be told to rotate.
pub const ROTATE_SIZE_MIN: Size = Size(4 << 10);
/// Most rotated files.
pub const KEEP_MAX: usize = 1000;

/// `[audit]`: the record of what crossed the gap, in `audit/audit.jsonl` of the data folder.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuditSettings {
    /// The file is put aside, as `audit.1.jsonl`, when it would grow beyond this.
    pub rotate_size: Size,
    /// How many files that were put aside are kept; older ones are removed.
    pub keep: usize,
}

impl Default for AuditSettings {
    fn default() -> Self {
        Self { rotate_size: Size(64 << 20), keep: 16 }
    }
}

impl AuditSettings {
    /// The first value that makes no sense: its key below `audit`, and what to write instead.
    pub fn check(&self) -> Result<(), (String, String)> {
        if self.rotate_size < ROTATE_SIZE_MIN {
            return Err(("rotate_size".to_owned(), format!("must be at least `{ROTATE_SIZE_MIN}`")));
        }
        if !(1..=KEEP_MAX).contains(&self.keep) {
            return Err(("keep".to_owned(), format!("must be between 1 and {KEEP_MAX}")));
        }
        Ok(())
    }
}

/// Why something is not on record.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("cannot write the audit file `{path}`")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the audit file's writer has stopped")]
    Stopped,
}

/// The open file.
pub(super) struct AuditFile {
    folder: PathBuf,
    path: PathBuf,
    file: File,
    /// Bytes of whole lines.
    len: u64,
    settings: AuditSettings,
}

impl AuditFile {
    pub(super) fn open(folder: &Path, settings: &AuditSettings) -> Result<Self, AuditError> {
        let path = folder.join("audit.jsonl");
        let opened = std::fs::create_dir_all(folder).and_then(|()| open_at_line_start(&path));
        let (file, len) = opened.map_err(|source| AuditError::Io { path: path.clone(), source })?;
        Ok(Self { folder: folder.to_owned(), path, file, len, settings: settings.clone() })
    }

    /// Writes `records`; they are on disk when this returns. What cannot be written goes to the log.
    pub(super) fn keep(&mut self, records: &[Record]) -> Result<(), AuditError> {
        self.append(records).and_then(|()| self.sync()).inspect_err(|error| {
            records.iter().for_each(|record| lost(record, error));
        })
    }

    /// Starts a thread that writes what comes until every sender is gone.
    pub(super) fn write_in_background(self, entries: Receiver<Entry>) -> Result<(), AuditError> {
        let path = self.path.clone();
        let thread = std::thread::Builder::new().name("audit".to_owned()).spawn(move || self.run(&entries));
        thread.map(drop).map_err(|source| AuditError::Io { path, source })
    }

    fn run(mut self, entries: &Receiver<Entry>) {
        while let Ok(first) = entries.recv() {
            let mut requests = Vec::new();
            for entry in std::iter::once(first).chain(entries.try_iter().take(BATCH_MAX)) {
                match entry {
                    Entry::Request(record, slot) => requests.push((record, slot)),
                    Entry::Gate(records, done) => {
                        self.write_requests(&mut requests);
                        // Whoever asked may have gone; the record is kept all the same.
                        let _ = done.send(self.keep(&records));
                    }
                    Entry::Flush(done) => {
                        self.write_requests(&mut requests);
                        let _ = done.send(self.sync());
                    }
                }
            }
            self.write_requests(&mut requests);
        }
    }

    fn write_requests(&mut self, requests: &mut Vec<(Record, Slot)>) {
        let (records, slots): (Vec<_>, Vec<_>) = requests.drain(..).unzip();
        if let Err(error) = self.append(&records) {
            records.iter().for_each(|record| lost(record, &error));
        }
        drop(slots);
    }

    fn append(&mut self, records: &[Record]) -> Result<(), AuditError> {
        let lines = records.iter().map(line);
        let mut batch = Vec::new();
        for line in lines {
            let full = self.len + (batch.len() + line.len()) as u64 > self.settings.rotate_size.0;
            if full && self.len + batch.len() as u64 > 0 {
                self.write(&std::mem::take(&mut batch))?;
                self.rotate().map_err(|source| self.failed(source))?;
            }
            batch.extend_from_slice(line.as_bytes());
        }
        self.write(&batch)
    }

    fn write(&mut self, batch: &[u8]) -> Result<(), AuditError> {
        // A write that failed half-way left half a line behind; it is overwritten.
        let written = self.file.seek(SeekFrom::Start(self.len)).and_then(|_| self.file.write_all(batch));
        if let Err(source) = written {
            if let Err(error) = self.file.set_len(self.len) {
                error!(%error, "half a line stays in `{}`: {error}", self.path.display());
            }
            return Err(self.failed(source));
        }
        self.len += batch.len() as u64;
        Ok(())
    }

    fn sync(&self) -> Result<(), AuditError> {
        self.file.sync_data().map_err(|source| self.failed(source))
    }

    fn rotate(&mut self) -> io::Result<()> {
        self.file.sync_data()?;
        let name = |number: usize| self.folder.join(format!("audit.{number}.jsonl"));
        for number in (1..self.settings.keep).rev() {
            if_there(std::fs::rename(name(number), name(number + 1)))?;
        }
        std::fs::rename(&self.path, name(1))?;
        (self.file, self.len) = open_at_line_start(&self.path)?;
        Ok(())
    }

    fn failed(&self, source: io::Error) -> AuditError {
        AuditError::Io { path: self.path.clone(), source }
    }
}

/// Puts a record into the log that the audit file would not take.
pub(super) fn lost(record: &Record, error: &AuditError) {
    error!(record = line(record).trim_end(), %error, "not in the audit file: {}", line(record).trim_end());
}

/// The file, ready for the next line, and its length. A crash may have left half a line: it is closed, not joined.
fn open_at_line_start(path: &Path) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let len = file.seek(SeekFrom::End(0))?;
    if len > 0 {
        file.seek(SeekFrom::End(-1))?;
        let mut last = [0];
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
            return Ok((file, len + 1));
        }
    }
    let folder = path.parent().unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()?;
    Ok((file, len))
}

fn if_there(outcome: io::Result<()>) -> io::Result<()> {
    match outcome {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// One line of JSON. Every control character is escaped, also those that JSON allows: the line may meet a terminal.
fn line(record: &Record) -> String {
    let json = serde_json::to_string(record).unwrap_or_else(|error| format!("{{\"event\":\"unprintable: {error}\"}}"));
    let mut line = String::with_capacity(json.len() + 1);
    for character in json.chars() {
        match character.is_control() || matches!(character, '\u{2028}' | '\u{2029}') {
            true => line.push_str(&format!("\\u{:04x}", character as u32)),
            false => line.push(character),
        }
    }
    line.push('\n');
    line
}
