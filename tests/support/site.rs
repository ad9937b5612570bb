//! A sealock of the test's own: the whole program in this process, on a free port, with a folder and a clock of its own.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use sealock::app::App;
use sealock::clock::Clock;
use sealock::config::Settings;
use sealock::gate::{Mode, Order};
use sealock::oci::Digest;
use sealock::store::{Faults, Store};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::far::FarRegistry;

/// A running sealock.
pub struct Sealock {
    pub app: App,
    pub clock: Clock,
    pub address: SocketAddr,
    folder: Option<TempDir>,
    settings: String,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

/// A sealock to be started.
pub struct Setup {
    settings: String,
    open: bool,
    clock: Clock,
    folder: Option<TempDir>,
    faults: Faults,
}

/// A whole reply.
#[derive(Debug)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Setup {
    /// Adds lines to the settings file.
    pub fn settings(mut self, toml: &str) -> Self {
        self.settings.push_str(toml);
        self.settings.push('\n');
        self
    }

    /// Adds `[upstream.NAME]` at the far side, known to clients by `host`.
    pub fn upstream(self, name: &str, host: &str, far: &FarRegistry) -> Self {
        let lines = format!(
            "[upstream.{name}]\nhost = \"{host}\"\nendpoints = [\"{}\"]\nretry_pause = \"1ms\"\n",
            far.origin()
        );
        self.settings(&lines)
    }

    pub fn gate_open(mut self) -> Self {
        self.open = true;
        self
    }

    /// Lets the disk fail on order.
    pub fn faults(mut self, faults: &Faults) -> Self {
        self.faults = faults.clone();
        self
    }

    /// On a file system that fsyncs in no time, where there is one: for tests of what happens at once.
    pub fn in_memory(mut self) -> Self {
        self.folder = tempfile::tempdir_in("/dev/shm").ok();
        self
    }

    pub async fn start(self) -> Sealock {
        let folder = self.folder.unwrap_or_else(|| tempfile::tempdir().unwrap());
        let file = folder.path().join("sealock.toml");
        std::fs::write(&file, &self.settings).unwrap();
        let mut settings = Settings::load(&[file], []).unwrap_or_else(|why| panic!("{why}"));
        settings.server.data = folder.path().join("data");
        settings.server.listen = vec![SocketAddr::from(([127, 0, 0, 1], 0))];
        let mode = Some(if self.open { Mode::Open } else { Mode::Closed });
        let store = Store::open_faulty(&settings.server.data, self.clock.clone(), self.faults).await.unwrap();
        store.start_is_over().await;
        let app = App::start_on(store, settings, mode, self.clock.clone()).await;
        let app = app.unwrap_or_else(|why| panic!("{why:?}"));
        let (address, stop) = (app.addresses()[0], CancellationToken::new());
        let running = tokio::spawn({
            let (app, stop) = (app.clone(), stop.clone());
            async move { app.run(stop).await }
        });
        let (clock, settings) = (self.clock, self.settings);
        Sealock { app, clock, address, folder: Some(folder), settings, stop, running }
    }
}

impl Sealock {
    /// With no preset and no upstream, the gate closed, at noon of some day.
    pub fn setup() -> Setup {
        let noon = Timestamp::from_second(1_790_000_000).unwrap();
        let (settings, clock) = ("presets = []\n".to_owned(), Clock::wound(noon));
        Setup { settings, open: false, clock, folder: None, faults: Faults::default() }
    }

    pub fn data(&self) -> std::path::PathBuf {
        self.folder.as_ref().map(|folder| folder.path().join("data")).unwrap()
    }

    pub fn advance(&self, by: Duration) {
        self.clock.advance(SignedDuration::try_from(by).unwrap());
    }

    pub async fn open_gate(&self) {
        let order = Order { who: "test".to_owned(), why: Some("to fill".to_owned()) };
        self.app.gate().open(order, None, None).await.unwrap();
    }

    pub async fn close_gate(&self) {
        let order = Order { who: "test".to_owned(), why: None };
        self.app.gate().close(order, None).await.unwrap();
    }

    /// Stops it and gives its folder, its settings and its clock to the next start.
    pub async fn stop(mut self) -> Setup {
        self.stop.cancel();
        (&mut self.running).await.unwrap();
        let (settings, clock, folder) = (self.settings.clone(), self.clock.clone(), self.folder.take());
        Setup { settings, open: false, clock, folder, faults: Faults::default() }
    }

    pub async fn get(&self, path: &str) -> Reply {
        self.send(Method::GET, path, &[]).await.unwrap()
    }

    pub async fn head(&self, path: &str) -> Reply {
        self.send(Method::HEAD, path, &[]).await.unwrap()
    }

    pub async fn manifest(&self, name: &str, reference: impl std::fmt::Display) -> Reply {
        self.get(&format!("/v2/{name}/manifests/{reference}")).await
    }

    pub async fn blob(&self, name: &str, digest: &Digest) -> Reply {
        self.get(&format!("/v2/{name}/blobs/{digest}")).await
    }

    /// One request on a connection of its own, read to the end. An error if the connection broke.
    pub async fn send(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> io::Result<Reply> {
        let (head, body) = self.begin(method, path, headers).await?.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        Ok(Reply { status: head.status, headers: head.headers, body })
    }

    /// As [`Sealock::send`], with a body.
    pub async fn send_body(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> io::Result<Reply> {
        let reply = self.begin_with(method, path, headers, Full::new(body.into())).await?;
        let (head, body) = reply.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        Ok(Reply { status: head.status, headers: head.headers, body })
    }

    /// One request on a connection of its own; its body is yet to be read.
    pub async fn begin(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> io::Result<Response<Incoming>> {
        self.begin_with(method, path, headers, Empty::<Bytes>::new()).await
    }

    /// As [`Sealock::begin`], with a body of any kind.
    pub async fn begin_with<B>(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: B,
    ) -> io::Result<Response<Incoming>>
    where
        B: http_body::Body<Data = Bytes, Error: std::error::Error + Send + Sync> + Send + 'static,
    {
        let stream = connect(self.address).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", self.address.to_string());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(body).map_err(io::Error::other)?;
        sender.send_request(request).await.map_err(io::Error::other)
    }

    /// Every line of the audit file, parsed.
    pub fn audit(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.data().join("audit/audit.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl Drop for Sealock {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// Code and message of the first error.
    pub fn error(&self) -> (String, String) {
        let body: serde_json::Value = serde_json::from_slice(&self.body).unwrap();
        let first = &body["errors"][0];
        (first["code"].as_str().unwrap().to_owned(), first["message"].as_str().unwrap().to_owned())
    }
}

#[expect(clippy::disallowed_methods, reason = "a client of the test's own, on loopback")]
pub async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    TcpStream::connect(address).await
}

/// The names in a folder, sorted; none if it is not there.
pub fn names_in(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
