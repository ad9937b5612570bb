//! Setting up: what is wrong is said at the start, by key and file, and the start touches no network.

use std::error::Error as _;

use sealock::clock::Clock;
use sealock::gate::{Gate, GateSettings};
use sealock::upstream::{Upstream, UpstreamError, UpstreamSettings, UpstreamSetupError};
use tempfile::TempDir;

use super::{APP, Site, app, tag};
use crate::support::far::FarRegistry;

fn set_up(toml: &str) -> Result<Upstream, UpstreamSetupError> {
    let data = TempDir::new().unwrap();
    let clock = Clock::system();
    let gate = Gate::load(&GateSettings::default(), data.path(), clock.clone()).unwrap();
    let settings: UpstreamSettings = toml::from_str(toml).unwrap();
    Upstream::new("far", &settings, &gate, &clock)
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named() {
    // Invariant 20
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("there-is-no-such-file");
    for key in ["password_file", "docker_config", "ca_file"] {
        let user = if key == "password_file" { "username = 'u'" } else { "" };
        let error = set_up(&format!("host = 'a.b'\n{key} = {path:?}\n{user}")).err().unwrap();
        let cause = error.source().map(ToString::to_string).unwrap_or_default();
        let told = format!("{error}: {cause}");
        assert!(told.contains("[upstream.far]") && told.contains(key), "{told}");
        assert!(told.contains("there-is-no-such-file"), "{told}");
        assert!(error.hint().is_some());
    }
}

#[tokio::test]
async fn what_the_files_hold_must_make_sense() {
    // Invariant 20
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("file");
    for (key, user, content) in [
        ("password_file", "username = 'u'", &b"\n"[..]),
        ("password_file", "username = 'u'", b"\xff\xfe"),
        ("docker_config", "", b"not json"),
        ("ca_file", "", b"no certificate"),
    ] {
        std::fs::write(&path, content).unwrap();
        let error = set_up(&format!("host = 'a.b'\n{key} = {path:?}\n{user}")).err().unwrap();
        assert!(error.to_string().contains(key), "{error}");
    }
    let unset = set_up("host = 'a.b'\nusername = 'u'\npassword_env = 'SEALOCK_TEST_NO_SUCH_VARIABLE'").err().unwrap();
    assert!(unset.to_string().contains("SEALOCK_TEST_NO_SUCH_VARIABLE"), "{unset}");
    let half = set_up("host = 'a.b'\nusername = 'u'").err().unwrap();
    assert!(half.to_string().contains("username: has no password"), "{half}");
}

#[tokio::test]
async fn setting_up_touches_no_network() {
    // Invariant 15
    let far = FarRegistry::start().await;
    let site = Site::of(&far, "").await;
    assert_eq!((site.upstream.name(), site.upstream.host()), ("far", "far.test"));
    assert_eq!(far.connections(), 0);
}

#[tokio::test]
async fn tls_is_judged_by_the_configured_authority() {
    let far = FarRegistry::start_tls().await;
    let image = far.put_image(APP, "1", &[b"layer"]);
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("ca.crt");
    std::fs::write(&path, far.ca_pem()).unwrap();
    let trusting = Site::of(&far, &format!("ca_file = {path:?}")).await;
    assert_eq!(trusting.manifest("1").await.unwrap(), image.bytes);
    assert_eq!(trusting.blob(&image.layers[0], 0).await.unwrap().1, b"layer");
    let stranger = Site::of(&far, "retries_max = 0").await;
    let error = stranger.manifest("1").await.unwrap_err();
    assert!(matches!(error, UpstreamError::Unreachable { .. }), "{error}");

    let other = FarRegistry::start_tls_for(&["other.test"]).await;
    std::fs::write(&path, other.ca_pem()).unwrap();
    let site = Site::of(&other, &format!("ca_file = {path:?}\nretries_max = 0")).await;
    assert!(matches!(site.manifest("1").await, Err(UpstreamError::Unreachable { .. })));
    assert_eq!(other.requests().len(), 0);
}

#[tokio::test]
async fn a_cut_blob_over_http_2_is_resumed() {
    let far = FarRegistry::start_tls().await;
    let bytes = super::patterned(300_000);
    let digest = far.put_blob(APP, bytes.clone());
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("ca.crt");
    std::fs::write(&path, far.ca_pem()).unwrap();
    far.cut_blob_at(100_000, 1);
    let site = Site::of(&far, &format!("ca_file = {path:?}")).await;
    assert_eq!(site.blob(&digest, 0).await.unwrap(), (0, bytes));
    assert_eq!(far.ranges_of(&digest).len(), 2);
}

#[tokio::test]
async fn a_closed_gate_lets_nothing_out() {
    // Invariant 1
    let far = FarRegistry::start().await;
    let image = far.put_image(APP, "1", &[b"layer"]);
    let site = Site::of(&far, "").await;
    site.gate.close(super::order(), None).await.unwrap();
    let upstream = &site.upstream;
    let errors = [
        upstream.resolve(&app(), &tag("1")).await.err(),
        upstream.manifest(&app(), &tag("1")).await.err(),
        upstream.blob(&app(), &image.config, 0).await.err(),
        upstream.has_blob(&app(), &image.config).await.err(),
        upstream.tags(&app()).await.err(),
        upstream.referrers(&app(), &image.digest).await.err(),
    ];
    for error in errors {
        assert!(matches!(error, Some(UpstreamError::Refused(_))), "{error:?}");
    }
    assert_eq!(far.connections(), 0);
}
