//! The one task that writes the catalog: changes in order, several to a commit, and the memory after them.
//!
//! A change belongs to the task and not to who asked for it: a request that is given up leaves neither half a
//! transaction nor a memory that is older than the catalog.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sqlx::Connection as _;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::damage::{self, Finding};
use super::erase::{self, Erase};
use super::touched::Touched;
use super::uploads::{self, UploadChange};
use super::{self as catalog, Connection, content, job, push, reread, sweep, tags, trash, wanted};
use crate::clock::Clock;
use crate::names::{Origin, Repository};
use crate::oci::{Digest, Manifest, Tag};
use crate::store::disk::Disk;
use crate::store::evict::Eviction;
use crate::store::memory::Memory;
use crate::store::sweep::Sweep;
use crate::store::trash::FileId;
use crate::store::{FoundBy, GarbageKind, Pushing, StoreError, TagSource, UploadId, blocking};

/// Most changes in one commit.
const BATCH_MAX: usize = 64;
/// Most changes that wait; whoever brings the next one waits too.
const WAITING_MAX: usize = 256;
/// How often last uses are written.
const USED_EVERY: Duration = Duration::from_secs(60);
/// SQLite's extended codes for a full disk, and for an fsync of a file or a folder that failed.
const SQLITE_FULL: &str = "13";
const SQLITE_IOERR_FSYNC: &str = "1034";
const SQLITE_IOERR_DIR_FSYNC: &str = "1290";

/// A change to the catalog.
#[derive(Clone, Debug)]
pub enum Change {
    KeepBlob {
        repository: Repository,
        blob: Digest,
        size: u64,
        /// The upload that it came by, which ends with it.
        upload: Option<UploadId>,
    },
    GrantBlob {
        repository: Repository,
        blob: Digest,
        /// Whether its upstream has it, too.
        filled: bool,
    },
    KeepManifest {
        repository: Repository,
        manifest: Arc<Manifest>,
        /// `None`: it was filled.
        pushing: Option<Pushing>,
    },
    /// A manifest of an unknown type is recorded as it is read now.
    Reread(Arc<Manifest>),
    /// The file was found gone or wrong; it is looked at once more.
    LoseBlob {
        blob: Digest,
        size: u64,
        by: FoundBy,
    },
    LoseManifest {
        manifest: Digest,
        by: FoundBy,
    },
    PointTag {
        repository: Repository,
        tag: Tag,
        digest: Digest,
        source: TagSource,
    },
    NoteWanted {
        name: String,
        reference: String,
        client: IpAddr,
    },
    ForgetWanted {
        name: String,
        reference: String,
    },
    Used(Vec<(Digest, i64)>),
    /// Throws away what nothing refers to now.
    Sweep(Arc<Sweep>),
    /// Makes room.
    Evict(Arc<Eviction>),
    /// A blob or manifest whose file came back from the trash.
    RestoreBlob {
        blob: Digest,
        size: u64,
        repositories: Vec<(Repository, bool)>,
    },
    RestoreManifest {
        manifest: Arc<Manifest>,
        repositories: Vec<(Repository, bool)>,
    },
    ForgetTrash {
        digest: Digest,
        kind: GarbageKind,
    },
    /// What was thrown away before then cannot be put back any more.
    ExpireTrash {
        before_ms: i64,
    },
    /// Files in the trash that it may know nothing of.
    RemoveTrash(Vec<Digest>),
    NoteJob {
        name: &'static str,
        position: String,
    },
    /// The bytes of its file, found by that id, are wrong.
    SetAside {
        digest: Digest,
        wrong: FileId,
        by: FoundBy,
    },
    Upload(UploadChange),
    Erase(Erase),
}

/// The way to the writing task.
pub struct Writer {
    changes: mpsc::Sender<Job>,
    closing: CancellationToken,
    task: Mutex<Option<JoinHandle<()>>>,
}

struct Job {
    change: Change,
    /// Whether there was what the change is about.
    done: oneshot::Sender<Result<bool, StoreError>>,
}

