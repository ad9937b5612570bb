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
    environment: Vec<Variable>,
    merged: Table,
}

/// A setting from the environment.
struct Variable {
    name: String,
    key: Vec<String>,
    text: String,
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
        for (name, text) in variables {
            let Some(rest) = name.strip_prefix(PREFIX) else { continue };
            let key = self.key_of(&rest.to_ascii_lowercase()).ok_or_else(|| ConfigError::Syntax {
                place: "environment".to_owned(),
                message: format!(
                    "`{name}` is not a setting; write it as {PREFIX}SECTION_KEY, such as {PREFIX}SERVER_DATA"
                ),
            })?;
            put(&mut self.merged, &key, Value::String(text.clone()));
            self.environment.push(Variable { name, key, text });
        }
        Ok(())
    }

    /// The settings as a type; an error names the place of the key.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        let mut merged = self.merged.clone();
        // What each variable may still mean, now that it was no string.
        let mut readings: Vec<Option<Vec<Value>>> = self.environment.iter().map(|_| None).collect();
        let mut refused: Option<(Vec<String>, String)> = None;
        loop {
            let (key, message) = match deserialize(&merged) {
                Ok(settings) => return Ok(settings),
                Err(wrong) => wrong,
            };
            // Of several readings that are refused, the first of the right type tells most.
            let of_another_type = |message: &str| message.starts_with("invalid type");
            let (told_key, told) = match refused.take() {
                Some((before, told)) if before == key && (of_another_type(&message) || !of_another_type(&told)) => {
                    (before, told)
                }
                _ => (key.clone(), message),
            };
            let number = self.environment.iter().rposition(|variable| variable.key == key);
            let next = number.and_then(|number| {
                let text = &self.environment[number].text;
                readings[number].get_or_insert_with(|| other_readings(text)).pop()
            });
            let Some(next) = next else {
                let key: Vec<&str> = told_key.iter().map(String::as_str).collect();
                // A variable's text has neither quotes nor brackets.
                let told = if number.is_some() { told } else { as_written(told) };
                return Err(self.wrong(&key, told));
            };
            put(&mut merged, &key, next);
            refused = Some((told_key, told));
        }
    }

    /// The error for a wrong key, with the place that set it last.
    pub(super) fn wrong(&self, key: &[&str], message: String) -> ConfigError {
        ConfigError::Wrong { place: self.place(key), key: spell(key), message }
    }

    /// `file:line` of the longest part of `key` that a layer sets, the highest layer first.
    fn place(&self, key: &[&str]) -> String {
        // A list's entry, `listen.0`, is of the variable that set the list.
        let sets = |variable: &&Variable| key.len() >= variable.key.len() && key[..variable.key.len()] == variable.key;
        if let Some(variable) = self.environment.iter().rev().find(sets) {
            return format!("environment variable {}", variable.name);
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
            let known =
                ["server", "admin", "tls", "gate", "audit", "log", "pull", "push", "keep", "access"].contains(&section);
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
        for (depth, part) in key.iter().enumerate() {
            // `[[access.rule]]`: its tables are counted.
            if let (Some(tables), Ok(number)) = (item.as_array_of_tables(), part.parse::<usize>()) {
                let table = tables.get(number)?;
                let below = key.get(depth + 1).and_then(|part| table.get_key_value(part));
                span = below.and_then(|(found, _)| found.span()).or_else(|| table.span());
                break;
            }
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

fn put(table: &mut Table, key: &[String], value: Value) {
    let nested = key.iter().rev().fold(value, |value, part| Value::Table(Table::from_iter([(part.clone(), value)])));
    if let Value::Table(above) = nested {
        merge(table, above);
    }
}

/// What a variable's text may mean where the settings take no string; the last is to be tried first.
fn other_readings(text: &str) -> Vec<Value> {
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    let list = Value::Array(entries.map(|entry| Value::String(entry.to_owned())).collect());
    let number = text.trim().parse().ok().map(Value::Integer);
    let truth = text.trim().parse().ok().map(Value::Boolean);
    [Some(list), number, truth].into_iter().flatten().collect()
}

/// serde's words for a type, as one writes it in TOML.
fn as_written(told: String) -> String {
    let types = told.strip_prefix("invalid type: ").and_then(|told| told.rsplit_once(", expected "));
    let Some((found, expected)) = types else { return told };
    let found = if found == "sequence" { "a list" } else { found };
    let expected = match expected {
        "a sequence" => r#"a list in brackets, such as ["one", "two"]"#,
        "a string" => "text in quotes",
        "path string" => "a path in quotes",
        "a boolean" => "true or false",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, without quotes",
        other => other,
    };
    format!("invalid type: {found}, expected {expected}")
}

/// The settings, or the key that is wrong and why.
fn deserialize<T: DeserializeOwned>(merged: &Table) -> Result<T, (Vec<String>, String)> {
    let deserializer = Value::Table(merged.clone()).into_deserializer();
    serde_path_to_error::deserialize(deserializer).map_err(|wrong| {
        let key = wrong.path().iter().filter_map(|segment| match segment {
            serde_path_to_error::Segment::Map { key } => Some(key.clone()),
            serde_path_to_error::Segment::Seq { index } => Some(index.to_string()),
            _ => None,
        });
        (key.collect(), one_line(wrong.inner().message()))
    })
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
