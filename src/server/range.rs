//! (pure) Byte ranges and entity tags: RFC 9110, sections 13 and 14; and the ranges of an upload's chunks.

use http::{HeaderMap, header};

/// Which part of a representation to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    /// First byte, and the byte after the last.
    Range(std::ops::Range<u64>),
    /// No byte of the range exists: 416.
    Unsatisfiable,
}

/// Which bytes of an upload a request brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Chunk {
    /// It does not say: those that come next.
    Unsaid,
    /// First byte, and the byte after the last.
    Range(std::ops::Range<u64>),
    Malformed,
}

/// What of `size` bytes a request asks for. Several ranges, other units and malformed ranges count as none (14.2), and so
/// does a range whose `If-Range` names another `etag` or a date (13.1.5).
pub fn part(headers: &HeaderMap, etag: &str, size: u64) -> Part {
    let mut ranges = headers.get_all(header::RANGE).iter();
    let (Some(range), None) = (ranges.next(), ranges.next()) else {
        return Part::Whole;
    };
    if headers.get(header::IF_RANGE).is_some_and(|condition| condition.as_bytes() != etag.as_bytes()) {
        return Part::Whole;
    }
    range.to_str().ok().and_then(|text| parse(text, size)).unwrap_or(Part::Whole)
}

/// Whether the client says that it has `etag` already (`If-None-Match`, 13.1.2): by itself, in a list, weakly, or `*`.
pub fn has_already(headers: &HeaderMap, etag: &str) -> bool {
    headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(|list| {
        list.split(',').map(str::trim).any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == etag)
    })
}

/// `Content-Range` as the distribution specification has it ("Pushing a blob in chunks"): `0-1023`, without unit and size.
pub fn chunk(headers: &HeaderMap) -> Chunk {
    let mut stated = headers.get_all(header::CONTENT_RANGE).iter();
    let (first, second) = (stated.next(), stated.next());
    let Some(stated) = first else { return Chunk::Unsaid };
    let read = |text: &str| {
        let (first, last) = text.split_once('-')?;
        let (first, end) = (number(first)?, number(last)?.checked_add(1)?);
        (first < end).then_some(Chunk::Range(first..end))
    };
    let range = stated.to_str().ok().filter(|_| second.is_none()).and_then(read);
    range.unwrap_or(Chunk::Malformed)
}

fn parse(text: &str, size: u64) -> Option<Part> {
    let (unit, spec) = text.split_once('=')?;
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return None;
    }
    let (first, last) = spec.trim().split_once('-')?;
    match (first.is_empty(), last.is_empty()) {
        (true, true) => None,
        (true, false) => {
            let count = number(last)?.min(size);
            Some(if count == 0 { Part::Unsatisfiable } else { Part::Range(size - count..size) })
        }
        (false, _) => {
            let first = number(first)?;
            let end = if last.is_empty() { size } else { number(last)?.saturating_add(1).min(size) };
            // `500-0` is malformed by the grammar's words, but the conformance suite demands 416 for it.
            Some(if first < end { Part::Range(first..end) } else { Part::Unsatisfiable })
        }
    }
}

