//! (pure) What a `WWW-Authenticate` header asks for (RFC 9110, 11.6.1).
//!
//! Registries repeat the header, write schemes in any case, and put commas into quoted scopes.

/// Longest header value that is looked at, in bytes.
const VALUE_BYTES_MAX: usize = 8 << 10;
/// Most header values that are looked at.
const VALUES_MAX: usize = 8;

/// A way to authenticate that we know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Bearer(Bearer),
    Basic,
}

/// Where a token is to be had, and for what.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bearer {
    pub realm: String,
    pub service: Option<String>,
    pub scope: Option<String>,
}

/// The challenges that we can meet, in their order; what is malformed or unknown is passed over.
pub(super) fn parse<'a>(values: impl IntoIterator<Item = &'a str>) -> Vec<Challenge> {
    let values = values.into_iter().take(VALUES_MAX).filter(|value| value.len() <= VALUE_BYTES_MAX);
    values.flat_map(split).filter_map(|raw| raw.known()).collect()
}

/// A scheme and its parameters; both lower-cased but for the values.
struct Raw {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Raw {
    fn known(mut self) -> Option<Challenge> {
        match self.scheme.as_str() {
            "basic" => Some(Challenge::Basic),
            "bearer" => {
                let mut take = |wanted: &str| {
                    let at = self.parameters.iter().position(|(key, _)| key == wanted)?;
                    Some(self.parameters.swap_remove(at).1).filter(|value| !value.is_empty())
                };
                Some(Challenge::Bearer(Bearer {
                    realm: take("realm")?,
                    service: take("service"),
                    scope: take("scope"),
                }))
            }
            _ => None,
        }
    }
}

fn split(value: &str) -> Vec<Raw> {
    let mut scan = Scan { rest: value };
    let mut found: Vec<Raw> = Vec::new();
    loop {
        scan.skip(|c| c == ',' || c.is_ascii_whitespace());
        if scan.rest.is_empty() {
            return found;
        }
        let word = scan.token();
        if word.is_empty() {
            // Neither a scheme nor a parameter (a `token68`, say): on to the next comma.
            scan.skip(|c| c != ',');
            continue;
        }
        scan.skip(|c| c.is_ascii_whitespace());
        if !scan.rest.starts_with('=') {
            found.push(Raw { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
            continue;
        }
        scan.rest = &scan.rest[1..];
        scan.skip(|c| c.is_ascii_whitespace());
        let text = scan.value();
        if let Some(raw) = found.last_mut() {
            raw.parameters.push((word.to_ascii_lowercase(), text));
        }
    }
}

struct Scan<'a> {
    rest: &'a str,
}

impl<'a> Scan<'a> {
    fn skip(&mut self, passed: impl Fn(char) -> bool) {
        self.rest = self.rest.trim_start_matches(passed);
    }

    fn token(&mut self) -> &'a str {
        let end = self.rest.find(|c: char| !is_token(c)).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        word
    }

    /// A quoted string, or what stands before the next comma or space.
    fn value(&mut self) -> String {
        let Some(quoted) = self.rest.strip_prefix('"') else {
            let end = self.rest.find(|c: char| c == ',' || c.is_ascii_whitespace()).unwrap_or(self.rest.len());
            let (word, rest) = self.rest.split_at(end);
            self.rest = rest;
            return word.to_owned();
        };
        let mut text = String::new();
        let mut chars = quoted.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.rest = &quoted[at + 1..];
                    return text;
                }
                '\\' => text.extend(chars.next().map(|(_, escaped)| escaped)),
                _ => text.push(c),
            }
        }
        // The closing quote is missing: what there is may be half a value.
        self.rest = "";
        String::new()
    }
}

fn is_token(c: char) -> bool {
    c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer(Bearer { realm: realm.to_owned(), service: owned(service), scope: owned(scope) })
    }

    #[test]
    fn what_registries_send_is_understood() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/alpine:pull""#;
        let cases: &[(&[&str], Vec<Challenge>)] = &[
            (
                &[hub],
                vec![bearer(
                    "https://auth.docker.io/token",
                    Some("registry.docker.io"),
                    Some("repository:library/alpine:pull"),
                )],
            ),
            (
                &[r#"bearer realm="https://r/t", scope="repository:a:pull,push""#],
                vec![bearer("https://r/t", None, Some("repository:a:pull,push"))],
            ),
            (&[r#"Basic realm="far""#], vec![Challenge::Basic]),
            (&["BASIC"], vec![Challenge::Basic]),
            (
                &[r#"Basic realm="a", Bearer realm="https://r/t""#],
                vec![Challenge::Basic, bearer("https://r/t", None, None)],
            ),
            (
                &[r#"Basic realm="a""#, r#"Bearer realm="https://r/t""#],
                vec![Challenge::Basic, bearer("https://r/t", None, None)],
            ),
            (&[r#"Negotiate YII/abc==, Bearer realm = "https://r/t""#], vec![bearer("https://r/t", None, None)]),
            (&["Bearer realm=https://r/t,service=s"], vec![bearer("https://r/t", Some("s"), None)]),
            (&[r#"Bearer realm="a\"b\\c""#], vec![bearer("a\"b\\c", None, None)]),
            (&[r#"Bearer realm="half"#], vec![]),
            (&["Bearer", ",,,", "", "=", "\"", "realm=\"x\""], vec![]),
        ];
        for (values, expected) in cases {
            assert_eq!(&parse(values.iter().copied()), expected, "{values:?}");
        }
    }

    #[test]
    fn what_is_too_long_or_too_much_is_passed_over() {
        // Invariant 17
        let long = format!("Bearer realm=\"{}\"", "r".repeat(VALUE_BYTES_MAX));
        assert_eq!(parse([long.as_str()]), vec![]);
        assert_eq!(parse(["Basic"; 100]).len(), VALUES_MAX);
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_to_its_end(text in "\\PC{0,200}") {
            parse([text.as_str()]);
        }

        #[test]
        fn text_made_of_its_own_signs_is_parsed_to_its_end(text in "[Bb=\",\\\\ a]{0,80}") {
            parse([text.as_str()]);
        }

        #[test]
        fn a_quoted_value_comes_back_as_it_was(realm in "[ -~]{1,60}") {
            let quoted = realm.replace('\\', "\\\\").replace('"', "\\\"");
            let header = format!("Bearer service=s , realm=\"{quoted}\"");
            prop_assert_eq!(parse([header.as_str()]), vec![bearer(&realm, Some("s"), None)]);
        }
    }
}
