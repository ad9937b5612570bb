//! Putting a plan's files in place below a root: only what differs, with a copy of what was there, each file at once.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use serde::Serialize;
use similar::TextDiff;

use super::plan::{Content, MARK, Plan, PlannedFile};
use crate::files::{self, Mode};

/// How far it may go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leave {
    /// Change nothing: only tell.
    pub(super) dry_run: bool,
    /// Replace files that sealock did not write, too.
    pub(super) force: bool,
}

/// What became of a file, or would.
#[derive(Debug, Serialize)]
pub(super) struct Line {
    pub(super) path: PathBuf,
    #[serde(flatten)]
    pub(super) outcome: Outcome,
    /// Empty where nothing changes.
    pub(super) diff: String,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub(super) enum Outcome {
    Unchanged,
    Created,
    /// What was there before is in `copy`.
    Changed {
        copy: PathBuf,
    },
    /// It was left as it was.
    Left {
        why: String,
    },
}

/// Most copies of one file.
const COPIES_MAX: usize = 99;
/// Largest file that is merged or compared, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;
/// Of a private key: its owner's alone.
const KEY_MODE: u32 = 0o600;

/// Every file of the plan, whatever becomes of the others.
pub(super) fn apply(root: &Path, plan: &Plan, leave: Leave) -> Vec<Line> {
    plan.files.iter().map(|file| put(root, file, leave)).collect()
}

fn put(root: &Path, file: &PlannedFile, leave: Leave) -> Line {
    let path = root.join(file.path.trim_start_matches('/'));
    let mut diff = String::new();
    let outcome = put_at(root, &path, file, leave, &mut diff).unwrap_or_else(|why| Outcome::Left { why });
    Line { path, outcome, diff }
}

/// The error is why the file was left as it was.
fn put_at(root: &Path, path: &Path, file: &PlannedFile, leave: Leave, diff: &mut String) -> Result<Outcome, String> {
    stays_below(root, path)?;
    let existing = read(path)?;
    let wanted = match &file.content {
        Content::Whole(text) => text.clone(),
        Content::Merged(merge) => merge.apply(existing.as_deref()).map_err(|why| why.to_string())?,
        Content::Key(from) => {
            let key = read(Path::new(from)).and_then(|key| key.ok_or_else(|| "it is not there".to_owned()));
            let key = key.map_err(|why| format!("the key `{from}`: {why}"))?;
            format!("{MARK}, which writes it anew when it is run again.\n{key}")
        }
    };
    let is_key = matches!(file.content, Content::Key(_));
    let failed = |why: io::Error| format!("it cannot be written: {why}");
    if existing.as_deref() == Some(wanted.as_str()) {
        if is_key && !leave.dry_run {
            fs::set_permissions(path, fs::Permissions::from_mode(KEY_MODE)).map_err(failed)?;
        }
        return Ok(Outcome::Unchanged);
    }
    let ours = |text: &str| text.starts_with(MARK) || text.trim().is_empty();
    if let (Content::Whole(_) | Content::Key(_), Some(text)) = (&file.content, &existing)
        && !ours(text)
        && !leave.force
    {
        return Err("sealock did not write it; compare it with what is printed, or replace it with --force".to_owned());
    }
    let (before, name) = (existing.as_deref().unwrap_or_default(), path.display().to_string());
    if !is_key {
        *diff = TextDiff::from_lines(before, wanted.as_str()).unified_diff().header(&name, &name).to_string();
    }
    let outcome = match &existing {
        None => Outcome::Created,
        Some(text) => Outcome::Changed { copy: keep_copy(path, text, is_key, leave).map_err(failed)? },
    };
    if !leave.dry_run {
        replace(path, &wanted, is_key).map_err(failed)?;
    }
    Ok(outcome)
}

/// A folder on the way may be a link that leads out of a root that is another system's tree.
fn stays_below(root: &Path, path: &Path) -> Result<(), String> {
    let failed = |why: io::Error| format!("`{}` cannot be looked up: {why}", root.display());
    let root = root.canonicalize().map_err(failed)?;
    let there = path.ancestors().skip(1).find(|folder| folder.exists()).unwrap_or(&root);
    match there.canonicalize().map_err(failed)?.starts_with(&root) {
        true => Ok(()),
        false => Err(format!("`{}` leads out of the root", there.display())),
    }
}

fn read(path: &Path) -> Result<Option<String>, String> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(why) if why.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(why) => return Err(format!("it cannot be read: {why}")),
    };
    if !found.is_file() {
        return Err("it is not an ordinary file; change what it leads to yourself".to_owned());
    }
    if found.len() > FILE_BYTES_MAX {
        return Err(format!("it has {} bytes; at most {FILE_BYTES_MAX} are read", found.len()));
    }
    fs::read_to_string(path).map(Some).map_err(|why| format!("it cannot be read: {why}"))
}