/// Digits alone; more of them than fit count as the largest number.
fn number(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const ETAG: &str = "\"sha256:aa\"";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn ranges_of_a_thousand_bytes() {
        let cases = [
            ("bytes=0-0", Part::Range(0..1)),
            ("bytes=0-", Part::Range(0..1000)),
            ("bytes=500-999", Part::Range(500..1000)),
            ("bytes=500-", Part::Range(500..1000)),
            ("bytes=-500", Part::Range(500..1000)),
            ("bytes=-5000", Part::Range(0..1000)),
            ("bytes=200-5000", Part::Range(200..1000)),
            ("bytes=200-99999999999999999999999", Part::Range(200..1000)),
            ("Bytes = 1-2", Part::Range(1..3)),
            ("bytes=500-0", Part::Unsatisfiable),
            ("bytes=1000-", Part::Unsatisfiable),
            ("bytes=5000-10000", Part::Unsatisfiable),
            ("bytes=99999999999999999999999-", Part::Unsatisfiable),
            ("bytes=-0", Part::Unsatisfiable),
            ("bytes=0-1,5-6", Part::Whole),
            ("bytes=-", Part::Whole),
            ("bytes=a-b", Part::Whole),
            ("bytes=+1-2", Part::Whole),
            ("bytes=1", Part::Whole),
            ("lines=1-2", Part::Whole),
            ("", Part::Whole),
        ];
        for (range, expected) in cases {
            assert_eq!(part(&headers(&[("range", range)]), ETAG, 1000), expected, "{range}");
        }
        assert_eq!(part(&HeaderMap::new(), ETAG, 1000), Part::Whole);
        assert_eq!(part(&headers(&[("range", "bytes=0-1"), ("range", "bytes=3-4")]), ETAG, 1000), Part::Whole);
    }

    #[test]
    fn chunks_name_their_first_and_last_byte() {
        let cases = [
            ("0-0", Chunk::Range(0..1)),
            ("10-19", Chunk::Range(10..20)),
            ("19-10", Chunk::Malformed),
            ("bytes 0-9/10", Chunk::Malformed),
            ("0-", Chunk::Malformed),
            ("-9", Chunk::Malformed),
            ("", Chunk::Malformed),
            ("+0-9", Chunk::Malformed),
            ("0-99999999999999999999999", Chunk::Malformed),
        ];
        for (range, expected) in cases {
            assert_eq!(chunk(&headers(&[("content-range", range)])), expected, "{range}");
        }
        assert_eq!(chunk(&HeaderMap::new()), Chunk::Unsaid);
        assert_eq!(chunk(&headers(&[("content-range", "0-1"), ("content-range", "0-1")])), Chunk::Malformed);
    }

    #[test]
    fn an_empty_representation_has_no_range() {
        assert_eq!(part(&headers(&[("range", "bytes=0-")]), ETAG, 0), Part::Unsatisfiable);
        assert_eq!(part(&headers(&[("range", "bytes=-5")]), ETAG, 0), Part::Unsatisfiable);
    }

    #[test]
    fn if_range_needs_the_same_strong_tag() {
        let with = |condition| part(&headers(&[("range", "bytes=1-2"), ("if-range", condition)]), ETAG, 10);
        assert_eq!(with(ETAG), Part::Range(1..3));
        assert_eq!(with("W/\"sha256:aa\""), Part::Whole);
        assert_eq!(with("\"sha256:bb\""), Part::Whole);
        assert_eq!(with("Sun, 06 Nov 1994 08:49:37 GMT"), Part::Whole);
    }

    #[test]
    fn if_none_match_takes_lists_weak_tags_and_stars() {
        for (value, expected) in [
            (ETAG, true),
            ("\"x\", \"sha256:aa\"", true),
            ("W/\"sha256:aa\"", true),
            ("*", true),
            ("\"x\"", false),
            ("sha256:aa", false),
        ] {
            assert_eq!(has_already(&headers(&[("if-none-match", value)]), ETAG), expected, "{value}");
        }
        assert!(!has_already(&HeaderMap::new(), ETAG));
    }

    proptest! {
        #[test]
        fn a_range_lies_within_and_is_never_empty(first in any::<u64>(), last in any::<u64>(), size in any::<u64>()) {
            for range in [format!("bytes={first}-{last}"), format!("bytes={first}-"), format!("bytes=-{last}")] {
                match part(&headers(&[("range", &range)]), ETAG, size) {
                    Part::Range(range) => prop_assert!(range.start < range.end && range.end <= size),
                    Part::Unsatisfiable => {}
                    Part::Whole => prop_assert!(false, "{} is well-formed", range),
                }
            }
        }

        #[test]
        fn nothing_panics(range in "[ -~]{0,40}", size in any::<u64>()) {
            part(&headers(&[("range", &range)]), ETAG, size);
        }
    }
}
