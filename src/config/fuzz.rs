//! Settings files, for `fuzz/`.

use super::{ConfigError, Settings};

/// A file is taken, or refused with its place, on one line (invariant 20).
pub(crate) fn settings(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let files = [("site.toml".to_owned(), text.to_owned())];
    match Settings::of_texts(files, std::iter::empty()) {
        Ok((settings, _)) => assert!(settings.routes().is_ok()),
        Err(ConfigError::Wrong { place, .. } | ConfigError::Syntax { place, .. }) => {
            assert!(!place.contains('\n') && !place.is_empty());
        }
        Err(other) => panic!("{other}"),
    }
}