struct Task {
    /// `None` after a commit that failed, until there is a new one.
    connection: Option<Connection>,
    disk: Arc<Disk>,
    memory: Arc<Memory>,
    clock: Clock,
}

impl Writer {
    pub fn start(connection: Connection, disk: Arc<Disk>, memory: Arc<Memory>, clock: Clock) -> Self {
        let (changes, waiting) = mpsc::channel(WAITING_MAX);
        let closing = CancellationToken::new();
        let task =
            tokio::spawn(Task { connection: Some(connection), disk, memory, clock }.run(waiting, closing.clone()));
        Self { changes, closing, task: Mutex::new(Some(task)) }
    }

    /// Makes the change; when this returns, it is durable and the memory knows it.
    pub async fn apply(&self, change: Change) -> Result<bool, StoreError> {
        let (done, outcome) = oneshot::channel();
        let closed = |_| StoreError::catalog("the store is closed");
        self.changes.send(Job { change, done }).await.map_err(|_| StoreError::catalog("the store is closed"))?;
        outcome.await.map_err(closed)?
    }

    /// Makes what waits, takes nothing more, writes last uses, closes the connection.
    pub async fn close(&self) {
        self.closing.cancel();
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task
            && let Err(why) = task.await
        {
            tracing::error!(error = %why, "the catalog's writer ended badly");
        }
    }
}

impl Task {
    async fn run(mut self, mut waiting: mpsc::Receiver<Job>, closing: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut due = tokio::time::interval(USED_EVERY);
        due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                count = waiting.recv_many(&mut batch, BATCH_MAX) => match count {
                    0 => break,
                    _ => self.make(std::mem::take(&mut batch)).await,
                },
                _ = due.tick() => self.write_used().await,
                () = closing.cancelled(), if !waiting.is_closed() => waiting.close(),
            }
        }
        self.write_used().await;
        self.disconnect().await;
    }

    /// Makes all changes in one commit; where one of them fails, each in its own.
    async fn make(&mut self, batch: Vec<Job>) {
        let changes: Vec<&Change> = batch.iter().map(|job| &job.change).collect();
        match self.commit(&changes).await {
            Ok(outcomes) => {
                for (job, outcome) in batch.into_iter().zip(outcomes) {
                    answer(job.done, Ok(outcome));
                }
            }
            Err(why) => self.make_each(batch, why).await,
        }
    }

    async fn make_each(&mut self, mut batch: Vec<Job>, why: StoreError) {
        if batch.len() == 1
            && let Some(job) = batch.pop()
        {
            return answer(job.done, Err(why));
        }
        tracing::debug!(error = %why, "a commit of several changes failed; each is made by itself");
        for job in batch {
            let outcome = self.commit(&[&job.change]).await.map(|outcomes| outcomes.contains(&true));
            answer(job.done, outcome);
        }
    }

    async fn commit(&mut self, changes: &[&Change]) -> Result<Vec<bool>, StoreError> {
        let outcome = self.try_commit(changes).await;
        if outcome.is_err() {
            // On a full disk SQLite rolls back by itself, and sqlx then counts transactions that there are not: what is
            // committed afterwards would only be a savepoint's end (sqlx-sqlite 0.9, `connection/worker.rs`).
            self.disconnect().await;
        }
        outcome
    }

    async fn disconnect(&mut self) {
        if let Some(connection) = self.connection.take()
            && let Err(why) = connection.close().await
        {
            tracing::error!(error = %why, "the catalog did not close cleanly");
        }
    }

    async fn try_commit(&mut self, changes: &[&Change]) -> Result<Vec<bool>, StoreError> {
        self.disk.writable()?;
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => none.insert(catalog::connect_writer(&self.disk.catalog()).await?),
        };
        if let Some(pages) = self.disk.catalog_pages_max() {
            let limit = sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"));
            sqlx::query(limit).execute(&mut *connection).await?;
        }
        let (now_ms, mut touched) = (self.clock.now().as_millisecond(), Touched::default());
        let mut outcomes = Vec::with_capacity(changes.len());
        let mut transaction = connection.begin().await.map_err(|why| diagnose(&self.disk, why.into()))?;
        for change in changes {
            let outcome = match change {
                Change::Sweep(sweep) => sweep.run(&mut transaction, &self.memory, now_ms, &mut touched).await,
                Change::Evict(some) => some.run(&mut transaction, &self.disk, &self.memory, &mut touched).await,
                change => make(&mut transaction, &self.disk, change, now_ms, &mut touched).await,
            };
            outcomes.push(outcome.map_err(|why| diagnose(&self.disk, why))?);
        }
        self.disk.step_of_commit()?;
        transaction.commit().await.map_err(|why| diagnose(&self.disk, why.into()))?;
        self.memory.touch(touched.touches);
        self.throw_away(touched.thrown).await;
        self.remove_quarantined(touched.healed).await;
        Ok(outcomes)
    }

    /// Moves the files of what was swept; what was kept again by a later change of the same commit stays. A file that
    /// cannot be moved has no row, and waits for the next collection.
    async fn throw_away(&mut self, digests: Vec<Digest>) {
        if digests.is_empty() {
            return;
        }
        let moved = async {
            let texts: Vec<String> = digests.iter().map(Digest::to_string).collect();
            let Some(connection) = &mut self.connection else { return Ok(0) };
            let known = sweep::known(connection, &texts).await?;
            let gone = digests.into_iter().filter(|digest| !known.contains(&digest.to_string())).collect::<Vec<_>>();
            let disk = self.disk.clone();
            blocking(move || disk.throw_away(&gone)).await
        };
        if let Err(why) = moved.await {
            tracing::error!(error = &why as &dyn std::error::Error, "collected files could not be moved to the trash");
        }
    }

    /// The wrong files of what is kept again.
    async fn remove_quarantined(&self, healed: Vec<Digest>) {
        if healed.is_empty() {
            return;
        }
        let disk = self.disk.clone();
        let removed = blocking(move || {
            disk.remove_quarantined(&healed);
            Ok(())
        });
        removed.await.unwrap_or_else(|why| tracing::warn!(error = %why, "files in quarantine stay"));
    }

    async fn write_used(&mut self) {
        let used: Vec<(Digest, i64)> = self.memory.take_used().into_iter().collect();
        for some in used.chunks(BATCH_MAX * 4) {
            if let Err(why) = self.commit(&[&Change::Used(some.to_vec())]).await {
                tracing::warn!(error = %why, "when content was last used could not be written");
                return;
            }
        }
    }
}

