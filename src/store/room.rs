//! Room for what is about to come: who finds too little asks for more, and whoever can make room answers.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use super::{Store, StoreError};

/// Most that ask for room at one time; more are told that there is none.
pub const ROOM_ORDERS_MAX: usize = 64;
/// How long room is waited for.
pub const ROOM_WAIT_MAX: Duration = Duration::from_secs(20);

/// Somebody waits for room.
#[derive(Debug)]
pub struct RoomOrder {
    pub bytes: u64,
    done: oneshot::Sender<()>,
}

impl RoomOrder {
    /// It was seen to, with or without success. Whoever asked looks for himself.
    pub fn done(self) {
        // Who asked may have given up.
        let _ = self.done.send(());
    }
}

/// The way to whoever makes room, if there is one.
#[derive(Debug, Default)]
pub(super) struct Desk(Mutex<Option<mpsc::Sender<RoomOrder>>>);

impl Store {
    /// As [`Store::check_room`], but where there is too little room it asks for some to be made, and waits for that for at
    /// most [`ROOM_WAIT_MAX`].
    pub async fn find_room(&self, bytes: u64) -> Result<(), StoreError> {
        let full = match self.check_room(bytes) {
            Err(StoreError::Full(why)) => StoreError::Full(why),
            found => return found,
        };
        let desk = self.0.room.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(desk) = desk else { return Err(full) };
        let (done, seen_to) = oneshot::channel();
        if desk.try_send(RoomOrder { bytes, done }).is_err() {
            return Err(full);
        }
        match tokio::time::timeout(ROOM_WAIT_MAX, seen_to).await {
            Ok(Ok(())) => self.check_room(bytes),
            _ => Err(full),
        }
    }

    /// For the one who makes room: from now on, those who find too little wait for him.
    pub fn room_orders(&self) -> mpsc::Receiver<RoomOrder> {
        let (desk, orders) = mpsc::channel(ROOM_ORDERS_MAX);
        *self.0.room.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(desk);
        orders
    }
}