/// `<file>.before-sealock`, or with a number: no copy is ever written over.
fn keep_copy(path: &Path, text: &str, is_key: bool, leave: Leave) -> io::Result<PathBuf> {
    let names = (0..COPIES_MAX).map(|number| {
        let number = if number == 0 { String::new() } else { format!(".{number}") };
        PathBuf::from(format!("{}.before-sealock{number}", path.display()))
    });
    for copy in names {
        match read(&copy) {
            Ok(Some(there)) if there == text => return Ok(copy),
            // Another copy, a link, or what nobody should read to its end.
            Ok(Some(_)) | Err(_) => {}
            Ok(None) if leave.dry_run => return Ok(copy),
            Ok(None) => {
                let mode = if is_key { KEY_MODE } else { fs::metadata(path)?.permissions().mode() & 0o7777 };
                let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&copy)?;
                file.write_all(text.as_bytes())?;
                file.sync_all()?;
                return Ok(copy);
            }
        }
    }
    Err(io::Error::other(format!("there are {COPIES_MAX} copies of it already; take some away")))
}

/// All of it or nothing.
fn replace(path: &Path, text: &str, is_key: bool) -> io::Result<()> {
    fs::create_dir_all(files::folder_of(path))?;
    let mode = if is_key { Mode { new: KEY_MODE, kept: KEY_MODE } } else { Mode { new: 0o644, kept: 0o7777 } };
    files::replace(path, text.as_bytes(), mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::client_config::merge::Merge;

    const LEAVE: Leave = Leave { dry_run: false, force: false };

    fn plan() -> Plan {
        let mut plan = Plan::default();
        plan.own("/etc/docker/certs.d/p:5000/ca.crt", "PEM\n");
        let merge = Merge::DaemonJson { mirrors: vec!["https://p:5000".to_owned()], insecure: Vec::new() };
        plan.merge("/etc/docker/daemon.json", merge);
        plan
    }

    fn outcomes(root: &Path, leave: Leave) -> Vec<Outcome> {
        apply(root, &plan(), leave).into_iter().map(|line| line.outcome).collect()
    }

    #[test]
    fn what_is_there_already_is_not_written_again() {
        let root = tempfile::tempdir().unwrap();
        let dry = apply(root.path(), &plan(), Leave { dry_run: true, ..LEAVE });
        assert!(dry.iter().all(|line| line.outcome == Outcome::Created && line.diff.contains("\n+")), "{dry:?}");
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "a dry run changes nothing");
        assert_eq!(outcomes(root.path(), LEAVE), [Outcome::Created, Outcome::Created]);
        assert_eq!(outcomes(root.path(), LEAVE), [Outcome::Unchanged, Outcome::Unchanged]);
        assert_eq!(fs::read_dir(root.path().join("etc/docker")).unwrap().count(), 2, "no copies, no leftovers");
    }

    #[test]
    fn a_file_of_others_is_merged_with_a_copy_or_left() {
        let root = tempfile::tempdir().unwrap();
        let docker = root.path().join("etc/docker");
        fs::create_dir_all(docker.join("certs.d/p:5000")).unwrap();
        let (json, theirs) = (docker.join("daemon.json"), docker.join("certs.d/p:5000/ca.crt"));
        fs::write(&json, "{\"debug\": true}").unwrap();
        fs::set_permissions(&json, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&theirs, "their own").unwrap();
        let done = outcomes(root.path(), LEAVE);
        assert!(matches!(&done[0], Outcome::Left { why } if why.contains("--force")), "{done:?}");
        let copy = docker.join("daemon.json.before-sealock");
        assert_eq!(done[1], Outcome::Changed { copy: copy.clone() });
        assert_eq!(fs::read_to_string(&copy).unwrap(), "{\"debug\": true}");
        assert_eq!(fs::metadata(&json).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(fs::read_to_string(&json).unwrap().contains("\"debug\": true"));
        assert_eq!(fs::read_to_string(&theirs).unwrap(), "their own");

        let forced = outcomes(root.path(), Leave { force: true, ..LEAVE });
        assert!(matches!(&forced[0], Outcome::Changed { copy } if fs::read_to_string(copy).unwrap() == "their own"));
        assert_eq!(forced[1], Outcome::Unchanged);
        // A second change keeps the first copy.
        fs::write(&json, "{}").unwrap();
        assert_eq!(
            outcomes(root.path(), LEAVE)[1],
            Outcome::Changed { copy: docker.join("daemon.json.before-sealock.1") }
        );
        assert_eq!(fs::read_to_string(&copy).unwrap(), "{\"debug\": true}");
    }

    #[test]
    fn links_do_not_lead_astray() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink(outside.path(), root.path().join("etc/docker")).unwrap();
        let done = outcomes(root.path(), LEAVE);
        assert!(done.iter().all(|one| matches!(one, Outcome::Left { .. })), "{done:?}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);

        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/docker")).unwrap();
        std::os::unix::fs::symlink("/nowhere", root.path().join("etc/docker/daemon.json")).unwrap();
        assert!(matches!(outcomes(root.path(), LEAVE)[1], Outcome::Left { .. }));
    }
}
