//! A push: uploads, mounts, manifests and the tags that name them; and deletions.
//!
//! ```text
//! blob     ── begin ── append … append ── keep: hashed, durable, then readable in this repository
//!          └─ mount: what the pusher can read elsewhere becomes readable here
//! manifest ── parse ── what it names must be here ── keep ── point its tags
//! ```
//! Knows no HTTP, and no upstream: what is pushed or deleted here never asks for anything there. Kept here:
//! * 6: what is acknowledged is durable; the store's calls return only then.
//! * 14: a manifest is taken in only if this repository may read what it names, so pushing one opens nothing up.
//! * 17: bytes between a client and the disk have a bound for all uploads together.

mod error;
mod manifests;
mod settings;
mod uploads;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info};

pub use self::error::PushError;
pub use self::manifests::{PushedManifest, TAGS_MAX};
pub use self::settings::PushSettings;
pub use self::uploads::{Appending, Extent};
use crate::names::{Repository, Target};
use crate::oci::{Digest, Reference};
use crate::store::{Store, UploadId};

/// Repositories that are looked at for a blob that is to be mounted from anywhere.
const HOLDERS_MAX: usize = 64;
/// How often uploads that nobody goes on with are looked for.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);

/// Takes pushes in. Cheap to clone.
#[derive(Clone)]
pub struct Push(Arc<Inner>);

struct Inner {
    store: Store,
    settings: PushSettings,
    /// Bytes that may wait for the disk, of all uploads together.
    room: Arc<Semaphore>,
    /// Uploads that are being written to; the token is cancelled when that ends. As many as there are connections.
    running: DashMap<UploadId, Arc<CancellationToken>>,
    tasks: TaskTracker,
}

/// Who pushes where.
#[derive(Clone, Debug)]
pub struct Order {
    pub target: Target,
    /// The pusher's login; empty for anonymous.
    pub owner: Arc<str>,
    /// The pusher's address.
    pub client: IpAddr,
}

impl Push {
    pub fn new(store: Store, settings: PushSettings) -> Self {
        let (room, running, tasks) =
            (Arc::new(Semaphore::new(uploads::ROOM_BYTES)), DashMap::new(), TaskTracker::new());
        Self(Arc::new(Inner { store, settings, room, running, tasks }))
    }

    /// Makes a blob readable here that the pusher can read in one of `from`. `false`: it cannot be read there, whatever
    /// the reason; it is to be uploaded.
    pub async fn mount(&self, order: &Order, digest: &Digest, from: &[Repository]) -> Result<bool, PushError> {
        self.check_push(order)?;
        let (store, repository) = (&self.0.store, &order.target.repository);
        if !self.is_held(digest, from).await? || !store.mount_blob(repository, digest).await? {
            return Ok(false);
        }
        info!(%repository, %digest, "mounted {digest} in {repository}");
        self.cross_off(repository, &Reference::Digest(*digest)).await;
        Ok(true)
    }

    /// Where the blob may be mounted from; which of them the pusher may read is not for this layer to say.
    pub async fn holders(&self, order: &Order, digest: &Digest) -> Result<Vec<Repository>, PushError> {
        self.check_push(order)?;
        Ok(self.0.store.holders(digest, HOLDERS_MAX).await?)
    }

    async fn is_held(&self, digest: &Digest, from: &[Repository]) -> Result<bool, PushError> {
        for holder in from {
            if self.0.store.blob(holder, digest).await?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Deletes a tag, or a manifest with the tags that name it.
    pub async fn delete_manifest(&self, order: &Order, reference: &Reference) -> Result<(), PushError> {
        self.check_delete(order)?;
        let (store, repository) = (&self.0.store, &order.target.repository);
        let deleted = match reference {
            Reference::Tag(tag) => store.delete_tag(repository, tag).await?,
            Reference::Digest(digest) => store.delete_manifest(repository, digest).await?,
        };
        let what = format!("{}{}", order.target.asked, reference.suffix());
        if deleted {
            info!(%repository, %reference, "deleted {what}");
            return Ok(());
        }
        self.check_name(order).await?;
        Err(PushError::ManifestUnknown { what })
    }

    pub async fn delete_blob(&self, order: &Order, digest: &Digest) -> Result<(), PushError> {
        self.check_delete(order)?;
        let repository = &order.target.repository;
        if self.0.store.delete_blob(repository, digest).await? {
            info!(%repository, %digest, "deleted {digest} of {repository}");
            return Ok(());
        }
        self.check_name(order).await?;
        Err(PushError::BlobUnknown { what: format!("{}@{digest}", order.target.asked) })
    }

    /// Removes uploads that nobody goes on with, until `end`.
    pub async fn run(&self, end: CancellationToken) {
        // The store does it at its start.
        while end.run_until_cancelled(tokio::time::sleep(EXPIRE_EVERY)).await.is_some() {
            match self.0.store.expire_uploads().await {
                Ok(0) => {}
                Ok(count) => info!(count, "removed {count} uploads that nobody went on with"),
                Err(why) => error!(error = &why as &dyn std::error::Error, "old uploads stay: {why}"),
            }
        }
    }

    /// Waits until nothing is being written any more; for the time after the last client.
    pub async fn ended(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    fn check_push(&self, order: &Order) -> Result<(), PushError> {
        if !self.0.settings.enabled {
            return Err(PushError::PushesOff);
        }
        match &order.target.source {
            Some(source) if !source.policy.push => {
                let (name, upstream) = (order.target.asked.to_string(), source.upstream.to_string());
                Err(PushError::RouteTakesNone { name, upstream })
            }
            _ => Ok(()),
        }
    }

    fn check_delete(&self, order: &Order) -> Result<(), PushError> {
        self.check_push(order)?;
        if self.0.settings.delete { Ok(()) } else { Err(PushError::DeletionsOff) }
    }

    async fn check_name(&self, order: &Order) -> Result<(), PushError> {
        match self.0.store.has_repository(&order.target.repository).await? {
            true => Ok(()),
            false => Err(PushError::NameUnknown { name: order.target.asked.to_string() }),
        }
    }

    /// What was pushed is no longer wanted: its pusher asked for it before.
    async fn cross_off(&self, repository: &Repository, reference: &Reference) {
        if let Err(why) = self.0.store.forget_wanted(&repository.to_string(), &reference.to_string()).await {
            error!("cannot cross {repository}{} off the wanted list: {why}", reference.suffix());
        }
    }
}
