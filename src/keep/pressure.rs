//! How short room is, and what the jobs have done: for `sealock status` and `sealock gc`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::KeepSettings;
use crate::store::{ROOM_LEFT_BYTES, Store, StoreError};

/// What is kept and what is free, held against the settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pressure {
    pub kept_bytes: u64,
    /// `None`: no limit.
    pub max_size_bytes: Option<u64>,
    /// On the file system of the data folder.
    pub free_bytes: u64,
    /// `None`: no limit.
    pub min_free_bytes: Option<u64>,
    /// What would have to go for both limits to be kept.
    pub over_bytes: u64,
}

/// `keep` of `sealock status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepStatus {
    #[serde(flatten)]
    pub pressure: Pressure,
    /// Collected, still to be put back, and still on the disk.
    pub trash_bytes: u64,
    pub last_collection: Option<Done>,
    pub last_eviction: Option<Done>,
}

/// What a job came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    pub at: Timestamp,
    #[serde(flatten)]
    pub sum: Sum,
}

/// What went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    pub manifests: u64,
    pub blobs: u64,
    pub size_bytes: u64,
    /// Tags that a rule removed, or that do not resolve here any more.
    pub tags: u64,
}

impl Pressure {
    pub(super) async fn of(store: &Store, settings: &KeepSettings) -> Result<Self, StoreError> {
        let limit = |size: crate::size::Size| (size.0 > 0).then_some(size.0);
        let mut found = Self {
            kept_bytes: store.kept_bytes().await?,
            max_size_bytes: limit(settings.max_size),
            free_bytes: store.free_bytes()?,
            min_free_bytes: limit(settings.min_free),
            over_bytes: 0,
        };
        let over = found.max_size_bytes.map_or(0, |max| found.kept_bytes.saturating_sub(max));
        let short = found.min_free_bytes.map_or(0, |min| min.saturating_sub(found.free_bytes));
        found.over_bytes = over.max(short);
        Ok(found)
    }

    /// (pure) What is to go: where a limit is passed, so much that there is a while until it is again.
    pub(super) fn to_go(&self) -> u64 {
        let spare = |limit: u64| limit / 20;
        let over = self.max_size_bytes.filter(|max| self.kept_bytes > *max);
        let over = over.map_or(0, |max| self.kept_bytes - (max - spare(max)));
        let short = self.min_free_bytes.filter(|min| self.free_bytes < *min);
        let short = short.map_or(0, |min| min.saturating_add(spare(min)) - self.free_bytes);
        over.max(short)
    }

    /// (pure) What is to go for `bytes` that found too little room.
    pub(super) fn to_go_for(&self, bytes: u64) -> u64 {
        let lacks = bytes.saturating_add(ROOM_LEFT_BYTES).saturating_sub(self.free_bytes);
        lacks.max(bytes).max(self.to_go())
    }
}

impl Sum {
    /// As a job's position, which tells what it came to.
    pub(super) fn to_text(self) -> String {
        serde_json::json!(self).to_string()
    }

    /// What the job noted last; `None` if it has never run.
    pub(super) fn of(job: Option<(String, Timestamp)>) -> Option<Done> {
        let (text, at) = job?;
        Some(Done { at, sum: serde_json::from_str(&text).ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pressure(kept: u64, max: u64, free: u64, min: u64) -> Pressure {
        let limit = |size| (size > 0).then_some(size);
        Pressure {
            kept_bytes: kept,
            max_size_bytes: limit(max),
            free_bytes: free,
            min_free_bytes: limit(min),
            over_bytes: 0,
        }
    }

    #[test]
    fn room_is_made_when_a_limit_is_passed_and_then_a_little_more() {
        // Kept, its limit, free, its limit; what is to go.
        let cases = [
            (1_000, 0, 10, 0, 0),
            (1_000, 1_000, 10, 0, 0),
            (1_001, 1_000, 10, 0, 51),
            (1_000, 0, 100, 100, 0),
            (1_000, 0, 99, 100, 6),
            (2_000, 1_000, 0, 100, 1_050),
            (1_001, 1_000, 0, 1_000, 1_050),
            (1, 0, 0, u64::MAX, u64::MAX),
        ];
        for (number, (kept, max, free, min, wanted)) in cases.into_iter().enumerate() {
            assert_eq!(pressure(kept, max, free, min).to_go(), wanted, "case {number}");
        }
        assert_eq!(pressure(1, 10, ROOM_LEFT_BYTES, 0).to_go_for(100), 100);
        assert_eq!(pressure(1, 10, 0, 0).to_go_for(100), ROOM_LEFT_BYTES + 100);
        assert_eq!(pressure(1, 10, u64::MAX, 0).to_go_for(100), 100, "a quota, perhaps");
    }

    #[test]
    fn what_a_job_came_to_is_read_back() {
        let sum = Sum { manifests: 1, blobs: 2, size_bytes: 3, tags: 4 };
        let read = Sum::of(Some((sum.to_text(), Timestamp::UNIX_EPOCH))).unwrap();
        assert_eq!(read.sum, sum);
        assert_eq!(Sum::of(Some((String::new(), Timestamp::UNIX_EPOCH))), None);
    }
}
