//! Who may give orders by the admin socket, and what the commands say where there is no server.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::site::Sealock;

/// Somebody who is neither root nor us.
const STRANGER: u32 = 54_321;
const GROUP: u32 = 54_322;

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned()
}

fn sealock(program: &Path, data: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.env_clear().current_dir("/").arg("--data").arg(data).args(arguments);
    command
}

/// A program that everybody may run: the one under test may lie where only its owner goes.
fn for_all(folder: &Path) -> std::path::PathBuf {
    let program = folder.join("sealock");
    std::fs::copy(env!("CARGO_BIN_EXE_sealock"), &program).unwrap();
    std::fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    program
}

#[tokio::test(flavor = "multi_thread")]
async fn only_root_the_servers_user_and_its_group_may_give_orders() {
    // Invariant 19
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "becoming somebody else takes root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let program = for_all(folder.path());
    for group in [false, true] {
        let settings = if group { format!("[admin]\ngroup = \"{GROUP}\"") } else { String::new() };
        let site = Sealock::setup().settings(&settings).start().await;
        let data = site.data();
        for path in [data.parent().unwrap(), &data] {
            std::fs::set_permissions(path, Permissions::from_mode(0o711)).unwrap();
        }
        let socket = data.join("sealock.sock");
        let found = std::fs::metadata(&socket).unwrap();
        let expected = if group { (0o660, GROUP) } else { (0o600, rustix::process::getegid().as_raw()) };
        assert_eq!((found.mode() & 0o777, found.gid()), expected);
        let run = async |uid: u32, gid: u32, arguments: &'static [&'static str]| {
            let mut command = sealock(&program, &data, arguments);
            command.uid(uid).gid(gid);
            tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
        };
        let open = &["gate", "open", "--why", "a test"];
        let by_group = run(STRANGER, GROUP, open).await;
        assert_eq!(by_group.status.success(), group, "{by_group:?}");
        // A loosened mode lets nobody else in.
        std::fs::set_permissions(&socket, Permissions::from_mode(0o666)).unwrap();
        let stranger = run(STRANGER, STRANGER, open).await;
        assert!(words(&stranger).contains(&format!("uid {STRANGER} may not give orders here")), "{stranger:?}");
        assert_eq!(stranger.status.code(), Some(1));
        assert!(run(0, 0, &["gate", "close"]).await.status.success());
        let orders: Vec<_> = site.audit().into_iter().filter(|line| line["event"] == "gate").collect();
        let who = |what: &str| orders.iter().rev().find(|line| line["to"] == what).map(|line| line["who"].clone());
        assert_eq!(who("closed").unwrap(), "root (uid 0)");
        if group {
            assert_eq!(who("open").unwrap(), format!("uid {STRANGER}"));
        }
    }
}

#[test]
fn a_group_that_does_not_exist_stops_the_start() {
    // Invariant 20
    let folder = tempfile::tempdir().unwrap();
    let settings = folder.path().join("site.toml");
    std::fs::write(&settings, "[admin]\ngroup = \"no such group\"\n[server]\nlisten = [\"127.0.0.1:0\"]\n").unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_sealock"));
    let mut command = sealock(program, &folder.path().join("data"), &["serve", "-c"]);
    let output = command.arg(&settings).output().unwrap();
    // With the place and exit status of every wrong setting: a supervisor tries others again.
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(words(&output).contains("site.toml:2: admin.group: there is no group `no such group`"), "{output:?}");
}

#[test]
fn what_stays_wrong_until_somebody_acts_ends_with_the_status_of_wrong_settings() {
    // Invariant 20
    if !rustix::process::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "becoming somebody else takes root");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
    let (program, settings) = (for_all(folder.path()), folder.path().join("site.toml"));
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = held.local_addr().unwrap();
    // As a service that is of no further group and has no capability.
    let free_from = std::fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    for (group, listen, code, words_of_it) in [
        ("0", "127.0.0.1:0", 2, "[admin] group: cannot give `"),
        ("54321", "127.0.0.1:1", 2, "cannot listen on `127.0.0.1:1`"),
        ("54321", &taken.to_string(), 1, "cannot listen on `127.0.0.1:"),
    ] {
        if listen.ends_with(":1") && free_from.trim() == "0" {
            // In a container that lets everybody have any port.
            continue;
        }
        std::fs::write(&settings, format!("[admin]\ngroup = \"{group}\"\n[server]\nlisten = [\"{listen}\"]\n"))
            .unwrap();
        let mut command = sealock(&program, &folder.path().join("data"), &["serve", "-c"]);
        let output = command.arg(&settings).uid(STRANGER).gid(STRANGER).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(words(&output).contains(words_of_it) && words(&output).contains("hint: "), "{output:?}");
    }
    drop(held);
}

