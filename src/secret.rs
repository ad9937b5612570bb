//! Secrets: values that cannot be printed by accident.

use std::fmt;

/// A password or token. It has no `Display`, its `Debug` shows nothing, and it is only seen where [`Secret::expose`] is called.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown_by_what_shows_everything() {
        // Invariant 12
        let (secret, within) = (Secret::new("pa55"), Some(("alice", Secret::new("pa55"))));
        for shown in [format!("{secret:?}"), format!("{secret:#?}"), format!("{within:?}")] {
            assert!(!shown.contains("pa55"), "{shown}");
        }
        assert_eq!(secret.expose(), "pa55");
    }
}
