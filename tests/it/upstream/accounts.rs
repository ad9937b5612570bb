//! Which credential is shown for which repository, and that a new one is taken from its file at once.

use std::io::Write;
use std::sync::{Arc, Mutex};

use sealock::upstream::UpstreamError;
use tempfile::TempDir;
use tracing_subscriber::fmt::MakeWriter;

use super::{APP, CANARY, Site, app, name, tag};
use crate::support::far::{Access, FarRegistry};

const OTHER: &str = "canary-0815-of-the-group";

/// `Authorization: Basic` for `robot` with `password`.
fn shown(user: &str, password: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

fn basic(password: &str) -> Access {
    Access::Basic { username: "robot".to_owned(), password: password.to_owned() }
}

fn bearer(password: &str) -> Access {
    Access::Bearer { username: "robot".to_owned(), password: password.to_owned() }
}

/// With the canary for all, and another user for `group/**`.
async fn site_of_two(far: &FarRegistry, folder: &TempDir) -> Site {
    let (own, group) = (folder.path().join("own"), folder.path().join("group"));
    std::fs::write(&own, CANARY).unwrap();
    std::fs::write(&group, OTHER).unwrap();
    let more = format!(
        "username = 'robot'\npassword_file = {own:?}\nretries_max = 0\n\
         [credentials.'group/**']\nusername = 'grouper'\npassword_file = {group:?}\n\
         [credentials.'group/open/app']\nusername = 'robot'\npassword_file = {own:?}"
    );
    Site::of(far, &format!("retry_pause = '1ms'\n{more}")).await
}

/// Repositories, and whether the group's credential is for them.
const REPOSITORIES: [(&str, bool); 7] = [
    ("group/app", true),
    ("group/deep/er/app", true),
    ("group/open/app", false),
    ("group", false),
    ("groups/app", false),
    ("group-b/app", false),
    ("team/group/app", false),
];

#[tokio::test]
async fn a_prefixs_password_is_shown_for_no_sibling_and_the_own_one_not_for_the_prefix() {
    // Invariant 12
    for access in [basic(CANARY), bearer(CANARY)] {
        let (far, folder) = (FarRegistry::start().await, TempDir::new().unwrap());
        for (repository, _) in REPOSITORIES {
            far.put_image(repository, "1", &[b"layer"]);
        }
        far.access(access);
        let site = site_of_two(&far, &folder).await;
        for _ in 0..2 {
            for (repository, is_group) in REPOSITORIES {
                let outcome = site.upstream.manifest(&name(repository), &tag("1")).await;
                // The far side knows the robot alone.
                assert_eq!(outcome.is_err(), is_group, "{repository}: {outcome:?}");
            }
        }
        let (own, group) = (shown("robot", CANARY), shown("grouper", OTHER));
        let mut seen = [0, 0];
        for request in far.requests() {
            let Some(authorization) = request.header("authorization") else { continue };
            let asked = format!("{}?{}", request.path, request.query).replace("%2F", "/").replace("%3A", ":");
            let of_group = |(repository, is_group): &(&str, bool)| {
                let named = asked.contains(&format!("/v2/{repository}/manifests"))
                    || asked.contains(&format!("repository:{repository}:pull"));
                named.then_some(*is_group)
            };
            let is_group = REPOSITORIES.iter().find_map(of_group).unwrap_or_else(|| panic!("{asked}"));
            if authorization.starts_with("Basic ") {
                assert_eq!(authorization, if is_group { &group } else { &own }, "{asked}");
                seen[usize::from(is_group)] += 1;
            }
        }
        assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
    }
}

#[tokio::test]
async fn a_refused_password_of_a_prefix_does_not_stop_the_others() {
    let (far, folder) = (FarRegistry::start().await, TempDir::new().unwrap());
    far.put_image(APP, "1", &[b"layer"]);
    far.access(basic(CANARY));
    let site = site_of_two(&far, &folder).await;
    for _ in 0..3 {
        let refused = site.upstream.manifest(&name("group/app"), &tag("1")).await;
        assert!(matches!(refused, Err(UpstreamError::CredentialsDenied { .. })), "{refused:?}");
        site.manifest("1").await.unwrap();
    }
    let of_group =
        far.requests().iter().filter(|one| one.header("authorization") == Some(&shown("grouper", OTHER))).count();
    assert_eq!(of_group, 1, "a refused password rests");
}

#[tokio::test]
async fn a_new_password_in_the_file_is_shown_with_the_next_request() {
    for access in [basic, bearer] {
        let (far, folder) = (FarRegistry::start().await, TempDir::new().unwrap());
        let image = far.put_image(APP, "1", &[b"layer"]);
        far.access(access("first"));
        let file = folder.path().join("password");
        std::fs::write(&file, "first\n").unwrap();
        let site = Site::of(&far, &format!("username = 'robot'\npassword_file = {file:?}")).await;
        assert_eq!(site.manifest("1").await.unwrap(), image.bytes);
        // The old one is refused, and rests; the new one is no old one.
        far.access(access("second"));
        far.expire_tokens();
        assert!(matches!(site.manifest("1").await, Err(UpstreamError::CredentialsDenied { .. })));
        std::fs::write(&file, "second\n").unwrap();
        assert_eq!(site.manifest("1").await.unwrap(), image.bytes);
        // While it is being written it holds nothing of use: the last good one is used on.
        for broken in [&b""[..], b"\n", b"\xff\xfe"] {
            std::fs::write(&file, broken).unwrap();
            assert_eq!(site.manifest("1").await.unwrap(), image.bytes);
        }
        std::fs::remove_file(&file).unwrap();
        assert_eq!(site.manifest("1").await.unwrap(), image.bytes);
        // Put in place by a rename, as by Kubernetes and by careful editors.
        far.access(access("third!"));
        far.expire_tokens();
        let new = folder.path().join("new");
        std::fs::write(&new, "third!").unwrap();
        std::fs::rename(&new, &file).unwrap();
        let before = far.requests().len();
        assert_eq!(site.manifest("1").await.unwrap(), image.bytes);
        let old = shown("robot", "second");
        let again =
            far.requests().split_off(before).iter().filter(|one| one.header("authorization") == Some(&old)).count();
        assert_eq!(again, 0, "the old one was shown once more");
    }
}

#[tokio::test]
async fn a_new_login_in_dockers_configuration_is_shown_with_the_next_request() {
    let (far, folder) = (FarRegistry::start().await, TempDir::new().unwrap());
    let image = far.put_image(APP, "1", &[b"layer"]);
    let file = folder.path().join("config.json");
    let log_in = |password: &str| {
        let auth = shown("robot", password).replace("Basic ", "");
        std::fs::write(&file, format!("{{\"auths\": {{\"far.test\": {{\"auth\": \"{auth}\"}}}}}}")).unwrap();
    };
    log_in("first");
    far.access(basic("first"));
    let site = Site::of(&far, &format!("docker_config = {file:?}")).await;
    assert_eq!(site.manifest("1").await.unwrap(), image.bytes);
    far.access(basic("second"));
    log_in("second");
    assert_eq!(site.manifest("1").await.unwrap(), image.bytes);
    assert!(
        far.saw(&shown("robot", "second"))
            || far.requests().iter().any(|one| one.header("authorization") == Some(&shown("robot", "second")))
    );
}

/// Everything that is logged while it is there.
#[derive(Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Captured {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn a_rogue_upstream_learns_nothing_and_no_log_holds_a_password_at_trace_level() {
    // Invariant 12
    let captured = Captured::default();
    let logging = tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(captured.clone());
    let _logging = tracing::subscriber::set_default(logging.finish());
    let mut told = String::new();
    for access in [basic(CANARY), bearer(CANARY)] {
        let (rogue, thief, folder) = (FarRegistry::start().await, FarRegistry::start().await, TempDir::new().unwrap());
        let secure = FarRegistry::start_tls().await;
        for (far, repository) in [(&rogue, APP), (&thief, APP), (&rogue, "group/app"), (&thief, "group/app")] {
            far.put_image(repository, "1", &[b"layer"]);
        }
        rogue.access(access.clone());
        let site = site_of_two(&rogue, &folder).await;
        site.manifest("1").await.unwrap();
        let port = thief.address().port();
        // Another port, another host, another scheme, and the way back by a stranger.
        let places = [thief.url(""), format!("http://localhost:{port}"), secure.url("")];
        for place in places {
            for repository in [app(), name("group/app")] {
                rogue.switch(|to| to.redirect = Some((307, format!("{place}/v2/{repository}/manifests/1"))));
                let outcome = site.upstream.manifest(&repository, &tag("1")).await;
                told.push_str(&format!("{outcome:?} {:?}", outcome.as_ref().err().map(ToString::to_string)));
                rogue.switch(|to| to.redirect = None);
            }
            rogue.expire_tokens();
            rogue.access(bearer(CANARY));
            rogue.switch(|to| to.realm = Some(format!("{place}/token")));
            site.advance(100);
            let outcome = site.manifest("1").await;
            told.push_str(&format!("{outcome:?} {:?}", outcome.as_ref().err().map(ToString::to_string)));
            rogue.switch(|to| to.realm = None);
            rogue.access(access.clone());
            site.advance(100);
        }
        let probe = (app(), tag("1"));
        told.push_str(&format!(
            "{:?} {:?} {}",
            site.upstream.check(Some(&probe)).await,
            site.upstream.health(),
            site.audit().await
        ));
        for far in [&thief, &secure] {
            for secret in [CANARY, OTHER] {
                assert!(!far.saw(secret), "`{secret}` went astray");
            }
            assert!(far.requests().iter().all(|request| request.header("authorization").is_none()));
        }
        assert!(rogue.requests().iter().any(|request| request.header("authorization").is_some()));
    }
    told.push_str(&String::from_utf8_lossy(&captured.0.lock().unwrap()));
    assert!(told.contains("far"), "nothing was told at all");
    let encoded = [shown("robot", CANARY), shown("grouper", OTHER)].map(|basic| basic.replace("Basic ", ""));
    for secret in [CANARY, OTHER, &encoded[0], &encoded[1], "Bearer far."] {
        assert!(!told.contains(secret), "`{secret}` was told");
    }
}
