//! Who asked for a name lately: kept only while somebody watches it, so that a check can tell a pull through here from
//! one past us.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::{StatusCode, header, request};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// Most names that are watched at one time; the oldest watch gives way.
pub const WATCHES_MAX: usize = 8;
/// Most requests that one watch keeps; the oldest give way.
pub const SEEN_MAX: usize = 64;
/// Longest path and user agent that are kept, in bytes.
const TEXT_MAX: usize = 300;
/// A watch that nobody ends is over after this.
const LASTS: SignedDuration = SignedDuration::from_mins(15);

/// A client's request, as a watch saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub at: Timestamp,
    pub client: IpAddr,
    pub method: String,
    /// With its query, which names the registry that containerd has in mind.
    pub path: String,
    pub agent: String,
    pub status: u16,
}

/// The watches of a running server.
#[derive(Debug, Default)]
pub struct Recent {
    /// Looked at with every request: no watch must cost next to nothing.
    watching: AtomicBool,
    ids: AtomicU64,
    watches: Mutex<VecDeque<Watch>>,
}

#[derive(Debug)]
struct Watch {
    id: u64,
    /// Part of the paths that it wants to see.
    name: String,
    until: Timestamp,
    seen: VecDeque<Seen>,
}

impl Recent {
    /// From now on keeps requests whose path holds `name`. The number ends the watch.
    pub(super) fn watch(&self, name: &str, now: Timestamp) -> u64 {
        let id = self.ids.fetch_add(1, Ordering::Relaxed) + 1;
        let mut watches = self.lock();
        watches.retain(|watch| watch.is_on(now));
        while watches.len() >= WATCHES_MAX {
            watches.pop_front();
        }
        watches.push_back(Watch { id, name: name.to_owned(), until: now + LASTS, seen: VecDeque::new() });
        self.watching.store(true, Ordering::Release);
        id
    }

    /// Ends the watch and tells what it saw; `None` where there is no such watch any more.
    pub(super) fn end(&self, id: u64) -> Option<Vec<Seen>> {
        let mut watches = self.lock();
        let at = watches.iter().position(|watch| watch.id == id)?;
        let watch = watches.remove(at);
        self.watching.store(!watches.is_empty(), Ordering::Release);
        watch.map(|watch| watch.seen.into())
    }

    /// Puts an answered request on record, if it is watched.
    pub(super) fn note(
        &self,
        head: &request::Parts,
        client: IpAddr,
        status: StatusCode,
        now: impl FnOnce() -> Timestamp,
    ) {
        if !self.watching.load(Ordering::Acquire) {
            return;
        }
        let (now, mut watches) = (now(), self.lock());
        watches.retain(|watch| watch.is_on(now));
        self.watching.store(!watches.is_empty(), Ordering::Release);
        for watch in watches.iter_mut().filter(|watch| head.uri.path().contains(&watch.name)) {
            let agent = head.headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok());
            if watch.seen.len() >= SEEN_MAX {
                watch.seen.pop_front();
            }
            watch.seen.push_back(Seen {
                at: now,
                client: client.to_canonical(),
                method: head.method.to_string(),
                path: shortened(head.uri.path_and_query().map_or("", |path| path.as_str())),
                agent: shortened(agent.unwrap_or_default()),
                status: status.as_u16(),
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Watch>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// A clock that was set back does not make it last.
    fn is_on(&self, now: Timestamp) -> bool {
        (self.until - LASTS..self.until).contains(&now)
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(TEXT_MAX).collect()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn ask(recent: &Recent, path: &str, at: Timestamp) {
        let request = Request::get(path).header("user-agent", "docker/29 ".repeat(100)).body(()).unwrap();
        recent.note(&request.into_parts().0, CLIENT, StatusCode::OK, || at);
    }

    #[test]
    fn only_what_is_watched_is_kept_and_only_while_it_is() {
        let (recent, now) = (Recent::default(), Timestamp::from_second(1000).unwrap());
        ask(&recent, "/v2/library/alpine/manifests/3", now);
        let id = recent.watch("alpine", now);
        ask(&recent, "/v2/library/alpine/manifests/3?ns=docker.io", now);
        ask(&recent, "/v2/library/busybox/manifests/3", now);
        let seen = recent.end(id).unwrap();
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].path.as_str(), seen[0].status), ("/v2/library/alpine/manifests/3?ns=docker.io", 200));
        assert_eq!(recent.end(id), None);
        assert!(!recent.watching.load(Ordering::Acquire));
        let id = recent.watch("alpine", now);
        ask(&recent, "/v2/library/alpine/manifests/3", now + LASTS);
        assert_eq!(recent.end(id), None, "it is over");
    }

    #[test]
    fn watches_and_what_they_saw_have_bounds() {
        // Invariant 17
        let (recent, now) = (Recent::default(), Timestamp::from_second(1000).unwrap());
        let ids: Vec<_> = (0..WATCHES_MAX + 3).map(|_| recent.watch("a", now)).collect();
        for number in 0..SEEN_MAX + 5 {
            ask(&recent, &format!("/v2/a/{number}/{}", "x".repeat(2000)), now);
        }
        assert_eq!(recent.end(ids[2]), None);
        let seen = recent.end(ids[3]).unwrap();
        assert_eq!(seen.len(), SEEN_MAX);
        assert!(seen[0].path.starts_with("/v2/a/5/"));
        assert!(seen.iter().all(|one| one.path.len() <= TEXT_MAX && one.agent.len() <= TEXT_MAX));
    }
}
