//! (pure) Which tags of a repository a rule lets go: all but the newest few, by version or by when they last moved.
//!
//! What can be read as a version is ordered as semantic versions are, with two turns for tags: a shorter one is newer than
//! all that it covers (`6` names the newest `6.x`), and `rc2` comes before `rc10`.

use std::cmp::Reverse;

use serde::Deserialize;

use crate::store::{TagFacts, TagSource};

/// `[keep.retain."PATTERN"]`
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetainRule {
    /// How many stay, besides those that stay in any case.
    pub newest: u32,
    /// What is newest.
    #[serde(default)]
    pub by: Order,
    /// Tags that stay in any case; `*` stands for any letters.
    #[serde(default)]
    pub keep: Vec<String>,
    /// Whether tags that were filled go, too: only while they can be filled again.
    #[serde(default)]
    pub filled: bool,
}

/// What makes a tag newer than another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Its name, read as a version; a tag that is no version stays.
    #[default]
    Version,
    /// When it last came to name something else.
    Moved,
}

/// A tag's name as a version: numbers, then what comes before them all, or the end, which is after them all.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Before(Vec<Word>),
    Number(Number),
    End,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Word {
    Number(Number),
    Text(String),
}

/// By length, then digit by digit: of any size.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Number(usize, String);

impl RetainRule {
    /// What makes no sense: the key and what to write instead.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if self.newest == 0 {
            return Err(("newest", "write 1 or more: some must stay".to_owned()));
        }
        if let Some(wrong) = self.keep.iter().find(|pattern| pattern.is_empty()) {
            return Err(("keep", format!("`{wrong}` names no tag; write, say, `latest` or `v*`")));
        }
        Ok(())
    }

    /// Which of a repository's tags go, the newest of them first. `may_fill`: whether filled ones can be filled again now.
    /// Not counted and never among them: pinned ones, those of `keep`, those that go with what they are named after, and
    /// those that the rule has no say in.
    pub fn retired<'a>(&self, tags: &'a [TagFacts], may_fill: bool) -> Vec<&'a TagFacts> {
        let judged = tags.iter().filter(|tag| {
            let ours = tag.source != TagSource::Filled || (self.filled && may_fill);
            let name = tag.name.as_str();
            ours && !tag.pinned && !is_companion(name) && !self.keep.iter().any(|pattern| matches(pattern, name))
        });
        let mut ranked: Vec<(Option<Version>, &TagFacts)> = match self.by {
            Order::Moved => judged.map(|tag| (None, tag)).collect(),
            Order::Version => judged.filter_map(|tag| Some((Some(Version::parse(tag.name.as_str())?), tag))).collect(),
        };
        ranked.sort_by(|(a, one), (b, other)| {
            let key = |version: &Option<Version>, tag: &TagFacts| (version.clone(), tag.moved_at);
            Reverse(key(a, one)).cmp(&Reverse(key(b, other))).then_with(|| one.name.as_str().cmp(other.name.as_str()))
        });
        ranked.into_iter().skip(self.newest.max(1) as usize).map(|(_, tag)| tag).collect()
    }
}

impl Version {
    /// `6`, `6.1`, `v6.1.3`, `6.1.3-rc1`, `2026.10.2_build`.
    pub fn parse(tag: &str) -> Option<Self> {
        let mut rest = tag.strip_prefix(['v', 'V']).unwrap_or(tag);
        let mut parts = Vec::new();
        loop {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            if digits == 0 {
                return None;
            }
            parts.push(Part::Number(Number::new(&rest[..digits])));
            rest = &rest[digits..];
            match rest.strip_prefix('.') {
                Some(more) => rest = more,
                None => break,
            }
        }
        match rest.strip_prefix(['-', '_']) {
            Some(words) if !words.is_empty() => parts.push(Part::Before(words_of(words))),
            None if rest.is_empty() => parts.push(Part::End),
            _ => return None,
        }
        Some(Self(parts))
    }
}

impl Number {
    fn new(digits: &str) -> Self {
        let digits = digits.trim_start_matches('0');
        Self(digits.len(), digits.to_owned())
    }
}

/// Runs of digits and of letters; what stands between them counts for nothing.
fn words_of(text: &str) -> Vec<Word> {
    let mut words = Vec::new();
    for piece in text.split(['.', '-', '_']).filter(|piece| !piece.is_empty()) {
        let mut rest = piece;
        while let Some(first) = rest.bytes().next() {
            let digits = first.is_ascii_digit();
            let length = rest.bytes().take_while(|byte| byte.is_ascii_digit() == digits).count();
            let (word, after) = rest.split_at(length);
            words.push(if digits { Word::Number(Number::new(word)) } else { Word::Text(word.to_owned()) });
            rest = after;
        }
    }
    words
}

