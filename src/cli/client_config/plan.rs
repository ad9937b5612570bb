//! (pure) What a client needs, before anything is printed or written: files, texts to paste, steps, warnings.

use serde::{Serialize, Serializer};

use super::merge::Merge;
use super::site::Site;

/// How a file of ours begins: one that does not is not replaced unasked.
pub(super) const MARK: &str = "# Written by `sealock client-config`";

/// Everything that a kind of client needs.
#[derive(Debug, Default, Serialize)]
pub(super) struct Plan {
    pub(super) files: Vec<PlannedFile>,
    /// What goes elsewhere than into a file of this machine.
    pub(super) snippets: Vec<Snippet>,
    /// What to do once the files are there.
    pub(super) steps: Vec<String>,
    pub(super) warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
pub(super) struct PlannedFile {
    /// Absolute; below `--root`.
    pub(super) path: String,
    pub(super) content: Content,
}

#[derive(Debug)]
pub(super) enum Content {
    /// The file is ours.
    Whole(String),
    /// Keys within a file that may hold others.
    Merged(Merge),
    /// A copy of the private key in this file, for its owner alone. It is read when it is written, and never shown.
    Key(String),
}

#[derive(Debug, Serialize)]
pub(super) struct Snippet {
    /// Where it goes.
    pub(super) title: String,
    pub(super) text: String,
}

impl Plan {
    /// A file of ours: its mark, then `text`.
    pub(super) fn own(&mut self, path: impl Into<String>, text: &str) {
        let text = format!("{MARK}, which writes it anew when it is run again.\n{text}");
        self.files.push(PlannedFile { path: path.into(), content: Content::Whole(text) });
    }

    /// The client's certificate and key as `<stem>.cert` and `<stem>.key`, where there are some.
    pub(super) fn identity(&mut self, site: &Site, stem: &str) {
        if let Some(identity) = &site.identity {
            self.own(format!("{stem}.cert"), &identity.certificate);
            let content = Content::Key(identity.key_file.clone());
            self.files.push(PlannedFile { path: format!("{stem}.key"), content });
        }
    }

    pub(super) fn merge(&mut self, path: impl Into<String>, merge: Merge) {
        self.files.push(PlannedFile { path: path.into(), content: Content::Merged(merge) });
    }

    pub(super) fn snippet(&mut self, title: impl Into<String>, text: impl Into<String>) {
        self.snippets.push(Snippet { title: title.into(), text: text.into() });
    }

    pub(super) fn step(&mut self, text: impl Into<String>) {
        self.steps.push(text.into());
    }

    pub(super) fn warn(&mut self, text: impl Into<String>) {
        self.warnings.push(text.into());
    }

    /// As it is printed: each file under its path, then what is to be pasted, done and known.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        for file in &self.files {
            let (path, fresh) = (&file.path, file.content.fresh());
            text.push_str(&match &file.content {
                Content::Whole(_) => format!("==> {path}\n{fresh}\n"),
                Content::Merged(_) => format!("==> {path} (merged into what is there)\n{fresh}\n"),
                Content::Key(from) => format!("==> {path} (0600)\nthe private key: install -m 600 {from} {path}\n\n"),
            });
        }
        for snippet in &self.snippets {
            text.push_str(&format!("==> {}\n{}\n", snippet.title, snippet.text));
        }
        text.push_str(&self.advice());
        text
    }

    /// What to do, and what to know.
    pub(super) fn advice(&self) -> String {
        let steps = self.steps.iter().map(|step| format!("then: {step}\n"));
        let warnings = self.warnings.iter().map(|warning| format!("note: {warning}\n"));
        steps.chain(warnings).collect()
    }
}

impl Content {
    /// Where there is no such file yet; of a key, nothing.
    pub(super) fn fresh(&self) -> String {
        match self {
            Self::Whole(text) => text.clone(),
            Self::Merged(merge) => merge.apply(None).unwrap_or_default(),
            Self::Key(_) => String::new(),
        }
    }
}

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Key(from) => serde_json::json!({ "copy_of": from, "mode": "0600" }).serialize(serializer),
            Self::Whole(_) | Self::Merged(_) => serializer.serialize_str(&self.fresh()),
        }
    }
}
