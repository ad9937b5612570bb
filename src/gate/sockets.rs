//! Every socket to an upstream, so that closing the gate can reset them all at once.
//!
//! Invariants kept here:
//! * A socket is in the table before its first packet: [`Sockets::admit`] connects it under the table's lock.
//! * A [`Leave`] that is revoked gets no socket and starts no name look-up.
//! * A reset socket says nothing more: no FIN, no close_notify, no retransmission (RELIABILITY 1.3).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Most sockets to upstreams at one time.
pub const SOCKETS_MAX: usize = 1024;

/// What one upstream may do while the gate is open for it: shared by its permits and sockets, revoked as one.
pub(super) struct Leave {
    pub(super) upstream: Arc<str>,
    /// Of a host inside the site, which is no upstream: the gate does not revoke it.
    inside: bool,
    revoked: AtomicBool,
    told: CancellationToken,
    /// Permits that are out.
    under_way: watch::Sender<usize>,
    /// Name look-ups that have not returned; they cannot be stopped, only waited for.
    lookups: watch::Sender<usize>,
}

impl Leave {
    pub(super) fn new(upstream: Arc<str>) -> Arc<Self> {
        Self::of(upstream, false)
    }

    /// Leave to ask a host inside the site; `name` is for the audit file.
    pub(super) fn inside(name: Arc<str>) -> Arc<Self> {
        Self::of(name, true)
    }

    fn of(upstream: Arc<str>, inside: bool) -> Arc<Self> {
        Arc::new(Self {
            upstream,
            inside,
            revoked: AtomicBool::new(false),
            told: CancellationToken::new(),
            under_way: watch::Sender::new(0),
            lookups: watch::Sender::new(0),
        })
    }

    pub(super) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    pub(super) async fn revoked(&self) {
        self.told.cancelled().await;
    }

    /// Counts something under way until the guard is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> UnderWay {
        self.under_way.send_modify(|count| *count += 1);
        UnderWay(self.clone())
    }

    pub(super) fn count(&self) -> usize {
        *self.under_way.borrow()
    }

    /// Returns once nothing is under way.
    pub(super) async fn idle(&self) {
        // The sender lives in `self`, so the wait cannot fail.
        let _ = self.under_way.subscribe().wait_for(|count| *count == 0).await;
    }

    /// Waits for name look-ups that were under way; how many still are after `longest`.
    pub(super) async fn lookups_done(&self, longest: Duration) -> usize {
        let mut lookups = self.lookups.subscribe();
        match tokio::time::timeout(longest, lookups.wait_for(|count| *count == 0)).await {
            Ok(_) => 0,
            Err(_) => *self.lookups.borrow(),
        }
    }
}

/// One request under way.
pub(super) struct UnderWay(Arc<Leave>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.send_modify(|count| *count -= 1);
    }
}

/// One name look-up under way.
pub(super) struct Lookup(Arc<Leave>);

impl Drop for Lookup {
    fn drop(&mut self) {
        self.0.lookups.send_modify(|count| *count -= 1);
    }
}

/// Why a socket may not be had.
pub(super) enum NotAdmitted {
    Revoked,
    Io(io::Error),
}

/// The table of sockets.
#[derive(Clone, Default)]
pub(super) struct Sockets(Arc<Mutex<Table>>);

#[derive(Default)]
struct Table {
    next: u64,
    open: HashMap<u64, Entry>,
}

struct Entry {
    /// A duplicate: the owner's descriptor may be closed, and its number taken by another socket, at any time.
    socket: OwnedFd,
    leave: Arc<Leave>,
}

/// Takes the socket out of the table again. Must be dropped together with the socket, or the peer never sees its end.
pub(super) struct Registration {
    table: Sockets,
    key: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        let entry = self.table.lock().open.remove(&self.key);
        drop(entry);
    }
}

impl Sockets {
    /// Enters `socket` and runs `connect` (which must not wait) on it, unless `leave` has been revoked.
    pub(super) fn admit(
        &self,
        leave: &Arc<Leave>,
        socket: &OwnedFd,
        connect: impl FnOnce(&OwnedFd) -> io::Result<()>,
    ) -> Result<Registration, NotAdmitted> {
        let duplicate = socket.try_clone().map_err(NotAdmitted::Io)?;
        let mut table = self.lock();
        if leave.is_revoked() {
            return Err(NotAdmitted::Revoked);
        }
        if table.open.len() >= SOCKETS_MAX {
            return Err(NotAdmitted::Io(io::Error::other(format!("{SOCKETS_MAX} sockets to upstreams are open"))));
        }
        connect(socket).map_err(NotAdmitted::Io)?;
        let key = table.next;
        table.next += 1;
        table.open.insert(key, Entry { socket: duplicate, leave: leave.clone() });
        Ok(Registration { table: self.clone(), key })
    }

    /// Counts a name look-up until the guard is dropped; `None` when `leave` has been revoked.
    pub(super) fn look_up(&self, leave: &Arc<Leave>) -> Option<Lookup> {
        let _table = self.lock();
        if leave.is_revoked() {
            return None;
        }
        leave.lookups.send_modify(|count| *count += 1);
        Some(Lookup(leave.clone()))
    }

