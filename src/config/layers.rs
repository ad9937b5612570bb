//! Merging the layers of settings, and finding the line that a wrong key stands on.

use serde::de::{DeserializeOwned, IntoDeserializer};
use toml::{Table, Value};
use toml_edit::{Document, Item};

use super::{ConfigError, Preset};

/// Variables with this prefix are settings.
const PREFIX: &str = "SEALOCK_";

/// The layers, lowest first, with the text that they came from.
#[derive(Default)]
pub(super) struct Layers {
    files: Vec<Source>,
    environment: Vec<(Vec<String>, String)>,
    merged: Table,
}

/// A parsed file, for looking up lines.
struct Source {
    name: String,
    document: Document<String>,
}

impl Layers {
    /// Puts a file above what was added before.
    pub(super) fn add_file(&mut self, name: &str, text: &str) -> Result<(), ConfigError> {
        let (table, source) = parse(name, text)?;
        merge(&mut self.merged, table);
        self.files.push(source);
        Ok(())
    }

    /// Puts the presets that the files ask for below them.
    pub(super) fn add_presets(&mut self) -> Result<(), ConfigError> {
        let presets: Vec<Preset> = match self.merged.get("presets") {
            None => Preset::DEFAULT.to_vec(),
            Some(named) => named
                .clone()
                .try_into()
                .map_err(|why: toml::de::Error| self.wrong(&["presets"], one_line(why.message())))?,
        };
        let (mut below, mut sources) = (Table::new(), Vec::new());
        for preset in presets {
            let (name, text) = preset.source();
            let (table, source) = parse(name, text)?;
            merge(&mut below, table);
            sources.push(source);
        }
        merge(&mut below, std::mem::take(&mut self.merged));
        self.merged = below;
        sources.append(&mut self.files);
        self.files = sources;
        Ok(())
    }

    /// Puts `SEALOCK_SECTION_KEY` variables above everything.
    pub(super) fn add_environment(
        &mut self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), ConfigError> {
        for (variable, text) in variables {
            let Some(name) = variable.strip_prefix(PREFIX) else { continue };
            let key = self.key_of(&name.to_ascii_lowercase()).ok_or_else(|| ConfigError::Syntax {
                place: "environment".to_owned(),
                message: format!(
                    "`{variable}` is not a setting; write it as {PREFIX}SECTION_KEY, such as {PREFIX}SERVER_DATA"
                ),
            })?;
            let mut table = Table::new();
            table.insert(key[key.len() - 1].clone(), value(&text));
            for part in key[..key.len() - 1].iter().rev() {
                table = Table::from_iter([(part.clone(), Value::Table(table))]);
            }
            merge(&mut self.merged, table);
            self.environment.push((key, variable));
        }
        Ok(())
    }

    /// The settings as a type; an error names the place of the key.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        let deserializer = Value::Table(self.merged.clone()).into_deserializer();
        serde_path_to_error::deserialize(deserializer).map_err(|wrong| {
            let key: Vec<String> = wrong
                .path()
                .iter()
                .filter_map(|segment| match segment {
                    serde_path_to_error::Segment::Map { key } => Some(key.clone()),
                    serde_path_to_error::Segment::Seq { index } => Some(index.to_string()),
                    _ => None,
                })
                .collect();
            let key: Vec<&str> = key.iter().map(String::as_str).collect();
            self.wrong(&key, one_line(wrong.inner().message()))
        })
    }

    /// The error for a wrong key, with the place that set it last.
    pub(super) fn wrong(&self, key: &[&str], message: String) -> ConfigError {
        ConfigError::Wrong { place: self.place(key), key: spell(key), message }
    }

    /// `file:line` of the longest part of `key` that a layer sets, the highest layer first.
    fn place(&self, key: &[&str]) -> String {
        if let Some((_, variable)) = self.environment.iter().find(|(set, _)| set == key) {
            return format!("environment variable {variable}");
        }
        for length in (1..=key.len()).rev() {
            for source in self.files.iter().rev() {
                if let Some(line) = source.line(&key[..length]) {
                    return format!("{}:{line}", source.name);
                }
            }
        }
        "settings".to_owned()
    }

    /// `server_data` -> `server`, `data`; `upstream_mirror_gcr_ca_file` -> `upstream`, `mirror-gcr`, `ca_file`.
    fn key_of(&self, name: &str) -> Option<Vec<String>> {
        let (section, key) = name.split_once('_')?;
        if section != "upstream" {
            let known = ["server", "gate", "audit", "log", "pull"].contains(&section);
            return (known && !key.is_empty()).then(|| vec![section.to_owned(), key.to_owned()]);
        }
        let upstreams = self.merged.get("upstream")?.as_table()?;
        let candidates = upstreams.keys().filter_map(|upstream| {
            let spelled = upstream.to_ascii_lowercase().replace('-', "_");
            Some((upstream, key.strip_prefix(&spelled)?.strip_prefix('_')?))
        });
        let (upstream, key) = candidates.max_by_key(|(upstream, _)| upstream.len())?;
        Some(vec![section.to_owned(), upstream.clone(), key.to_owned()])
    }
}

impl Source {
    fn line(&self, key: &[&str]) -> Option<usize> {
        let mut item: &Item = self.document.as_item();
        let mut span = None;
        for part in key {
            let (found, next) = match item.as_table_like() {
                Some(table) => table.get_key_value(part)?,
                None => break,
            };
            span = found.span().or_else(|| next.span());
            item = next;
        }
        let at = span?.start;
        Some(self.document.raw().get(..at)?.matches('\n').count() + 1)
    }
}

fn parse(name: &str, text: &str) -> Result<(Table, Source), ConfigError> {
    let document = Document::parse(text.to_owned()).map_err(|why| {
        let line = why.span().map_or(1, |span| text.get(..span.start).unwrap_or(text).matches('\n').count() + 1);
        ConfigError::Syntax { place: format!("{name}:{line}"), message: one_line(why.message()) }
    })?;
    let table: Table = toml::from_str(text)
        .map_err(|why| ConfigError::Syntax { place: name.to_owned(), message: one_line(why.message()) })?;
    Ok((table, Source { name: name.to_owned(), document }))
}

/// `above` wins, key by key; lists are replaced whole.
fn merge(below: &mut Table, above: Table) {
    for (key, value) in above {
        match (below.get_mut(&key), value) {
            (Some(Value::Table(below)), Value::Table(above)) => merge(below, above),
            (_, value) => {
                below.insert(key, value);
            }
        }
    }
}

/// A variable's text as the setting's type: `true` and `10` are no strings, everything else is.
fn value(text: &str) -> Value {
    match (text.parse::<bool>(), text.parse::<i64>()) {
        (Ok(truth), _) => Value::Boolean(truth),
        (_, Ok(number)) => Value::Integer(number),
        _ => Value::String(text.to_owned()),
    }
}

fn spell(key: &[&str]) -> String {
    let plain = |part: &&str| part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    let spelled: Vec<String> =
        key.iter().map(|part| if plain(part) { (*part).to_owned() } else { format!("\"{part}\"") }).collect();
    if spelled.is_empty() { "settings".to_owned() } else { spelled.join(".") }
}

fn one_line(message: &str) -> String {
    message.split_whitespace().collect::<Vec<_>>().join(" ")
}
