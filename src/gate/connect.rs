//! From a URI to a connection that HTTP can be spoken on: through the proxy, if any, and TLS.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{HeaderValue, Uri};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::dial::{DialError, Dialer};
use super::proxy::Proxy;
use super::sockets::Leave;
use super::{ClientSettings, Gate};

/// Largest head of a proxy's answer to CONNECT, in bytes.
pub const CONNECT_HEAD_MAX: usize = 16 << 10;

/// Makes the connections of one client's pool, all under one leave.
#[derive(Clone)]
pub(super) struct Connector {
    dialer: Dialer,
    leave: Arc<Leave>,
    settings: ClientSettings,
}

impl Connector {
    pub(super) fn new(gate: &Gate, leave: Arc<Leave>, settings: ClientSettings) -> Self {
        Self { dialer: gate.0.dialer.clone(), leave, settings }
    }

    async fn connect(self, uri: Uri) -> Result<TokioIo<Link>, DialError> {
        let longest = self.settings.connect_timeout;
        match tokio::time::timeout(longest, self.link(&uri)).await {
            Ok(link) => link.map(TokioIo::new),
            Err(_) => Err(DialError::TimedOut(longest)),
        }
    }

    async fn link(&self, uri: &Uri) -> Result<Link, DialError> {
        let tls = uri.scheme_str() == Some("https");
        let host = uri.host().unwrap_or_default();
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let proxy = self.settings.proxy.as_deref().and_then(|proxies| proxies.proxy_for(tls, host, port));
        let wire = match proxy {
            None => Box::new(self.dialer.dial(&self.leave, host, port).await?),
            Some(proxy) if tls => self.through(proxy, host, port).await?,
            Some(proxy) => self.to_proxy(proxy).await?,
        };
        if !tls {
            return Ok(Link { wire, http2: false, proxied: proxy.is_some(), certificate: None });
        }
        let stream = secure(wire, host, self.settings.tls.clone()).await?;
        let session = stream.get_ref().1;
        let http2 = session.alpn_protocol() == Some(b"h2");
        let certificate = session.peer_certificates().and_then(|chain| chain.first()).cloned();
        let certificate = certificate.map(|shown| PeerCertificate(shown.into_owned()));
        Ok(Link { wire: Box::new(stream), http2, proxied: false, certificate })
    }

    async fn to_proxy(&self, proxy: &Proxy) -> Result<Box<dyn Wire>, DialError> {
        let socket = self.dialer.dial(&self.leave, &proxy.host, proxy.port).await?;
        if !proxy.tls {
            return Ok(Box::new(socket));
        }
        // CONNECT is spoken in HTTP/1.1 here, so HTTP/2 is not offered to the proxy.
        let mut config = ClientConfig::clone(&self.settings.tls);
        config.alpn_protocols = Vec::new();
        Ok(Box::new(secure(Box::new(socket), &proxy.host, Arc::new(config)).await?))
    }

    async fn through(&self, proxy: &Proxy, host: &str, port: u16) -> Result<Box<dyn Wire>, DialError> {
        let mut wire = self.to_proxy(proxy).await?;
        let broke = |source| DialError::Proxy { proxy: proxy.address(), source: Arc::new(source) };
        let status = tunnel(&mut wire, &format!("{host}:{port}"), proxy.authorization()).await.map_err(broke)?;
        match status.starts_with('2') {
            true => Ok(wire),
            false => Err(DialError::ProxyRefused { proxy: proxy.address(), status }),
        }
    }
}

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Link>;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<Link>, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// What HTTP is spoken over: a socket, TLS on it, or TLS in a proxy's tunnel.
trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// A connection, and what hyper must know about it.
pub(super) struct Link {
    wire: Box<dyn Wire>,
    http2: bool,
    /// A proxy reads the requests, so they need absolute URIs.
    proxied: bool,
    certificate: Option<PeerCertificate>,
}

/// What the other end of a TLS connection showed and was believed; an extension of each response that came by it.
#[derive(Clone, Debug)]
pub struct PeerCertificate(pub CertificateDer<'static>);

impl Connection for Link {
    fn connected(&self) -> Connected {
        let connected = Connected::new().proxy(self.proxied);
        let connected = if self.http2 { connected.negotiated_h2() } else { connected };
        match &self.certificate {
            Some(certificate) => connected.extra(certificate.clone()),
            None => connected,
        }
    }
}

impl AsyncRead for Link {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_read(cx, buf)
    }
}

impl AsyncWrite for Link {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.wire).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.wire.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.wire).poll_shutdown(cx)
    }
}

async fn secure(
    wire: Box<dyn Wire>,
    host: &str,
    config: Arc<ClientConfig>,
) -> Result<TlsStream<Box<dyn Wire>>, DialError> {
    let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(bare).map_err(|_| DialError::ServerName { host: host.to_owned() })?;
    let failed = |source| DialError::Tls { host: host.to_owned(), source: Arc::new(source) };
    TlsConnector::from(config).connect(name, wire).await.map_err(failed)
}

/// Asks for a tunnel to `target`; the proxy's status and reason, such as `407 Proxy Authentication Required`.
async fn tunnel(wire: &mut Box<dyn Wire>, target: &str, authorization: Option<HeaderValue>) -> io::Result<String> {
    let mut ask = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n").into_bytes();
    if let Some(authorization) = authorization {
        ask.extend_from_slice(b"Proxy-Authorization: ");
        ask.extend_from_slice(authorization.as_bytes());
        ask.extend_from_slice(b"\r\n");
    }
    ask.extend_from_slice(b"\r\n");
    wire.write_all(&ask).await?;
    wire.flush().await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= CONNECT_HEAD_MAX {
            return Err(io::Error::other(format!("its answer has more than {CONNECT_HEAD_MAX} bytes of head")));
        }
        // One at a time: what follows the head belongs to TLS.
        head.push(wire.read_u8().await?);
    }
    status(&head).ok_or_else(|| io::Error::other("its answer is not HTTP/1.1"))
}

fn status(head: &[u8]) -> Option<String> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let line = String::from_utf8_lossy(line);
    let status = line.strip_prefix("HTTP/1.1 ").or_else(|| line.strip_prefix("HTTP/1.0 "))?;
    let code = status.get(..3)?;
    code.bytes().all(|b| b.is_ascii_digit()).then(|| status.chars().filter(|c| !c.is_control()).take(80).collect())
}
