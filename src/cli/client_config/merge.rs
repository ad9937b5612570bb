//! (pure) Putting our keys into files that belong to somebody else, and leaving the rest of them as it stands.

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;
use toml_edit::{DocumentMut, Item, Table, value};

/// Where containerd looks for `<host>/hosts.toml`.
pub(super) const CONTAINERD_HOSTS: &str = "/etc/containerd/certs.d";

/// What goes into a file that may hold more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Merge {
    /// dockerd's `daemon.json`: entries of two of its lists.
    DaemonJson { mirrors: Vec<String>, insecure: Vec<String> },
    /// containerd's `config.toml`: where it looks for hosts.
    ContainerdConfig,
}

/// Why a file is left as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum MergeError {
    #[error("it is not valid {format}: {why}")]
    Invalid { format: &'static str, why: String },
    #[error("`{key}` is not what was expected there; {advice}")]
    Unexpected { key: String, advice: &'static str },
}

impl Merge {
    /// The file with our keys in it.
    pub(super) fn apply(&self, existing: Option<&str>) -> Result<String, MergeError> {
        let existing = existing.filter(|text| !text.trim().is_empty());
        match self {
            Self::DaemonJson { mirrors, insecure } => daemon_json(existing, mirrors, insecure),
            Self::ContainerdConfig => containerd_config(existing),
        }
    }
}

/// The members of a JSON object in their order, their values as they are written.
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reads;
        impl<'de> Visitor<'de> for Reads {
            type Value = Members;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Reads)
    }
}

fn daemon_json(existing: Option<&str>, mirrors: &[String], insecure: &[String]) -> Result<String, MergeError> {
    let invalid = |why: serde_json::Error| MergeError::Invalid { format: "JSON", why: why.to_string() };
    let Members(mut members) = serde_json::from_str(existing.unwrap_or("{}")).map_err(invalid)?;
    let mut changed = existing.is_none();
    for (key, ours) in [("registry-mirrors", mirrors), ("insecure-registries", insecure)] {
        changed |= add_to_list(&mut members, key, ours)?;
    }
    if let Some(text) = existing.filter(|_| !changed) {
        return Ok(text.to_owned());
    }
    let quoted = |key: &String| serde_json::to_string(key).map_err(invalid);
    let lines: Result<Vec<_>, _> =
        members.iter().map(|(key, value)| Ok(format!("  {}: {}", quoted(key)?, value.get()))).collect();
    let lines = lines?.join(",\n");
    Ok(if lines.is_empty() { "{}\n".to_owned() } else { format!("{{\n{lines}\n}}\n") })
}

/// Puts what is missing of `ours` before what the list has. Whether there was something to do.
fn add_to_list(members: &mut Vec<(String, Box<RawValue>)>, key: &str, ours: &[String]) -> Result<bool, MergeError> {
    let at = members.iter().position(|(name, _)| name == key);
    let there: Vec<String> = match at {
        Some(at) => serde_json::from_str(members[at].1.get())
            .map_err(|_| MergeError::Unexpected { key: key.to_owned(), advice: "make it a list of strings" })?,
        None => Vec::new(),
    };
    // dockerd takes a mirror with and without the last slash for the same.
    let has = |one: &String| there.iter().any(|other| other.trim_end_matches('/') == one.trim_end_matches('/'));
    let mut list: Vec<&String> = ours.iter().filter(|one| !has(one)).collect();
    if list.is_empty() {
        return Ok(false);
    }
    list.extend(&there);
    let raw = serde_json::value::to_raw_value(&list);
    let raw = raw.map_err(|why| MergeError::Invalid { format: "JSON", why: why.to_string() })?;
    match at {
        Some(at) => members[at].1 = raw,
        None => members.push((key.to_owned(), raw)),
    }
    Ok(true)
}

