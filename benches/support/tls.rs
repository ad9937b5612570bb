//! TLS clients: curl, as people have it, for large bodies; rustls over blocking sockets for many handshakes.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Stdio;
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

const PATIENCE: Duration = Duration::from_secs(30);

/// `clients` curls get the blob at the same time, by HTTP `1.1` or `2`; how long it took them all.
pub fn crowd(address: SocketAddr, blob: &Blob, clients: usize, http: &str, ca: &Path) -> Outcome<Duration> {
    let began = Instant::now();
    let start = |_| {
        let mut curl = leashed("curl");
        curl.args(["-sS", "--tlsv1.3", "-o", "/dev/null", "-w", "%{http_code} %{http_version} %{size_download}"])
            .args(["--http1.1"].iter().filter(|_| http == "1.1"))
            .arg("--cacert")
            .arg(ca)
            .arg(format!("https://{address}{}", blob.path()))
            .stdout(Stdio::piped());
        Ok(curl.spawn()?)
    };
    let running: Vec<_> = (0..clients).map(start).collect::<Outcome<_>>()?;
    for one in running {
        let said = String::from_utf8(one.wait_with_output()?.stdout)?;
        let expected = format!("200 {http} {}", blob.size);
        if said != expected {
            return Err(format!("curl says `{said}`, not `{expected}`").into());
        }
    }
    Ok(began.elapsed())
}

/// `threads` clients make one connection after the other for `span`, each with one request; how many in a second.
pub fn connections_per_s(
    address: SocketAddr,
    ca: &Path,
    threads: usize,
    kind: HandshakeKind,
    span: Duration,
) -> Outcome<f64> {
    let began = Instant::now();
    let count = std::thread::scope(|scope| {
        let running: Vec<_> =
            (0..threads).map(|_| scope.spawn(|| connect_until(address, ca, kind, began + span))).collect();
        let counts = running.into_iter().map(|one| one.join().unwrap_or_else(|_| Err("panicked".into())));
        counts.sum::<Outcome<usize>>()
    })?;
    Ok(count as f64 / began.elapsed().as_secs_f64())
}

fn connect_until(address: SocketAddr, ca: &Path, kind: HandshakeKind, until: Instant) -> Outcome<usize> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca)?)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    if kind == HandshakeKind::Full {
        config.resumption = Resumption::disabled();
    }
    let config = Arc::new(config);
    let (name, request) = (ServerName::from(address.ip()), request("GET", "/v2/", address));
    let mut count = 0;
    while Instant::now() < until {
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
        if count > 0 && stream.conn.handshake_kind() != Some(kind) {
            return Err(format!("the handshake was {:?}, not {kind:?}", stream.conn.handshake_kind()).into());
        }
        count += 1;
    }
    Ok(count)
}
