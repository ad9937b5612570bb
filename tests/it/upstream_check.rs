//! `sealock upstream check`: each step, what fails in it, and what to do; through the gate and on record.

use std::process::Command;

use sealock::server::admin::{AdminClient, CheckOrder};
use sealock::upstream::{CheckStep, Step, UpstreamCheck};

use crate::support::far::{Access, FarRegistry};
use crate::support::site::{Sealock, Setup};

const CANARY: &str = "canary-4711-password";

async fn check(site: &Sealock, image: Option<&str>) -> UpstreamCheck {
    let order = CheckOrder { upstream: Some("far".to_owned()), image: image.map(str::to_owned) };
    AdminClient::new(site.data()).check_upstreams(&order).await.unwrap().remove(0)
}

/// The step that failed.
fn failed(check: &UpstreamCheck) -> &CheckStep {
    assert!(!check.good && !check.endpoints[0].good, "{check:?}");
    let step = check.endpoints[0].steps.last().unwrap();
    assert!(!step.good, "{check:?}");
    step
}

fn setup(origin: &str, more: &str) -> Setup {
    Sealock::setup()
        .settings(&format!(
            "[upstream.far]\nhost = \"far.test\"\nendpoints = [\"{origin}\"]\nretry_pause = \"1ms\"\n{more}"
        ))
        .gate_open()
}

#[tokio::test]
async fn a_good_upstream_is_asked_for_what_is_kept_of_it_and_the_audit_file_says_so() {
    // Invariant 19
    let far = FarRegistry::start().await;
    far.put_image("team/app", "1", &[b"layer"]);
    far.access(Access::AnonymousBearer);
    let site = setup(&far.origin(), "").start().await;
    // Nothing is known yet: no manifest is asked for.
    let unknown = check(&site, None).await;
    assert!(unknown.good && unknown.endpoints[0].steps.last().unwrap().detail.contains("--image"), "{unknown:?}");
    assert_eq!(site.manifest("far.test/team/app", "1").await.status, 200);
    let good = check(&site, None).await;
    let steps: Vec<_> = good.endpoints[0].steps.iter().map(|step| step.step).collect();
    assert_eq!(steps, [Step::Name, Step::Connection, Step::Registry, Step::Login, Step::Manifest]);
    assert!(good.good && good.endpoints[0].steps[4].detail.contains("has team/app:1"), "{good:?}");
    let named = check(&site, Some("far.test/team/other:2")).await;
    assert!(
        named.good && named.endpoints[0].steps[4].detail.contains("team/other:2, which it does not have"),
        "{named:?}"
    );
    site.app.gate().flush().await.unwrap();
    let audit = site.audit();
    for purpose in ["ping", "token", "manifest"] {
        assert!(audit.iter().any(|line| line["purpose"] == purpose && line["upstream"] == "far"), "{purpose}");
    }
}

#[tokio::test]
async fn each_step_that_fails_says_why_and_what_to_do() {
    let (plain, secure) = (FarRegistry::start().await, FarRegistry::start_tls().await);
    let at = |origin: &str, from: &str, to: &str| origin.replace(from, to);
    let cases = [
        (at(&plain.origin(), "http:", "https:"), Step::Tls, "write `http://`"),
        (secure.origin(), Step::Tls, "name it in `ca_file`"),
    ];
    for (origin, step, hint) in cases {
        let site = setup(&origin, "").start().await;
        let check = check(&site, None).await;
        let found = failed(&check);
        assert_eq!(found.step, step, "{check:?}");
        assert!(found.hint.as_ref().is_some_and(|told| told.contains(hint)), "{check:?}");
    }
    let site = setup(&at(&secure.origin(), "https:", "http:"), "").start().await;
    let spoken_to = check(&site, None).await;
    assert!(failed(&spoken_to).hint.as_ref().is_some_and(|hint| hint.contains("write `https://`")), "{spoken_to:?}");

    plain.always(404);
    let site = setup(&plain.origin(), "").start().await;
    let no_registry = check(&site, None).await;
    assert_eq!(failed(&no_registry).step, Step::Registry);
    plain.heal();
    plain.always(None);
    plain.stop().await;
    let away = check(&site, None).await;
    assert_eq!(failed(&away).step, Step::Connection, "{away:?}");
}

#[tokio::test]
async fn a_certificate_is_told_of_with_the_days_that_it_has_left() {
    let (far, folder) = (FarRegistry::start_tls().await, tempfile::tempdir().unwrap());
    let ca = folder.path().join("ca.crt");
    std::fs::write(&ca, far.ca_pem()).unwrap();
    let site = setup(&far.origin(), &format!("ca_file = {ca:?}")).start().await;
    let good = check(&site, None).await;
    let tls = good.endpoints[0].steps.iter().find(|step| step.step == Step::Tls).unwrap();
    assert!(good.good && tls.detail.contains(" days"), "{good:?}");
}

#[tokio::test]
async fn a_wrong_password_is_named_by_its_user_and_never_told() {
    // Invariant 12
    for access in [
        Access::Basic { username: "robot".to_owned(), password: "another".to_owned() },
        Access::Bearer { username: "robot".to_owned(), password: "another".to_owned() },
    ] {
        let (far, folder) = (FarRegistry::start().await, tempfile::tempdir().unwrap());
        far.put_image("team/app", "1", &[b"layer"]);
        far.access(access);
        let file = folder.path().join("password");
        std::fs::write(&file, CANARY).unwrap();
        let site = setup(&far.origin(), &format!("username = \"robot\"\npassword_file = {file:?}")).start().await;
        let check = check(&site, Some("far.test/team/app:1")).await;
        let step = failed(&check);
        assert!(
            matches!(step.step, Step::Login | Step::Manifest) && step.detail.contains("refuses our credentials"),
            "{check:?}"
        );
        assert!(step.hint.as_ref().is_some_and(|hint| hint.contains("[upstream.far]")), "{check:?}");
        assert!(!format!("{check:?}").contains(CANARY));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_gate_lets_no_check_out_and_the_command_says_how_to_open_it() {
    // Invariant 1
    let far = FarRegistry::start().await;
    let site = Sealock::setup().upstream("far", "far.test", &far).start().await;
    let refused = check(&site, None).await;
    assert!(refused.refused.as_ref().is_some_and(|words| words.contains("closed")), "{refused:?}");
    assert_eq!(far.connections(), 0);
    let data = site.data();
    let run = async |arguments: &'static [&'static str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealock"));
        command.env_clear().current_dir(&data).arg("--data").arg(&data).args(arguments);
        let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
        (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
    };
    let (code, words) = run(&["upstream", "check"]).await;
    assert_eq!(code, Some(1), "{words}");
    assert!(
        words.contains("the gate is closed") && words.contains("sealock gate open --for 10m --upstream far"),
        "{words}"
    );
    let (code, words) = run(&["upstream", "check", "nope"]).await;
    assert!(code == Some(1) && words.contains("there is no upstream `nope`") && words.contains("`far`"), "{words}");
    site.open_gate().await;
    let (code, words) = run(&["upstream", "check", "far", "--json"]).await;
    assert_eq!(code, Some(0), "{words}");
    let report: serde_json::Value = serde_json::from_str(&words).unwrap();
    assert_eq!(report[0]["endpoints"][0]["steps"][0]["step"], "name");
}