async fn make(
    c: &mut Connection,
    disk: &Arc<Disk>,
    change: &Change,
    now_ms: i64,
    touched: &mut Touched,
) -> Result<bool, StoreError> {
    match change {
        Change::KeepBlob { repository, blob, size, upload } => {
            // A collection may have moved it between its placing and now.
            if !take_back(disk, blob, *size).await? {
                let why = "it has no such file";
                return Err(StoreError::refused("keep", blob, std::io::ErrorKind::NotFound, why));
            }
            content::keep_blob(c, repository, blob, *size, upload.is_none(), now_ms, touched).await?;
            // It may have been kept long before: its grace time begins anew.
            content::note_used(c, &[(*blob, now_ms)]).await?;
            if let Some(upload) = upload {
                uploads::end(c, upload, None).await?;
            }
        }
        Change::GrantBlob { repository, blob, filled } => {
            if !content::has_blob(c, blob).await? {
                return Ok(false);
            }
            content::grant_blob(c, repository, blob, *filled, touched).await?;
            content::note_used(c, &[(*blob, now_ms)]).await?;
        }
        Change::KeepManifest { repository, manifest, pushing } => {
            if let Some(pushing) = pushing
                && !push::has_needs(c, repository, manifest, pushing).await?
            {
                return Ok(false);
            }
            if !take_back(disk, &manifest.digest, manifest.size()).await? {
                let (disk, manifest) = (disk.clone(), manifest.clone());
                blocking(move || disk.place_bytes(&manifest.digest, &manifest.bytes)).await?;
            }
            let filled = pushing.is_none() && repository.origin != Origin::Local;
            content::keep_manifest(c, repository, manifest, filled, now_ms, touched).await?;
            content::note_used(c, &[(manifest.digest, now_ms)]).await?;
            if let Some(pushing) = pushing {
                push::name(c, repository, manifest, pushing, now_ms, touched).await?;
            }
        }
        Change::Reread(manifest) => return reread::record(c, manifest, touched).await,
        Change::LoseBlob { blob, size, by } => {
            return damage::lose_blob(c, disk, blob, *size, Finding { by: *by, now_ms }, touched).await;
        }
        Change::LoseManifest { manifest, by } => {
            return damage::lose_manifest(c, disk, manifest, Finding { by: *by, now_ms }, touched).await;
        }
        Change::PointTag { repository, tag, digest, source } => {
            return tags::point(c, repository, tag, digest, *source, now_ms, touched).await;
        }
        Change::NoteWanted { name, reference, client } => wanted::note(c, name, reference, *client, now_ms).await?,
        Change::ForgetWanted { name, reference } => wanted::forget(c, name, reference).await?,
        Change::Used(used) => content::note_used(c, used).await?,
        Change::Sweep(_) | Change::Evict(_) => return Ok(false),
        Change::RestoreBlob { blob, size, repositories } => {
            if !take_back(disk, blob, *size).await? {
                return Ok(false);
            }
            trash::restore_blob(c, blob, *size, repositories, now_ms, touched).await?;
        }
        Change::RestoreManifest { manifest, repositories } => {
            if !take_back(disk, &manifest.digest, manifest.size()).await? {
                return Ok(false);
            }
            trash::restore_manifest(c, manifest, repositories, now_ms, touched).await?;
        }
        Change::ForgetTrash { digest, kind } => trash::forget(c, digest, *kind).await?,
        Change::ExpireTrash { before_ms } => return trash::expire(c, *before_ms).await,
        Change::NoteJob { name, position } => job::note(c, name, position, now_ms).await?,
        Change::RemoveTrash(digests) => {
            let (disk, gone) = (disk.clone(), trash::unknown(c, digests).await?);
            blocking(move || {
                disk.mark_gone(&gone);
                Ok(())
            })
            .await?;
        }
        Change::SetAside { digest, wrong, by } => {
            return damage::set_aside(c, disk, digest, *wrong, Finding { by: *by, now_ms }, touched).await;
        }
        Change::Upload(change) => return uploads::make(c, change, now_ms).await,
        Change::Erase(change) => return erase::make(c, change, now_ms, touched).await,
    }
    Ok(true)
}