/// containerd 1 and 2 read version 2; only containerd 2 reads version 3, which calls the plugin by another name.
fn containerd_config(existing: Option<&str>) -> Result<String, MergeError> {
    let Some(text) = existing else {
        return Ok(format!(
            "version = 2\n\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"{CONTAINERD_HOSTS}\"\n"
        ));
    };
    let mut document: DocumentMut = text
        .parse()
        .map_err(|why: toml_edit::TomlError| MergeError::Invalid { format: "TOML", why: why.message().to_owned() })?;
    let plugin = match document.get("version").and_then(Item::as_integer) {
        Some(2) => "io.containerd.grpc.v1.cri",
        Some(3..) => "io.containerd.cri.v1.images",
        _ => {
            let advice = "only versions 2 and 3 know `config_path`; `containerd config migrate` prints this file anew";
            return Err(MergeError::Unexpected { key: "version".to_owned(), advice });
        }
    };
    let registry = ["plugins", plugin, "registry"].iter().try_fold(document.as_table_mut(), |table, key| {
        let entry = table.entry(key).or_insert_with(|| {
            let mut table = Table::new();
            // Only the last of them needs a heading of its own.
            table.set_implicit(*key != "registry");
            Item::Table(table)
        });
        entry.as_table_mut().ok_or_else(|| MergeError::Unexpected {
            key: (*key).to_owned(),
            advice: "write it as a [table] of its own",
        })
    })?;
    let old_form = |key: &str| registry.get(key).and_then(Item::as_table_like).is_some_and(|table| !table.is_empty());
    if let Some(key) = ["mirrors", "configs"].into_iter().find(|key| old_form(key)) {
        let advice = "containerd does not start with it beside `config_path`; take it out first";
        return Err(MergeError::Unexpected { key: format!("registry.{key}"), advice });
    }
    let there = registry.get("config_path").and_then(Item::as_str).unwrap_or_default();
    if there.split(':').any(|folder| folder == CONTAINERD_HOSTS) {
        return Ok(text.to_owned());
    }
    // The first folder that has the host counts.
    let path = if there.is_empty() { CONTAINERD_HOSTS.to_owned() } else { format!("{CONTAINERD_HOSTS}:{there}") };
    registry.insert("config_path", value(path));
    Ok(document.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn docker(mirrors: &[&str], insecure: &[&str]) -> Merge {
        let list = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        Merge::DaemonJson { mirrors: list(mirrors), insecure: list(insecure) }
    }

    #[test]
    fn what_others_wrote_into_daemon_json_stays_as_it_is_written() {
        let merge = docker(&["https://p:5000"], &[]);
        let theirs =
            "{\"log-opts\": {\"max-size\":   \"10m\"},\n \"registry-mirrors\": [\"https://old.example\"], \"a\": 1.50}";
        let merged = merge.apply(Some(theirs)).unwrap();
        assert_eq!(
            merged,
            "{\n  \"log-opts\": {\"max-size\":   \"10m\"},\n  \
             \"registry-mirrors\": [\"https://p:5000\",\"https://old.example\"],\n  \"a\": 1.50\n}\n"
        );
        assert_eq!(merge.apply(Some(&merged)).unwrap(), merged);
        let there = "{\"registry-mirrors\":[\"https://p:5000/\"]}";
        assert_eq!(merge.apply(Some(there)).unwrap(), there);
        assert_eq!(docker(&[], &[]).apply(None).unwrap(), "{}\n");
    }

    #[test]
    fn a_daemon_json_that_cannot_be_understood_is_left_alone() {
        let merge = docker(&["https://p:5000"], &["p:5000"]);
        for theirs in ["[]", "{", "{\"registry-mirrors\": \"x\"}", "{\"insecure-registries\": {}}"] {
            merge.apply(Some(theirs)).expect_err(theirs);
        }
    }

    #[test]
    fn containerd_is_told_where_the_hosts_are_in_both_versions() {
        let cases = [
            ("version = 2\n# ours\nroot = \"/x\"\n", "[plugins.\"io.containerd.grpc.v1.cri\".registry]"),
            ("version = 3\n", "[plugins.'io.containerd.cri.v1.images'.registry]"),
        ];
        for (text, heading) in cases {
            let merged = Merge::ContainerdConfig.apply(Some(text)).unwrap();
            assert!(merged.starts_with(text), "{merged}");
            assert!(merged.replace('\'', "\"").contains(&heading.replace('\'', "\"")), "{merged}");
            assert!(merged.contains("config_path = \"/etc/containerd/certs.d\""), "{merged}");
            assert_eq!(Merge::ContainerdConfig.apply(Some(&merged)).unwrap(), merged);
        }
        let set = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n  config_path = '/a:/b' # c\n";
        let merged = Merge::ContainerdConfig.apply(Some(set)).unwrap();
        assert!(merged.contains("\"/etc/containerd/certs.d:/a:/b\""), "{merged}");
        let fresh = Merge::ContainerdConfig.apply(None).unwrap();
        assert_eq!(Merge::ContainerdConfig.apply(Some(&fresh)).unwrap(), fresh);
    }

    #[test]
    fn a_containerd_config_that_would_break_is_left_alone() {
        let old =
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = []\n";
        for text in [old, "disabled_plugins = []\n", "version = 1\n", "version = ", "version = 2\nplugins = 3\n"] {
            Merge::ContainerdConfig.apply(Some(text)).expect_err(text);
        }
    }
}
