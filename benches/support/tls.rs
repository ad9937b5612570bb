//! TLS clients: curl, as people have it, for large bodies; rustls over blocking sockets for many handshakes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};

use super::Outcome;
use super::body::request;
use super::far::Blob;
use super::process::leashed;
use super::volley::Tally;

const PATIENCE: Duration = Duration::from_secs(30);

/// How the curls ask: HTTP `1.1` or `2`, and the one cipher of TLS 1.3 that they offer, or those of curl's default.
#[derive(Clone, Copy)]
pub struct Curl {
    pub http: &'static str,
    pub cipher: Option<&'static str>,
}

/// `clients` curls get the blob at the same time; how long it took them all.
pub fn crowd(address: SocketAddr, blob: &Blob, clients: usize, how: Curl, ca: &Path) -> Outcome<Duration> {
    let began = Instant::now();
    let start = |_| {
        let mut curl = curl(how, ca);
        curl.args(["-o", "/dev/null", "-w", "%{http_code} %{http_version} %{size_download}"])
            .arg(format!("https://{address}{}", blob.path()))
            .stdout(Stdio::piped());
        Ok(curl.spawn()?)
    };
    let running: Vec<_> = (0..clients).map(start).collect::<Outcome<_>>()?;
    for one in running {
        let said = String::from_utf8(one.wait_with_output()?.stdout)?;
        let expected = format!("200 {} {}", how.http, blob.size);
        if said != expected {
            return Err(format!("curl says `{said}`, not `{expected}`").into());
        }
    }
    Ok(began.elapsed())
}

/// The cipher that curl and the server at `address` agree on.
pub fn negotiated(address: SocketAddr, how: Curl, ca: &Path) -> Outcome<String> {
    let asked = curl(how, ca).args(["-v", "-o", "/dev/null"]).arg(format!("https://{address}/v2/")).output()?;
    let said = String::from_utf8_lossy(&asked.stderr);
    let cipher = said.lines().find_map(|line| line.split_once("SSL connection using TLSv1.3 / "));
    let cipher = cipher.and_then(|(_, rest)| rest.split_whitespace().next());
    Ok(cipher.ok_or_else(|| format!("curl does not name a cipher of TLS 1.3:\n{said}"))?.to_owned())
}

fn curl(how: Curl, ca: &Path) -> Command {
    let mut curl = leashed("curl");
    curl.args(["-sS", "--tlsv1.3"]).arg("--cacert").arg(ca);
    curl.args(["--http1.1"].iter().filter(|_| how.http == "1.1"));
    if let Some(cipher) = how.cipher {
        curl.args(["--tls13-ciphers", cipher]);
    }
    curl
}

/// `threads` clients make one connection after the other for `span`, each with one request.
pub fn connections(
    address: SocketAddr,
    ca: &Path,
    threads: usize,
    kind: HandshakeKind,
    span: Duration,
) -> Outcome<Tally> {
    let began = Instant::now();
    let latencies = std::thread::scope(|scope| {
        let running: Vec<_> =
            (0..threads).map(|_| scope.spawn(|| connect_until(address, ca, kind, began + span))).collect();
        let all = running.into_iter().map(|one| one.join().unwrap_or_else(|_| Err("panicked".into())));
        all.collect::<Outcome<Vec<_>>>()
    })?;
    Ok(Tally::of(latencies.concat(), began.elapsed()))
}

/// The first words of a handshake with `address`.
pub fn hello(address: SocketAddr, ca: &Path) -> Outcome<Vec<u8>> {
    let mut session = ClientConnection::new(Arc::new(settings(ca)?), ServerName::from(address.ip()))?;
    let mut words = Vec::new();
    session.write_tls(&mut words)?;
    Ok(words)
}

fn settings(ca: &Path) -> Outcome<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca)?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// How long each took, from before its connection to its answer.
fn connect_until(address: SocketAddr, ca: &Path, kind: HandshakeKind, until: Instant) -> Outcome<Vec<Duration>> {
    let mut config = settings(ca)?;
    if kind == HandshakeKind::Full {
        config.resumption = Resumption::disabled();
    }
    let config = Arc::new(config);
    let (name, request) = (ServerName::from(address.ip()), request("GET", "/v2/", address));
    let mut latencies = Vec::new();
    while Instant::now() < until {
        let began = Instant::now();
        let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_nodelay(true)?;
        let session = ClientConnection::new(Arc::clone(&config), name.clone())?;
        let mut stream = StreamOwned::new(session, socket);
        stream.write_all(request.as_bytes())?;
        let mut answer = [0; 4096];
        let read = stream.read(&mut answer)?;
        if !answer[..read].starts_with(b"HTTP/1.1 200 ") {
            return Err(format!("{address} answers {}", String::from_utf8_lossy(&answer[..read])).into());
        }
        if !latencies.is_empty() && stream.conn.handshake_kind() != Some(kind) {
            return Err(format!("the handshake was {:?}, not {kind:?}", stream.conn.handshake_kind()).into());
        }
        latencies.push(began.elapsed());
    }
    Ok(latencies)
}