/// Whether it is named after a digest, as cosign's signatures and the referrers of the tag schema are.
fn is_companion(tag: &str) -> bool {
    let hex = tag.strip_prefix("sha256-").or_else(|| tag.strip_prefix("sha512-"));
    hex.is_some_and(|hex| hex.bytes().take_while(u8::is_ascii_hexdigit).count() >= 64)
}

/// Whether `text` is what `pattern` says, in which `*` stands for any letters.
fn matches(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut pieces: Vec<&str> = pieces.collect();
    let Some(last) = pieces.pop() else { return rest.is_empty() };
    for piece in pieces {
        match rest.find(piece) {
            Some(at) => rest = &rest[at + piece.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// The rule for a repository, as `sealock ls` names it: the exact name before the longest prefix.
pub fn rule_of<'a>(
    rules: impl IntoIterator<Item = (&'a String, &'a RetainRule)>,
    repository: &str,
) -> Option<(&'a str, &'a RetainRule)> {
    let fits = |pattern: &str| match pattern.strip_suffix("**") {
        Some("") => Some((false, 0)),
        Some(prefix) => repository.starts_with(prefix).then_some((false, prefix.len())),
        None => (pattern == repository).then_some((true, pattern.len())),
    };
    let fitting = rules.into_iter().filter_map(|(pattern, rule)| Some((fits(pattern)?, pattern.as_str(), rule)));
    fitting.max_by_key(|(fit, ..)| *fit).map(|(_, pattern, rule)| (pattern, rule))
}

/// Whether it can stand in `[keep.retain."…"]`.
pub fn is_pattern(pattern: &str) -> bool {
    let name = match pattern.strip_suffix("**") {
        Some("") => return true,
        Some(prefix) => match prefix.strip_suffix('/') {
            Some(name) => name,
            None => return false,
        },
        None => pattern,
    };
    // Other than a name, it may begin with a host and its port.
    let pieces = name.split('/');
    let is_piece = |piece: &str| {
        let letters = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_' | b':');
        !piece.is_empty() && piece.bytes().all(letters)
    };
    pieces.into_iter().all(is_piece)
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};
    use proptest::prelude::*;

    use super::*;
    use crate::oci::Digest;

    fn tag(name: &str, source: TagSource, pinned: bool, day: i64) -> TagFacts {
        let moved_at = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * day);
        TagFacts { name: name.parse().unwrap(), digest: Digest::sha256(name.as_bytes()), source, pinned, moved_at }
    }

    fn pushed(names: &[&str]) -> Vec<TagFacts> {
        let days = 0..;
        names.iter().zip(days).map(|(name, day)| tag(name, TagSource::Pushed, false, day)).collect()
    }

    fn rule(newest: u32, by: Order) -> RetainRule {
        RetainRule { newest, by, keep: Vec::new(), filled: false }
    }

    fn names(tags: &[&TagFacts]) -> Vec<String> {
        tags.iter().map(|tag| tag.name.to_string()).collect()
    }

    #[test]
    fn versions_stand_in_their_order() {
        let ascending = [
            "5",
            "6.0.0-alpha",
            "6.0.0-alpha.1",
            "6.0.0-beta2",
            "6.0.0-beta10",
            "6.0.0-rc1",
            "v6.0.0",
            "6.0.1",
            "6.0",
            "6.1.3-rc1",
            "6.1.3",
            "6.1.10",
            "6.1",
            "6",
            "2026.9.30",
            "2026.10.1",
            "99999999999999999999999.1",
        ];
        let versions: Vec<Version> = ascending.iter().map(|text| Version::parse(text).unwrap()).collect();
        for (number, pair) in versions.windows(2).enumerate() {
            assert!(pair[0] < pair[1], "{} is not older than {}", ascending[number], ascending[number + 1]);
        }
        assert_eq!(Version::parse("v1.02"), Version::parse("1.2"));
        for text in ["latest", "v", "", "1.", "1..2", "1-", "1a", "sha256-12.sig", "main", ".1", "12ab34f"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_newest_by_version_stay_and_what_is_no_version_too() {
        let tags = pushed(&["6.1.3", "latest", "6", "5", "6.1.3-rc1", "main", "6.1", "5.2"]);
        assert_eq!(names(&rule(3, Order::Version).retired(&tags, false)), ["6.1.3-rc1", "5", "5.2"]);
        assert!(rule(6, Order::Version).retired(&tags, false).is_empty());
    }

    #[test]
    fn the_newest_by_date_stay_with_those_that_a_pattern_keeps() {
        let tags = pushed(&["latest", "v1", "a", "b", "c", "d"]);
        let rule = RetainRule { keep: vec!["latest".to_owned(), "v*".to_owned()], ..rule(2, Order::Moved) };
        assert_eq!(names(&rule.retired(&tags, false)), ["b", "a"]);
    }

    #[test]
    fn a_signature_is_not_counted_and_stays_with_what_it_signs() {
        let signature = format!("sha256-{}.sig", "0a".repeat(32));
        let tags = pushed(&["a", "b", &signature, "sha256-12"]);
        assert_eq!(names(&rule(2, Order::Moved).retired(&tags, false)), ["a"]);
    }

    #[test]
    fn pinned_tags_stay_and_filled_ones_unless_the_rule_says_so_and_they_can_be_filled() {
        // Invariant 7
        let mut tags = pushed(&["1", "2", "3"]);
        tags.push(tag("0.1", TagSource::Filled, false, 0));
        tags.push(tag("0.2", TagSource::Imported, true, 0));
        let mut rule = rule(1, Order::Version);
        assert_eq!(names(&rule.retired(&tags, true)), ["2", "1"]);
        rule.filled = true;
        assert_eq!(names(&rule.retired(&tags, false)), ["2", "1"]);
        assert_eq!(names(&rule.retired(&tags, true)), ["2", "1", "0.1"]);
    }

    #[test]
    fn a_star_stands_for_any_letters() {
        let cases = [
            ("latest", "latest", true),
            ("latest", "latest-1", false),
            ("v*", "v1", true),
            ("v*", "1v", false),
            ("*-rc*", "6.1-rc2", true),
            ("*-rc*", "6.1", false),
            ("*", "x", true),
            ("a*a", "a", false),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
        ];
        for (pattern, text, expected) in cases {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn the_longest_pattern_rules() {
        let rules: std::collections::BTreeMap<String, RetainRule> = ["**", "team/**", "team/app/**", "team/app"]
            .iter()
            .zip(1..)
            .map(|(pattern, newest)| ((*pattern).to_owned(), rule(newest, Order::Version)))
            .collect();
        for (name, expected) in [
            ("x", "**"),
            ("team/x", "team/**"),
            ("team/app", "team/app"),
            ("team/app/x", "team/app/**"),
            ("team", "**"),
        ] {
            assert_eq!(rule_of(&rules, name).unwrap().0, expected, "{name}");
        }
        assert!(rule_of(&std::collections::BTreeMap::new(), "x").is_none());
        for (pattern, valid) in [
            ("**", true),
            ("team/**", true),
            ("localhost:5000/x", true),
            ("team/*", false),
            ("te**", false),
            ("", false),
        ] {
            assert_eq!(is_pattern(pattern), valid, "{pattern}");
        }
    }

    fn any_name() -> impl Strategy<Value = String> {
        prop_oneof!["v?[0-9]{1,3}(\\.[0-9]{1,3}){0,3}(-[a-z]{1,3}[0-9]{0,2})?", "[a-z]{1,6}"]
    }

    fn any_tags() -> impl Strategy<Value = Vec<TagFacts>> {
        let sources = prop_oneof![Just(TagSource::Pushed), Just(TagSource::Filled), Just(TagSource::Imported)];
        let one = (any_name(), sources, prop::bool::weighted(0.2), 0..5_i64);
        prop::collection::vec(one, 0..40).prop_map(|many| {
            let mut named = std::collections::BTreeMap::new();
            for (name, source, pinned, day) in many {
                named.insert(name.clone(), tag(&name, source, pinned, day));
            }
            named.into_values().collect()
        })
    }

    proptest! {
        #[test]
        fn whatever_the_tags_a_rule_spares_what_it_says(
            tags in any_tags(),
            newest in 1..6_u32,
            by in prop_oneof![Just(Order::Version), Just(Order::Moved)],
            filled in any::<bool>(),
            may_fill in any::<bool>(),
        ) {
            // Invariant 7
            let rule = RetainRule { newest, by, keep: vec!["v*".to_owned()], filled };
            let gone = rule.retired(&tags, may_fill);
            let spared: Vec<&TagFacts> = tags.iter().filter(|tag| !gone.contains(tag)).collect();
            prop_assert!(tags.is_empty() || !spared.is_empty(), "a repository keeps a tag");
            for tag in &gone {
                prop_assert!(!tag.pinned && !tag.name.as_str().starts_with('v'));
                prop_assert!(tag.source != TagSource::Filled || (filled && may_fill));
                let newer = spared.iter().filter(|other| match by {
                    Order::Moved => other.moved_at >= tag.moved_at,
                    Order::Version => Version::parse(other.name.as_str()) >= Version::parse(tag.name.as_str()),
                });
                prop_assert!(newer.count() >= newest as usize);
                prop_assert!(by == Order::Moved || Version::parse(tag.name.as_str()).is_some());
            }
            let kept: Vec<TagFacts> = spared.into_iter().cloned().collect();
            prop_assert!(rule.retired(&kept, may_fill).is_empty(), "a second time takes nothing more");
        }

        #[test]
        fn no_name_is_too_strange_to_be_judged(name in "[A-Za-z0-9._-]{1,128}") {
            let _ = Version::parse(&name);
            prop_assert!(matches("*", &name) && matches(&name, &name));
        }
    }
}