    /// Revokes `leaves` and resets their sockets; how many. On return nothing of theirs can be sent any more, but for
    /// name look-ups under way. Errors are those of the kernel; the socket is then closed without a reset.
    pub(super) fn revoke(&self, leaves: &[Arc<Leave>]) -> (usize, Vec<io::Error>) {
        let mut cut = 0;
        let mut errors = Vec::new();
        {
            let mut table = self.lock();
            // Under the lock: an `admit` or `look_up` has either finished, or will see this.
            for leave in leaves {
                leave.revoked.store(true, Ordering::Release);
            }
            table.open.retain(|_, entry| {
                if !entry.leave.is_revoked() {
                    return true;
                }
                cut += 1;
                errors.extend(reset(&entry.socket).err());
                false
            });
        }
        for leave in leaves {
            leave.told.cancel();
        }
        (cut, errors)
    }

    /// Sockets to upstreams.
    pub(super) fn len(&self) -> usize {
        self.lock().open.values().filter(|entry| !entry.leave.inside).count()
    }

    /// Every step under this lock leaves the table whole, so one that panicked has not broken it.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes the end of `socket` a reset from now on, also when the process dies: a FIN would leave the kernel something to
/// repeat after the gate has closed.
pub(super) fn end_by_reset(socket: impl AsFd) -> io::Result<()> {
    Ok(sockopt::set_socket_linger(socket, Some(Duration::ZERO))?)
}

/// Resets a connection, or stops one that is being made (tcp_disconnect in Linux): what was unsent is dropped.
fn reset(socket: &OwnedFd) -> io::Result<()> {
    end_by_reset(socket)?;
    Ok(rustix::net::connect_unspec(socket)?)
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketType};

    use super::*;

    fn socket() -> OwnedFd {
        rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap()
    }

    #[test]
    fn a_revoked_leave_gets_no_socket_and_no_name_look_up() {
        // Invariant 1
        let (sockets, leave, other) = (Sockets::default(), Leave::new("hub".into()), Leave::new("quay".into()));
        let kept = sockets.admit(&other, &socket(), |_| Ok(())).ok().unwrap();
        let cut = sockets.admit(&leave, &socket(), |_| Ok(())).ok().unwrap();
        assert_eq!(sockets.revoke(std::slice::from_ref(&leave)).0, 1);
        assert_eq!(sockets.len(), 1);
        let mut connected = false;
        let refused = sockets.admit(&leave, &socket(), |_| {
            connected = true;
            Ok(())
        });
        assert!(matches!(refused, Err(NotAdmitted::Revoked)) && !connected);
        assert!(sockets.look_up(&leave).is_none() && sockets.look_up(&other).is_some());
        drop((kept, cut));
        assert_eq!(sockets.len(), 0);
    }

    #[test]
    fn a_connection_in_the_making_is_stopped_while_its_owner_still_holds_it() {
        // Invariant 1
        let (listener, first) = (socket(), socket());
        rustix::net::bind(&listener, &std::net::SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        // With one connection in the queue of a listener that takes none, the kernel drops the next SYN.
        rustix::net::listen(&listener, 0).unwrap();
        let address = std::net::SocketAddr::try_from(rustix::net::getsockname(&listener).unwrap()).unwrap();
        rustix::net::connect(&first, &address).unwrap();
        let (sockets, leave, owned) = (Sockets::default(), Leave::new("hub".into()), socket());
        rustix::io::ioctl_fionbio(&owned, true).unwrap();
        let registration = sockets.admit(&leave, &owned, |socket| {
            assert_eq!(rustix::net::connect(socket, &address), Err(rustix::io::Errno::INPROGRESS));
            Ok(())
        });
        let waiting = format!("0100007F:{:04X} 02", address.port());
        let syns = || std::fs::read_to_string("/proc/net/tcp").unwrap().matches(&waiting).count();
        assert_eq!(syns(), 1);
        sockets.revoke(std::slice::from_ref(&leave));
        assert_eq!(syns(), 0, "the kernel would send the SYN again");
        assert!(registration.is_ok());
    }

    #[tokio::test]
    async fn closing_waits_for_name_look_ups_but_not_for_ever() {
        // Invariant 1
        // Invariant 17
        let (sockets, leave) = (Sockets::default(), Leave::new("hub".into()));
        let look_up = sockets.look_up(&leave).unwrap();
        sockets.revoke(std::slice::from_ref(&leave));
        assert_eq!(leave.lookups_done(Duration::from_millis(1)).await, 1);
        let (left, ()) = tokio::join!(leave.lookups_done(Duration::from_secs(600)), async { drop(look_up) });
        assert_eq!(left, 0);
    }

    #[test]
    fn there_is_a_most_of_sockets() {
        // Invariant 17
        let (sockets, leave) = (Sockets::default(), Leave::new("hub".into()));
        let one = socket();
        let admit = || sockets.admit(&leave, &one, |_| Ok(()));
        let held: Vec<_> = (0..SOCKETS_MAX).map_while(|_| admit().ok()).collect();
        // The process may not have so many descriptors; then the kernel's bound came first.
        assert!(matches!(admit(), Err(NotAdmitted::Io(_))));
        assert!(held.len() <= SOCKETS_MAX);
    }
}
