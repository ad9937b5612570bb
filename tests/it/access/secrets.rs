//! What must not be told is told nowhere: passwords and tokens, at the most talkative level, in any reply or file.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::*;
use crate::support::site::connect;

/// Parts of every secret in these tests.
const CANARIES: [&str; 4] = ["canary-right", "canary-wrong", "canary-robot", "canary-form"];

struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn sealock(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sealock"));
    command.current_dir(folder).env_clear().args(["-c", "site.toml"]).args(arguments);
    command
}

/// Runs a command with `input`; its standard output.
fn run(folder: &Path, arguments: &[&str], input: &str) -> String {
    std::fs::write(folder.join("input"), input).unwrap();
    let stdin = std::fs::File::open(folder.join("input")).unwrap();
    let output = sealock(folder, arguments).stdin(stdin).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    for canary in CANARIES {
        assert!(!String::from_utf8_lossy(&output.stderr).contains(canary), "{output:?}");
    }
    String::from_utf8(output.stdout).unwrap()
}

/// One request over HTTP/1.1 or HTTP/2; status and whole reply as text.
async fn send(address: &str, http2: bool, method: Method, path: &str, shown: &str, body: &str) -> (u16, String) {
    let stream = TokioIo::new(connect(address.parse().unwrap()).await.unwrap());
    let uri = if http2 { format!("http://{address}{path}") } else { path.to_owned() };
    let mut request =
        Request::builder().method(method).uri(uri).header("content-type", "application/x-www-form-urlencoded");
    if !http2 {
        request = request.header("host", address);
    }
    if !shown.is_empty() {
        request = request.header("authorization", shown);
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
    let reply = if http2 {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    } else {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        sender.send_request(request).await.unwrap()
    };
    let (head, body) = reply.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (head.status.as_u16(), format!("{:?}\n{}", head.headers, String::from_utf8_lossy(&body)))
}

#[tokio::test(flavor = "multi_thread")]
async fn no_password_and_no_token_is_in_any_log_reply_or_file() {
    // Invariant 12
    let folder = tempfile::tempdir().unwrap();
    let settings = format!("presets = []\n[log]\nlevel = \"trace\"\n{}", rule("**", &["pull"], &["user:alice"]));
    std::fs::write(folder.path().join("site.toml"), settings).unwrap();
    run(folder.path(), &["user", "add", "alice"], "canary-right-password\n");
    let robot = run(folder.path(), &["robot", "add", "ci", "--for", "1d"], "");
    let robot = robot.trim();

    let mut command = sealock(folder.path(), &["serve", "--listen", "127.0.0.1:0"]);
    let mut serving = Serving(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let mut banner = BufReader::new(serving.0.stdout.take().unwrap()).lines().map(Result::unwrap);
    let address = banner.next().unwrap().strip_prefix("listening on http://").unwrap().to_owned();
    let mut errors = serving.0.stderr.take().unwrap();
    let reading = std::thread::spawn(move || {
        let mut log = String::new();
        errors.read_to_string(&mut log).unwrap();
        log
    });

    let (mut secrets, mut replies) = (vec![robot.to_owned()], String::new());
    for http2 in [false, true] {
        let good = basic("alice", "canary-right-password");
        let (status, told) = send(&address, http2, Method::GET, "/token?offline_token=true", &good, "").await;
        assert_eq!(status, 200);
        let tokens: Value = serde_json::from_str(told.lines().last().unwrap()).unwrap();
        let (access, refresh) = (tokens["token"].as_str().unwrap(), tokens["refresh_token"].as_str().unwrap());
        secrets.extend([access, refresh].map(str::to_owned));
        let (bad_robot, forged) = ("Bearer slr_canary-robot-token", format!("Bearer {access}x"));
        let form = |password: &str| format!("grant_type=password&username=alice&password={password}");
        for (method, path, shown, body, expected) in [
            (Method::GET, "/v2/", good.clone(), String::new(), 200),
            (Method::GET, "/v2/", basic("alice", "canary-wrong-password"), String::new(), 401),
            (Method::GET, "/v2/", basic("canary-wrong-password", "x"), String::new(), 401),
            (Method::GET, "/v2/", format!("Bearer {access}"), String::new(), 200),
            (Method::GET, "/v2/", forged, String::new(), 401),
            (Method::GET, "/v2/", bad_robot.to_owned(), String::new(), 401),
            (Method::GET, "/v2/", basic("ci", robot), String::new(), 200),
            (Method::GET, "/v2/a/manifests/1", basic("ci", robot), String::new(), 403),
            (Method::GET, "/v2/a/manifests/1", good.clone(), String::new(), 404),
            (Method::POST, "/token", String::new(), form("canary-form-password"), 401),
            (
                Method::POST,
                "/token",
                String::new(),
                "grant_type=refresh_token&refresh_token=canary-form".to_owned(),
                401,
            ),
        ] {
            let (status, told) = send(&address, http2, method, path, &shown, &body).await;
            assert_eq!(status, expected, "{path} {told}");
            replies.push_str(&told);
        }
    }
    run(folder.path(), &["user", "list"], "");
    let listed = run(folder.path(), &["robot", "list", "--json"], "");
    let status = run(folder.path(), &["status", "--json"], "");
    drop(serving);
    let log = reading.join().unwrap();
    assert!(log.contains("TRACE") && log.contains("a login from 127.0.0.1 failed"), "the log was not read: {log:.500}");
    secrets.extend(CANARIES.map(str::to_owned));
    // As it stands in the header, too.
    secrets.push(basic("alice", "canary-right-password")["Basic ".len()..].to_owned());
    let mut places = vec![("log", log), ("replies", replies), ("robots", listed), ("status", status)];
    for entry in ["data/audit/audit.jsonl", "data/access/users", "data/access/robots.json", "data/access/keys.json"] {
        places.push((entry, std::fs::read_to_string(folder.path().join(entry)).unwrap_or_default()));
    }
    for (place, text) in &places {
        for secret in &secrets {
            assert!(!text.contains(secret.as_str()), "{place} holds `{secret}`");
        }
    }
}
