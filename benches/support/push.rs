//! A client that pushes, as docker and skopeo do: POST, one PATCH, PUT.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

use sha2::{Digest as _, Sha256};

use super::Outcome;
use super::body::find_head_end;
use super::far::MANIFEST_TYPE;

const PATIENCE: Duration = Duration::from_secs(300);
const PIECE: usize = 256 << 10;

/// A keep-alive connection to a registry.
pub struct Pusher {
    stream: TcpStream,
    address: SocketAddr,
}

impl Pusher {
    pub fn new(address: SocketAddr) -> Outcome<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream, address })
    }

    /// Uploads the file at `from`, of `size` bytes, as `digest`.
    pub fn blob(&mut self, repository: &str, from: &Path, size: u64, digest: &str) -> Outcome {
        let begun = self.ask("POST", &format!("/v2/{repository}/blobs/uploads/"), "", &mut std::io::empty(), 0, 202)?;
        let session = location(&begun)?;
        let octets = "Content-Type: application/octet-stream\r\n";
        let sent = self.ask("PATCH", &session, octets, &mut File::open(from)?, size, 202)?;
        let session = location(&sent)?;
        let mark = if session.contains('?') { '&' } else { '?' };
        let finish = format!("{session}{mark}digest={digest}");
        self.ask("PUT", &finish, octets, &mut std::io::empty(), 0, 201).map(drop)
    }

    /// Uploads a blob in one request.
    pub fn small_blob(&mut self, repository: &str, bytes: &[u8]) -> Outcome {
        let digest = format!("sha256:{}", hex::encode(Sha256::digest(bytes)));
        let path = format!("/v2/{repository}/blobs/uploads/?digest={digest}");
        let octets = "Content-Type: application/octet-stream\r\n";
        self.ask("POST", &path, octets, &mut &bytes[..], bytes.len() as u64, 201).map(drop)
    }

    /// How long the registry took to take the manifest as `reference`.
    pub fn manifest(&mut self, repository: &str, reference: &str, bytes: &[u8]) -> Outcome<Duration> {
        let path = format!("/v2/{repository}/manifests/{reference}");
        let kind = format!("Content-Type: {MANIFEST_TYPE}\r\n");
        let began = Instant::now();
        self.ask("PUT", &path, &kind, &mut &bytes[..], bytes.len() as u64, 201)?;
        Ok(began.elapsed())
    }

    fn ask(
        &mut self,
        method: &str,
        path: &str,
        headers: &str,
        body: &mut dyn Read,
        length: u64,
        status: u16,
    ) -> Outcome<String> {
        let host = self.address;
        let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: {length}\r\n\r\n");
        self.stream.write_all(head.as_bytes())?;
        let mut piece = vec![0; PIECE.min(length as usize)];
        let mut left = length;
        while left > 0 {
            let want = piece.len().min(usize::try_from(left)?);
            let read = body.read(&mut piece[..want])?;
            if read == 0 {
                return Err("the file to push is shorter than it was".into());
            }
            self.stream.write_all(&piece[..read])?;
            left -= read as u64;
        }
        let answer = self.answer()?;
        if answer.starts_with(&format!("HTTP/1.1 {status} ")) {
            Ok(answer)
        } else {
            Err(format!("{method} {path}: {answer}").into())
        }
    }

    /// The head of an answer; its body is read and dropped.
    fn answer(&mut self) -> Outcome<String> {
        let mut bytes = Vec::new();
        let mut piece = [0; 4096];
        let end = loop {
            let read = self.stream.read(&mut piece)?;
            if read == 0 {
                return Err("the connection ended before an answer".into());
            }
            bytes.extend_from_slice(&piece[..read]);
            if let Some(end) = find_head_end(&bytes) {
                break end;
            }
        };
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let stated = header(&head, "content-length").and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
        let mut rest = vec![0; (end + stated).saturating_sub(bytes.len())];
        self.stream.read_exact(&mut rest)?;
        Ok(head + &String::from_utf8_lossy(&rest))
    }
}

/// `Location` as a path with its query.
fn location(head: &str) -> Outcome<String> {
    let stated = header(head, "location").ok_or("no `Location`")?;
    let path = stated.strip_prefix("http://").and_then(|rest| Some(&rest[rest.find('/')?..]));
    Ok(path.unwrap_or(stated).to_owned())
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}
