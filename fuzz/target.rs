//! Feeds libFuzzer's inputs to the target that `FUZZ_TARGET` names.

#![no_main]

use std::sync::LazyLock;

use sealock::fuzz::{TARGETS, Target};

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("FUZZ_TARGET").expect("FUZZ_TARGET names a target of sealock::fuzz::TARGETS");
    *TARGETS.iter().find(|(known, _)| *known == name).expect("there is no such target")
});

libfuzzer_sys::fuzz_target!(init: LazyLock::force(&TARGET), |data: &[u8]| (TARGET.1)(data));