/// Whether the file of `digest` is in its place; brought back from the trash if it has to be.
async fn take_back(disk: &Arc<Disk>, digest: &Digest, size: u64) -> Result<bool, StoreError> {
    if disk.find_at_once(digest).is_some_and(|found| found.has_size(size)) {
        return Ok(true);
    }
    let (there, digest) = (disk.clone(), *digest);
    blocking(move || Ok(there.take_back(&digest)? && there.find(&digest)?.has_size(size))).await
}

fn answer(to: oneshot::Sender<Result<bool, StoreError>>, outcome: Result<bool, StoreError>) {
    if let Err(Err(why)) = to.send(outcome) {
        tracing::error!(error = &why as &dyn std::error::Error, "a change failed that nobody waits for");
    }
}

/// Tells a full disk and a failed fsync from other failures of the catalog; the latter turns the store read-only.
fn diagnose(disk: &Disk, why: StoreError) -> StoreError {
    let StoreError::Catalog(source) = why else { return why };
    let code = match source.downcast_ref::<sqlx::Error>() {
        Some(sqlx::Error::Database(why)) => why.code().map(|code| code.into_owned()),
        _ => None,
    };
    match code.as_deref() {
        Some(SQLITE_FULL) => StoreError::Full(std::io::Error::new(std::io::ErrorKind::StorageFull, source)),
        Some(SQLITE_IOERR_FSYNC | SQLITE_IOERR_DIR_FSYNC) => {
            disk.turn_read_only(source.as_ref());
            StoreError::Catalog(source)
        }
        _ => StoreError::Catalog(source),
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(why: sqlx::Error) -> Self {
        Self::catalog(why)
    }
}
