//! One running job per key; whoever asks meanwhile shares its outcome.
//!
//! A job belongs to the server: it runs on a task of its own, so a client that leaves does not stop it (invariant 4).

use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Jobs under way, by key.
pub struct Flights<K, V> {
    running: Arc<DashMap<K, watch::Receiver<Option<V>>>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl<K, V> Flights<K, V>
where
    K: Eq + Hash + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Jobs that run at `stop` are given up.
    pub fn new(tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self { running: Arc::default(), tasks, stop }
    }

    /// The outcome of the job that runs under `key`, which is started if none does. `None` if it panicked or was given up.
    pub async fn join<F>(&self, key: K, job: impl FnOnce() -> F) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut outcome = match self.running.entry(key.clone()) {
            Entry::Occupied(running) => running.get().clone(),
            Entry::Vacant(free) => {
                let (landed, outcome) = watch::channel(None);
                free.insert(outcome.clone());
                let slot = Slot { running: self.running.clone(), key };
                let (job, stop) = (job(), self.stop.clone());
                self.tasks.spawn(async move {
                    let Some(value) = stop.run_until_cancelled(job).await else { return };
                    // Free the key before telling the waiters: whoever asks after the outcome starts afresh.
                    drop(slot);
                    landed.send_replace(Some(value));
                });
                outcome
            }
        };
        outcome.wait_for(Option::is_some).await.ok().and_then(|value| value.clone())
    }
}

/// Frees its key when dropped, so that a job that panics does not block it for good.
struct Slot<K: Eq + Hash, V> {
    running: Arc<DashMap<K, watch::Receiver<Option<V>>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Slot<K, V> {
    fn drop(&mut self) {
        self.running.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn all_who_ask_meanwhile_share_one_job() {
        // Invariant 4
        let flights = Flights::<u8, usize>::new(TaskTracker::new(), CancellationToken::new());
        let (runs, release) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let ask = || {
            let (runs, release) = (runs.clone(), release.clone());
            flights.join(1, move || async move {
                release.notified().await;
                runs.fetch_add(1, Ordering::SeqCst)
            })
        };
        let ((), first, second) = tokio::join!(
            async {
                tokio::task::yield_now().await;
                release.notify_one();
            },
            ask(),
            ask()
        );
        assert_eq!((first, second), (Some(0), Some(0)));
        release.notify_one();
        assert_eq!(ask().await, Some(1), "a later ask starts afresh");
    }

    #[tokio::test]
    async fn a_panic_frees_the_key_and_tells_the_waiters() {
        let flights = Flights::<u8, ()>::new(TaskTracker::new(), CancellationToken::new());
        assert_eq!(flights.join(1, || async { panic!("on purpose") }).await, None);
        assert_eq!(flights.join(1, || async {}).await, Some(()));
    }

    #[tokio::test]
    async fn a_stop_ends_the_job_and_tells_the_waiters() {
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let flights = Flights::<u8, ()>::new(tasks.clone(), stop.clone());
        let ((), outcome) = tokio::join!(async { stop.cancel() }, flights.join(1, std::future::pending));
        assert_eq!(outcome, None);
        tasks.close();
        tasks.wait().await;
    }

    #[tokio::test]
    async fn a_leaving_client_does_not_stop_the_job() {
        // Invariant 4
        let tasks = TaskTracker::new();
        let flights = Flights::<u8, ()>::new(tasks.clone(), CancellationToken::new());
        let (release, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        {
            let (release, done) = (release.clone(), done.clone());
            let leaving = flights.join(1, move || async move {
                release.notified().await;
                done.notify_one();
            });
            tokio::select! {
                biased;
                _ = leaving => unreachable!("it has not been released"),
                () = tokio::task::yield_now() => {}
            }
        }
        release.notify_one();
        done.notified().await;
    }
}
