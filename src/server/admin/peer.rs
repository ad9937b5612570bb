//! Who is at the other end of the admin socket, and whether that is somebody who may give orders.
//!
//! The socket's mode lets the same in; this check holds when somebody has loosened the mode.

use std::fmt;

use tokio::net::UnixStream;

/// The process at the other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    uid: u32,
    gid: u32,
    /// Its further groups.
    groups: Vec<u32>,
    name: Option<String>,
}

/// Largest of the system's files of users and groups that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 << 20;

impl Caller {
    /// As the kernel told when the connection was made.
    pub(super) fn of(stream: &UnixStream) -> Option<Self> {
        let peer = stream.peer_cred().ok()?;
        let groups = peer.pid().map(groups_of).unwrap_or_default();
        let is_it = |fields: &[&str]| fields.get(2).is_some_and(|uid| uid.parse() == Ok(peer.uid()));
        let name = first_field("/etc/passwd", is_it);
        Some(Self { uid: peer.uid(), gid: peer.gid(), groups, name })
    }

    /// Root, our own user, and the members of `group`.
    pub(super) fn may_order(&self, own_uid: u32, group: Option<u32>) -> bool {
        let is_member = |group| self.gid == group || self.groups.contains(&group);
        self.uid == 0 || self.uid == own_uid || group.is_some_and(is_member)
    }
}

/// `alice (uid 1000)`.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{} (uid {})", name.escape_debug(), self.uid),
            None => write!(f, "uid {}", self.uid),
        }
    }
}

/// The number of a group, by its name or as it is.
pub(super) fn group_number(group: &str) -> Option<u32> {
    if let Ok(number) = group.parse() {
        return Some(number);
    }
    let text = read("/etc/group")?;
    let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| fields.first() == Some(&group)).and_then(|fields| fields.get(2)?.parse().ok())
}

/// The first field of the first line that `wanted` takes.
fn first_field(path: &str, wanted: impl Fn(&[&str]) -> bool) -> Option<String> {
    let text = read(path)?;
    let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| wanted(fields)).and_then(|fields| fields.first().map(|name| (*name).to_owned()))
}

fn read(path: &str) -> Option<String> {
    let size = std::fs::metadata(path).ok()?.len();
    if size > FILE_BYTES_MAX { None } else { std::fs::read_to_string(path).ok() }
}

/// Of a process that is alive; none where it cannot be told.
fn groups_of(pid: i32) -> Vec<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:"));
    line.unwrap_or_default().split_whitespace().filter_map(|group| group.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_our_own_user_and_members_of_the_group_may_order_and_nobody_else() {
        let caller = |uid, gid, groups: &[u32]| Caller { uid, gid, groups: groups.to_vec(), name: None };
        let cases = [
            (caller(0, 0, &[]), None, true),
            (caller(990, 990, &[]), None, true),
            (caller(1000, 1000, &[27, 50]), None, false),
            (caller(1000, 1000, &[27, 50]), Some(50), true),
            (caller(1000, 50, &[]), Some(50), true),
            (caller(1000, 1000, &[27]), Some(50), false),
        ];
        for (caller, group, expected) in cases {
            assert_eq!(caller.may_order(990, group), expected, "{caller:?} {group:?}");
        }
    }

    #[tokio::test]
    async fn a_caller_is_told_by_name_and_number() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let caller = Caller::of(&ours).unwrap();
        let uid = rustix::process::geteuid().as_raw();
        assert!(caller.to_string().contains(&format!("uid {uid}")), "{caller}");
        assert!(caller.may_order(uid, None));
        assert_eq!(
            (group_number("root"), group_number("4711"), group_number("no such group")),
            (Some(0), Some(4711), None)
        );
    }
}
