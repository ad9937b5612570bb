//! What was kept and was found damaged is fetched again, in the background, while the gate is open.
//!
//! One piece at a time, by the ordinary fill, for a repository that holds or names it. The gate's opening and a new
//! finding begin a round; what could not be had waits for the next one. Content of this site's own has no upstream: it
//! comes again by a push or an import.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::memory::Subject;
use super::{FetchError, Pull};
use crate::names::{Origin, Repository, Source, Target};
use crate::oci::{Digest, Reference};
use crate::store::{GarbageKind, StoreError, Wound};

/// Pieces of one round.
const ROUND_MAX: usize = 1_000;
/// After this long what could not be had is tried again, if the gate is open.
const AGAIN_EVERY: Duration = Duration::from_secs(3600);

/// Starts the work; it ends at `stop`. Nothing is fetched by a start alone (invariant 15).
pub(super) fn start(pull: &Pull, stop: CancellationToken) {
    let pull = pull.clone();
    pull.0.tasks.clone().spawn(async move { stop.run_until_cancelled(pull.heal_for_ever()).await });
}

impl Pull {
    async fn heal_for_ever(&self) {
        let (mut gate, mut damage) = (self.0.gate.changes(), self.0.store.damage_changes());
        loop {
            tokio::select! {
                // Their senders live as long as `self`.
                _ = gate.changed() => {}
                _ = damage.changed() => {}
                () = tokio::time::sleep(AGAIN_EVERY) => {}
            }
            gate.mark_unchanged();
            damage.mark_unchanged();
            if let Err(why) = self.heal().await {
                warn!(error = &why as &dyn std::error::Error, "what is damaged stays so for now: {why}");
            }
        }
    }

    /// One round.
    async fn heal(&self) -> Result<(), StoreError> {
        for wound in self.0.store.wounds(ROUND_MAX).await? {
            for repository in &wound.repositories {
                let Some((target, source)) = self.open_source(repository) else { continue };
                let digest = wound.digest;
                match self.heal_one(&wound, &target, &source).await {
                    Ok(()) => {
                        info!(%repository, %digest, "{digest} was found damaged and is fetched again");
                        break;
                    }
                    Err(why) => warn!(%repository, %digest, "could not fetch {digest} again for {repository}: {why}"),
                }
            }
        }
        Ok(())
    }

    /// Where to fetch for `repository`: as clients reach it by its upstream's host, and only through an open gate.
    fn open_source(&self, repository: &Repository) -> Option<(Target, Source)> {
        let Origin::Upstream(host) = &repository.origin else { return None };
        let target = self.0.routes.resolve(&repository.name, Some(host)).ok()?;
        let source = target.source.clone()?;
        let open = target.repository == *repository && self.0.gate.refusal(&source.upstream).is_none();
        open.then_some((target, source))
    }

    async fn heal_one(&self, wound: &Wound, target: &Target, source: &Source) -> Result<(), FetchError> {
        match wound.kind {
            GarbageKind::Manifest => {
                let reference = Reference::Digest(wound.digest);
                if let Some(why) = self.0.memory.refused(&target.repository, &Subject::Manifest(reference.clone())) {
                    return Err(why);
                }
                self.fetch_manifest(target, source, reference, true).await.map(drop)
            }
            _ => self.fetch_blob(&target.repository, source, &wound.digest).await,
        }
    }

    /// Fills a blob for nobody in particular.
    pub(super) async fn fetch_blob(
        &self,
        repository: &Repository,
        source: &Source,
        digest: &Digest,
    ) -> Result<(), FetchError> {
        let subject = Subject::Blob(*digest);
        if let Some(why) = self.0.memory.refused(repository, &subject) {
            return Err(why);
        }
        let fetched = match self.follow(repository, source, digest).await {
            Ok(joined) => joined.following.kept().await.map(drop),
            Err(why) => Err(why),
        };
        fetched.map_err(|why| self.0.memory.note(repository, &subject, why))
    }
}