#[test]
fn without_a_server_each_command_says_so_in_a_line_and_fails() {
    let folder = tempfile::tempdir().unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_sealock"));
    let commands =
        [&["status"][..], &["status", "--json"], &["healthcheck"], &["healthcheck", "--json"], &["upstream", "check"]];
    for arguments in commands {
        let output = sealock(program, folder.path(), arguments).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(1), &b""[..]), "{arguments:?}");
        let lines: Vec<_> = std::str::from_utf8(&output.stderr).unwrap().lines().collect();
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].contains("no sealock serves") && lines[1].contains("sealock serve"), "{lines:?}");
    }
}

#[test]
fn a_config_check_says_what_was_read() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("site.toml"), "presets = []\n").unwrap();
    let check = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealock"));
        command.env_clear().env("SEALOCK_LOG_LEVEL", "debug").current_dir(folder.path());
        command.args(["-c", "site.toml", "config", "check"]).args(more).output().unwrap()
    };
    assert!(words(&check(&[])).contains("read: site.toml, SEALOCK_LOG_LEVEL\n"), "{}", words(&check(&[])));
    let told: serde_json::Value = serde_json::from_slice(&check(&["--json"]).stdout).unwrap();
    assert_eq!((&told["files"][0], &told["variables"][0]), (&"site.toml".into(), &"SEALOCK_LOG_LEVEL".into()));
}

#[test]
fn systemd_is_told_when_the_server_is_ready_and_when_it_stops() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(std::time::Duration::from_secs(60))).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_sealock"));
    let mut command = sealock(program, &folder.path().join("data"), &["serve", "--listen", "127.0.0.1:0"]);
    let mut child = command.env("NOTIFY_SOCKET", &path).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut buffer = [0; 64];
    let size = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..size], b"READY=1");
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let size = socket.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..size], b"STOPPING=1");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_journal_gets_levels_as_it_wants_them_and_no_second_time_stamp() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    std::fs::create_dir(&data).unwrap();
    // What cannot be a socket: the start fails after it has begun to log.
    std::fs::create_dir(data.join("sealock.sock")).unwrap();
    let told = |name: &str, is_journal: bool| {
        let log = folder.path().join(name);
        let (file, program) = (std::fs::File::create(&log).unwrap(), Path::new(env!("CARGO_BIN_EXE_sealock")));
        let found = file.metadata().unwrap();
        let inode = if is_journal { found.ino() } else { found.ino() + 1 };
        let mut command = sealock(program, &data, &["serve", "--listen", "127.0.0.1:0", "--gate", "open"]);
        command.env("SEALOCK_LOG_LEVEL", "debug").env("JOURNAL_STREAM", format!("{}:{inode}", found.dev()));
        assert_eq!(command.stdout(Stdio::null()).stderr(file).status().unwrap().code(), Some(2));
        std::fs::read_to_string(log).unwrap()
    };
    let (journal, elsewhere) = (told("journal", true), told("elsewhere", false));
    let (logged, failure) = journal.split_once("<3>sealock: ").unwrap();
    assert!(failure.contains("\n<3>  hint: "), "{journal}");
    let is_plain = |line: &str| line.starts_with("<7>") && !line.contains("DEBUG") && !line[3..].starts_with("20");
    assert!(logged.lines().count() > 0 && logged.lines().all(is_plain), "{journal}");
    let first = elsewhere.lines().next().unwrap();
    assert!(first.starts_with("20") && first.contains("DEBUG") && elsewhere.contains("\nsealock: "), "{elsewhere}");
}
