//! The catalog: what the bytes are, where they may be read, and what tags name. SQL, in SQLite.
//!
//! One task writes ([`writer`]), so that commits and the memory that follows them have one order; several connections
//! read. The SQL keeps to what PostgreSQL takes too: `$1`, `ON CONFLICT`, no `rowid`.

pub mod complete;
pub mod content;
pub mod damage;
pub mod erase;
pub mod evict;
pub mod job;
#[cfg(test)]
mod plans;
pub mod push;
pub mod read;
pub mod referrers;
pub mod report;
pub mod reread;
pub mod sweep;
pub mod tags;
pub mod touched;
pub mod trash;
pub mod uploads;
pub mod wanted;
pub mod writer;

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection as _};

use super::StoreError;
use crate::oci::Digest;

/// What SQL is spoken to.
pub type Connection = SqliteConnection;
pub type Pool = SqlitePool;
pub type Database = sqlx::Sqlite;

/// Connections that read.
const READERS_MAX: u32 = 4;
/// How long another program's lock on the file is waited for, such as a backup's.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a reader waits for a connection.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

static MIGRATIONS: Migrator = sqlx::migrate!("src/store/migrations");

/// Opens the catalog at `path`, brings it to this program's version, and returns the writer's connection and the
/// readers'.
pub async fn open(path: &Path) -> Result<(Connection, Pool), StoreError> {
    let mut writer = connect_writer(path).await?;
    if let Err(why) = MIGRATIONS.run(&mut writer).await {
        let refused = refuse(why);
        if let Err(why) = writer.close().await {
            tracing::warn!(error = %why, "the catalog did not close cleanly");
        }
        return Err(refused);
    }
    fold_in(&mut writer).await;
    let readers = SqlitePoolOptions::new()
        .max_connections(READERS_MAX)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .test_before_acquire(false)
        .connect_lazy_with(options(path).read_only(true));
    Ok((writer, readers))
}

/// Folds what an earlier run left in the write-ahead log into the catalog, and begins the log anew.
///
/// That run may have ended because an fsync of the log failed. The kernel then takes the lost pages for written, and what
/// is appended behind them would be gone with the next power cut, however often it is synced.
async fn fold_in(writer: &mut Connection) {
    if let Err(why) = sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(writer).await {
        tracing::warn!(error = %why, "the catalog's log could not be folded in at the start; a later commit does it");
    }
}

/// A connection that writes; there is one at a time.
pub async fn connect_writer(path: &Path) -> Result<Connection, StoreError> {
    let writes =
        options(path).create_if_missing(true).journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
    writes.connect().await.map_err(StoreError::catalog)
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).busy_timeout(BUSY_TIMEOUT).foreign_keys(true)
}

fn refuse(why: MigrateError) -> StoreError {
    let newest = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default();
    match why {
        MigrateError::VersionMissing(applied) if applied > newest => StoreError::Newer,
        other => StoreError::catalog(other),
    }
}

/// A digest as the catalog has it.
pub fn digest(text: &str) -> Result<Digest, StoreError> {
    text.parse().map_err(StoreError::catalog)
}

pub fn time(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A size or count as the catalog has it; never negative.
pub fn number(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}

/// A size for the catalog. What a manifest states may be anything; what is larger than this is not kept anyway.
pub fn integer(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
