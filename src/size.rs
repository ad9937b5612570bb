//! Sizes and durations as people write them: `20GiB`, `15m`. A bare number is refused, because its unit is a guess.

use std::fmt;
use std::time::Duration;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

const SIZE_UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

const SPAN_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

/// A length of time, to the millisecond.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

/// Why a text is neither a size nor a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidQuantity {
    #[error("`{0}` is not a size; write a number and a unit, such as `512MiB` or `20GiB`")]
    Size(String),
    #[error("`{0}` is not a duration; write numbers and units, such as `30s`, `15m`, `2h` or `1h30m`")]
    Span(String),
}

impl std::str::FromStr for Size {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        let wrong = || InvalidQuantity::Size(text.to_owned());
        let (number, unit) = split_number(text.trim()).ok_or_else(wrong)?;
        let (_, factor) = SIZE_UNITS.iter().find(|(name, _)| *name == unit.trim()).ok_or_else(wrong)?;
        number.checked_mul(*factor).map(Self).ok_or_else(wrong)
    }
}

impl std::str::FromStr for Span {
    type Err = InvalidQuantity;

    fn from_str(text: &str) -> Result<Self, InvalidQuantity> {
        let wrong = || InvalidQuantity::Span(text.to_owned());
        let mut rest = text.trim();
        let mut total_ms: u64 = 0;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let (number, tail) = split_number(rest).ok_or_else(wrong)?;
            let letters = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
            let (unit, after) = tail.split_at(letters);
            let (_, factor) = SPAN_UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
            total_ms = number.checked_mul(*factor).and_then(|ms| total_ms.checked_add(ms)).ok_or_else(wrong)?;
            rest = after.trim_start();
        }
        Ok(Self(Duration::from_millis(total_ms)))
    }
}

fn split_number(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(digits);
    Some((number.parse().ok()?, rest))
}

impl fmt::Display for Size {
    /// The largest binary unit with one decimal: `1.5 GiB`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        match units.iter().find(|(_, shift)| self.0 >> shift > 0) {
            Some((unit, shift)) => write!(f, "{:.1} {unit}", self.0 as f64 / (1u64 << shift) as f64),
            None => write!(f, "{} B", self.0),
        }
    }
}

impl fmt::Display for Span {
    /// The two largest units: `2h 5m`, `1d`, `450ms`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest_ms = self.0.as_millis() as u64;
        if rest_ms >= 1_000 {
            rest_ms -= rest_ms % 1_000;
        }
        let mut parts = Vec::new();
        for (unit, factor) in SPAN_UNITS.iter().rev() {
            if rest_ms >= *factor {
                parts.push(format!("{}{unit}", rest_ms / factor));
                rest_ms %= factor;
            }
        }
        parts.truncate(2);
        f.write_str(if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }.as_str())
    }
}

impl fmt::Debug for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

struct Text<T>(std::marker::PhantomData<T>);

impl<T: std::str::FromStr<Err = InvalidQuantity>> Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number with a unit, in quotes, such as \"15m\" or \"20GiB\"")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text(std::marker::PhantomData))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text(std::marker::PhantomData))
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0.as_millis() as u64)
    }
}
