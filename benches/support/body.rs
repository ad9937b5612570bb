//! Large bodies over plain blocking sockets: a reader that costs little beside the server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Barrier;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::Outcome;
use super::far::Blob;

/// What a client takes at once: container clients read in 32 KiB to 1 MiB, and this stays in the processor's cache.
const BUFFER: usize = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(120);

/// One answer, read to its end.
pub struct Download {
    pub head: String,
    /// From before the connection was made to the first byte of the body.
    pub first_byte: Duration,
    pub took: Duration,
    pub bytes: u64,
}

/// Several at once.
pub struct Crowd {
    /// From the common start to the last end.
    pub took: Duration,
    pub bytes: u64,
    /// What went wrong, by client.
    pub failures: Vec<String>,
}

/// `GET path` on a connection of its own; anything but a whole 200 is an error.
pub fn get(address: SocketAddr, path: &str) -> Outcome<Download> {
    exchange(address, path, "", PATIENCE, |_| {})
}

/// As [`get`], with a line such as `Authorization: …` in the request's head; gives the body as well.
pub fn get_showing(address: SocketAddr, path: &str, line: &str) -> Outcome<Vec<u8>> {
    let mut body = Vec::new();
    exchange(address, path, line, PATIENCE, |piece| body.extend_from_slice(piece))?;
    Ok(body)
}

/// As [`get`], but no read or connection attempt may take longer than `patience`.
pub fn get_within(address: SocketAddr, path: &str, patience: Duration) -> Outcome<Download> {
    exchange(address, path, "", patience, |_| {})
}

/// Gets a blob and compares its digest; not to be timed.
pub fn verify(address: SocketAddr, blob: &Blob) -> Outcome {
    let mut hash = Sha256::new();
    exchange(address, &blob.path(), "", PATIENCE, |piece| hash.update(piece))?;
    let actual = hex::encode(hash.finalize());
    if actual == blob.hex() { Ok(()) } else { Err(format!("asked for {}, got {actual}", blob.digest).into()) }
}

/// `clients` threads get the same blob at the same time.
pub fn crowd(address: SocketAddr, blob: &Blob, clients: usize) -> Crowd {
    let (start, path) = (Barrier::new(clients + 1), blob.path());
    std::thread::scope(|scope| {
        let one = || {
            start.wait();
            let got = get(address, &path).map_err(|why| why.to_string())?;
            if got.bytes == blob.size { Ok(got.bytes) } else { Err(format!("got {} bytes", got.bytes)) }
        };
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(one)).collect();
        start.wait();
        let began = Instant::now();
        let ends: Vec<Result<u64, String>> =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("panicked".to_owned()))).collect();
        let took = began.elapsed();
        let bytes = ends.iter().filter_map(|end| end.as_ref().ok()).sum();
        Crowd { took, bytes, failures: ends.into_iter().filter_map(Result::err).collect() }
    })
}

impl Crowd {
    /// The same, if no client failed.
    pub fn unharmed(self) -> Outcome<Self> {
        match self.failures.first() {
            None => Ok(self),
            Some(first) => Err(format!("{} clients failed; the first: {first}", self.failures.len()).into()),
        }
    }
}

fn exchange(
    address: SocketAddr,
    path: &str,
    line: &str,
    patience: Duration,
    mut take: impl FnMut(&[u8]),
) -> Outcome<Download> {
    let mut buffer = vec![0; BUFFER];
    let began = Instant::now();
    let mut stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_nodelay(true)?;
    stream.write_all(request_showing("GET", path, address, line).as_bytes())?;
    let (mut filled, mut head_end) = (0, None);
    while head_end.is_none() {
        let read = stream.read(&mut buffer[filled..])?;
        if read == 0 {
            return Err(format!("{path}: the connection ended after {filled} bytes").into());
        }
        filled += read;
        head_end = find_head_end(&buffer[..filled]);
    }
    let head_end = head_end.unwrap_or_default();
    let head = String::from_utf8_lossy(&buffer[..head_end]).into_owned();
    let length = stated_length(&head).ok_or_else(|| format!("{path}: no Content-Length in\n{head}"))?;
    if !head.starts_with("HTTP/1.1 200 ") {
        let body = String::from_utf8_lossy(&buffer[head_end..filled]);
        return Err(format!("{path}: {head}{body}").into());
    }
    let mut first_byte = (filled > head_end).then(|| began.elapsed());
    let mut bytes = (filled - head_end) as u64;
    take(&buffer[head_end..filled]);
    while bytes < length {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Err(format!("{path}: the body ended after {bytes} of {length} bytes").into());
        }
        first_byte.get_or_insert_with(|| began.elapsed());
        bytes += read as u64;
        take(&buffer[..read]);
    }
    let took = began.elapsed();
    Ok(Download { head, first_byte: first_byte.unwrap_or(took), took, bytes })
}

pub fn request(method: &str, path: &str, address: SocketAddr) -> String {
    request_showing(method, path, address, "")
}

/// With one more `line` in its head, unless that is empty.
pub fn request_showing(method: &str, path: &str, address: SocketAddr, line: &str) -> String {
    let (accept, end) = (super::far::MANIFEST_TYPE, if line.is_empty() { "" } else { "\r\n" });
    format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nUser-Agent: bench\r\nAccept: {accept}, */*\r\n{line}{end}\r\n"
    )
}

/// Where the body begins.
pub fn find_head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|four| four == b"\r\n\r\n").map(|at| at + 4)
}

pub fn stated_length(head: &str) -> Option<u64> {
    let mut lines = head.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?;
    value.trim().parse().ok()
}
