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

/// The members of a JSON object in their order, their values as they stand in its text.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reads;
        impl<'de> Visitor<'de> for Reads {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members<'de>, A::Error> {
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
    let mut text = existing.unwrap_or("{}\n").to_owned();
    for (key, ours) in [("registry-mirrors", mirrors), ("insecure-registries", insecure)] {
        text = with_in_list(&text, key, ours)?;
    }
    Ok(text)
}

/// The text of a JSON object with what is missing of `ours` before what the list has; everything else in it stays letter
/// for letter.
fn with_in_list(text: &str, key: &'static str, ours: &[String]) -> Result<String, MergeError> {
    let invalid = |why: serde_json::Error| MergeError::Invalid { format: "JSON", why: why.to_string() };
    let Members(members) = serde_json::from_str(text).map_err(invalid)?;
    // Of two with the same name, dockerd takes the last.
    let list = members.iter().rfind(|(name, _)| name == key).map(|(_, list)| list.get());
    let there: Vec<String> = list.map_or(Ok(Vec::new()), serde_json::from_str).map_err(|_| {
        let advice = "make it a list of strings";
        MergeError::Unexpected { key: key.to_owned(), advice }
    })?;
    // dockerd takes a mirror with and without the last slash for the same.
    let has = |one: &&String| there.iter().any(|other| other.trim_end_matches('/') == one.trim_end_matches('/'));
    let missing: Result<Vec<_>, _> = ours.iter().filter(|one| !has(one)).map(serde_json::to_string).collect();
    let missing = missing.map_err(invalid)?;
    if missing.is_empty() {
        return Ok(text.to_owned());
    }
    // What is borrowed from the text says where in it it stands.
    let place = |part: &str| part.as_ptr() as usize - text.as_ptr() as usize;
    let (at, new) = match (list, members.last()) {
        (Some(list), _) if there.is_empty() => {
            (place(list)..place(list) + list.len(), format!("[{}]", missing.join(", ")))
        }
        (Some(list), _) => {
            let space = leading_space(&list[1..]);
            let between = if space.is_empty() { ", ".to_owned() } else { format!(",{space}") };
            let at = place(list) + 1;
            (at..at, format!("{space}{}{}", missing.join(&between), if space.is_empty() { ", " } else { "," }))
        }
        (None, Some((_, last))) => {
            let at = place(last.get()) + last.get().len();
            let space = leading_space(&text[text.find('{').unwrap_or_default() + 1..]);
            (at..at, format!(",{space}\"{key}\": [{}]", missing.join(", ")))
        }
        (None, None) => {
            let inside = text.find('{').unwrap_or_default() + 1..text.rfind('}').unwrap_or_default();
            (inside, format!("\n  \"{key}\": [{}]\n", missing.join(", ")))
        }
    };
    let mut text = text.to_owned();
    text.replace_range(at, &new);
    Ok(text)
}

/// Line breaks and indentation, as the file has them.
fn leading_space(text: &str) -> &str {
    &text[..text.len() - text.trim_start().len()]
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
        assert_eq!(merged, theirs.replace("[\"https://old", "[\"https://p:5000\", \"https://old"));
        assert_eq!(merge.apply(Some(&merged)).unwrap(), merged);
        let there = "{\"registry-mirrors\":[\"https://p:5000/\"]}";
        assert_eq!(merge.apply(Some(there)).unwrap(), there);
        assert_eq!(docker(&[], &[]).apply(None).unwrap(), "{}\n");
    }

    #[test]
    fn daemon_json_keeps_its_own_indentation() {
        let merge = docker(&["https://p:5000"], &["p:5000"]);
        let cases = [
            (
                "{\r\n\t\"debug\": true,\r\n\t\"dns\": [ ]\r\n}",
                "{\r\n\t\"debug\": true,\r\n\t\"dns\": [ ],\r\n\t\"registry-mirrors\": [\"https://p:5000\"],\
                 \r\n\t\"insecure-registries\": [\"p:5000\"]\r\n}",
            ),
            (
                "{\n    \"registry-mirrors\": [\n        \"https://old\"\n    ],\n    \"insecure-registries\": [ ]\n}\n",
                "{\n    \"registry-mirrors\": [\n        \"https://p:5000\",\n        \"https://old\"\n    ],\
                 \n    \"insecure-registries\": [\"p:5000\"]\n}\n",
            ),
            (
                "{\"debug\":true}",
                "{\"debug\":true,\"registry-mirrors\": [\"https://p:5000\"],\"insecure-registries\": [\"p:5000\"]}",
            ),
            (
                " { } \n",
                " {\n  \"registry-mirrors\": [\"https://p:5000\"],\n  \"insecure-registries\": [\"p:5000\"]\n} \n",
            ),
        ];
        for (theirs, expected) in cases {
            let merged = merge.apply(Some(theirs)).unwrap();
            assert_eq!(merged, expected);
            serde_json::from_str::<serde_json::Value>(&merged).unwrap();
            assert_eq!(merge.apply(Some(&merged)).unwrap(), merged);
        }
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
