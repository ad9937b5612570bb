//! The demand ledger: what was asked for while it could not be had. Bounded: [`WANTED_MAX`](super::WANTED_MAX) rows, the
//! longest unasked go first.

use std::net::IpAddr;

use super::catalog::wanted;
use super::catalog::writer::Change;
use super::{Store, StoreError, Wanted};

impl Store {
    pub async fn note_wanted(&self, name: &str, reference: &str, client: IpAddr) -> Result<(), StoreError> {
        let (name, reference) = (name.to_owned(), reference.to_owned());
        self.0.writer.apply(Change::NoteWanted { name, reference, client }).await.map(drop)
    }

    /// It is kept now: no longer wanted.
    pub async fn forget_wanted(&self, name: &str, reference: &str) -> Result<(), StoreError> {
        let (name, reference) = (name.to_owned(), reference.to_owned());
        self.0.writer.apply(Change::ForgetWanted { name, reference }).await.map(drop)
    }

    /// The last asked for first.
    pub async fn wanted(&self) -> Result<Vec<Wanted>, StoreError> {
        wanted::list(&self.0.readers).await
    }
}
