//! A blob's way in: whole, in chunks, streamed; broken off, resumed, refused.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::select_all;
use futures_util::stream;
use http::{Method, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use sealock::oci::{Digest, MANIFEST_SIZE_MAX};
use sealock::store::{Faults, Step, UPLOADS_PER_CLIENT_MAX};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{NAME, OTHER, begin, finish, noise, patch, push_blob, refusal, uploads};
use crate::support::site::{Reply, Sealock, connect, names_in};

const ENOSPC: i32 = 28;

/// The first bytes of a request, whose body is yet to come.
async fn half_a_patch(site: &Sealock, location: &str, length: usize, sent: &[u8]) -> TcpStream {
    let mut client = connect(site.address).await.unwrap();
    let head = format!("PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
    client.write_all(head.as_bytes()).await.unwrap();
    client.write_all(sent).await.unwrap();
    client
}

/// Asks until the upload has this many bytes.
async fn until_written(site: &Sealock, location: &str, count: usize) {
    let expected = format!("0-{}", count - 1);
    while site.get(location).await.header("range") != Some(&expected) {}
}

async fn assert_kept(site: &Sealock, name: &str, bytes: &Bytes) {
    let blob = site.blob(name, &Digest::sha256(bytes)).await;
    assert_eq!(blob.status, StatusCode::OK, "{blob:?}");
    assert_eq!(blob.body, *bytes);
}

#[tokio::test]
async fn a_blob_comes_whole_in_chunks_or_as_a_stream() {
    // Invariants 2, 10
    let site = Sealock::setup().start().await;
    let whole = noise(1, 100_000);
    push_blob(&site, NAME, whole.clone()).await;
    assert_kept(&site, NAME, &whole).await;

    let chunked = noise(2, 100_000);
    let location = begin(&site, NAME).await;
    for (range, part) in [("0-49999", 0..50_000), ("50000-79999", 50_000..80_000)] {
        let end = part.end;
        let reply = patch(&site, &location, Some(range), chunked.slice(part)).await;
        assert_eq!(reply.status, StatusCode::ACCEPTED, "{reply:?}");
        assert_eq!(reply.header("range"), Some(format!("0-{}", end - 1).as_str()));
    }
    let finished = finish(&site, &location, &Digest::sha256(&chunked), chunked.slice(80_000..)).await;
    assert_eq!(finished.status, StatusCode::CREATED, "{finished:?}");
    assert_kept(&site, NAME, &chunked).await;

    // docker: one PATCH, chunked transfer, no Content-Range.
    let streamed = noise(3, 3 << 20);
    let location = begin(&site, NAME).await;
    let pieces: Vec<_> = streamed
        .chunks(60_000)
        .map(|piece| Ok::<_, std::io::Error>(Frame::data(Bytes::copy_from_slice(piece))))
        .collect();
    let reply = site.begin_with(Method::PATCH, &location, &[], StreamBody::new(stream::iter(pieces))).await.unwrap();
    assert_eq!(reply.status(), StatusCode::ACCEPTED);
    let finished = finish(&site, &location, &Digest::sha256(&streamed), "").await;
    assert_eq!(finished.status, StatusCode::CREATED, "{finished:?}");
    assert_kept(&site, NAME, &streamed).await;
    assert!(names_in(&site.data().join("staging")).is_empty());
}

#[tokio::test]
async fn wrong_bytes_leave_nothing() {
    // Invariants 2, 16
    let site = Sealock::setup().start().await;
    let wrong = Digest::sha256(b"something else");
    let single =
        site.send_body(Method::POST, &format!("{}?digest={wrong}", uploads(NAME)), &[], "bytes").await.unwrap();
    assert_eq!(refusal(&single), (400, "DIGEST_INVALID".to_owned()));
    let location = begin(&site, NAME).await;
    assert_eq!(patch(&site, &location, None, "bytes").await.status, StatusCode::ACCEPTED);
    let finished = finish(&site, &location, &wrong, "").await;
    assert_eq!(refusal(&finished), (400, "DIGEST_INVALID".to_owned()));
    assert_eq!(refusal(&site.get(&location).await), (404, "BLOB_UPLOAD_UNKNOWN".to_owned()));
    for digest in [wrong, Digest::sha256(b"bytes")] {
        assert_eq!(site.blob(NAME, &digest).await.status, StatusCode::NOT_FOUND);
    }
    assert!(names_in(&site.data().join("staging")).is_empty());
    assert!(names_in(&site.data().join("blobs/sha256")).is_empty());
}

#[tokio::test]
async fn a_chunk_out_of_order_says_where_to_go_on() {
    // Invariant 16
    let site = Sealock::setup().start().await;
    let (bytes, location) = (noise(1, 30), begin(&site, NAME).await);
    patch(&site, &location, Some("0-9"), bytes.slice(..10)).await;
    let goes_on = |reply: &Reply| {
        assert_eq!(refusal(reply), (416, "BLOB_UPLOAD_INVALID".to_owned()));
        assert_eq!(reply.header("range"), Some("0-9"));
        assert_eq!(reply.header("location"), Some(location.as_str()));
    };
    for range in ["0-9", "20-29", "9-18", "11-20"] {
        goes_on(&patch(&site, &location, Some(range), bytes.slice(..10)).await);
    }
    let path = format!("{location}?digest={}", Digest::sha256(&bytes));
    let last = [("content-range", "20-29")];
    goes_on(&site.send_body(Method::PUT, &path, &last, bytes.slice(20..)).await.unwrap());
    for range in ["10", "10-", "19-10", "bytes 10-19/30"] {
        let reply = patch(&site, &location, Some(range), bytes.slice(10..20)).await;
        assert_eq!(refusal(&reply), (400, "BLOB_UPLOAD_INVALID".to_owned()), "{range}");
    }
    let longer = patch(&site, &location, Some("10-29"), bytes.slice(10..20)).await;
    assert_eq!(refusal(&longer), (400, "SIZE_INVALID".to_owned()));
    assert_eq!(patch(&site, &location, Some("10-19"), bytes.slice(10..20)).await.status, StatusCode::ACCEPTED);
    let finished = site.send_body(Method::PUT, &path, &last, bytes.slice(20..)).await.unwrap();
    assert_eq!(finished.status, StatusCode::CREATED, "{finished:?}");
    assert_kept(&site, NAME, &bytes).await;
}

#[tokio::test]
async fn an_upload_whose_client_went_away_goes_on_where_it_stood() {
    // Invariants 4, 6
    let site = Sealock::setup().start().await;
    let (bytes, location) = (noise(1, 300_000), begin(&site, NAME).await);
    let client = half_a_patch(&site, &location, 300_000, &bytes[..100_000]).await;
    drop(client);
    until_written(&site, &location, 100_000).await;
    // And across a restart.
    let site = site.stop().await.start().await;
    let more = patch(&site, &location, Some("100000-199999"), bytes.slice(100_000..200_000)).await;
    assert_eq!(more.status, StatusCode::ACCEPTED, "{more:?}");
    let finished = finish(&site, &location, &Digest::sha256(&bytes), bytes.slice(200_000..)).await;
    assert_eq!(finished.status, StatusCode::CREATED, "{finished:?}");
    assert_kept(&site, NAME, &bytes).await;
}

#[tokio::test]
async fn a_body_that_stands_still_is_given_up_and_can_be_resumed() {
    // Invariant 17
    let site = Sealock::setup().settings("[server]\nstall_timeout = \"200ms\"").start().await;
    let (bytes, location) = (noise(1, 1000), begin(&site, NAME).await);
    let mut client = half_a_patch(&site, &location, 1000, &bytes[..400]).await;
    let mut reply = String::new();
    let given_up = tokio::time::timeout(Duration::from_secs(20), client.read_to_string(&mut reply));
    given_up.await.expect("it is waited for").unwrap();
    assert!(reply.starts_with("HTTP/1.1 408 ") && reply.contains("BLOB_UPLOAD_INVALID"), "{reply}");
    assert_eq!(site.get(&location).await.header("range"), Some("0-399"));
    let finished = finish(&site, &location, &Digest::sha256(&bytes), bytes.slice(400..)).await;
    assert_eq!(finished.status, StatusCode::CREATED, "{finished:?}");
}

/// Sends `piece` every so often, until the server has had enough; what it says.
async fn trickle(client: TcpStream, piece: &[u8], every: Duration) -> String {
    let (mut from, mut to) = client.into_split();
    let sending = async {
        while to.write_all(piece).await.is_ok() {
            tokio::time::sleep(every).await;
        }
        std::future::pending().await
    };
    let mut reply = vec![0; 1024];
    tokio::select! {
        read = from.read(&mut reply) => String::from_utf8_lossy(&reply[..read.unwrap()]).into_owned(),
        () = sending => unreachable!(),
    }
}

#[tokio::test]
async fn a_body_that_only_trickles_is_given_up_and_can_be_resumed() {
    // Invariant 17
    let site = Sealock::setup().settings("[server]\nstall_timeout = \"500ms\"").start().await;
    let location = begin(&site, NAME).await;
    // Never silent for long, and never done: without an end it would take half an hour.
    let client = half_a_patch(&site, &location, 1 << 20, &noise(1, 100)).await;
    let given_up = tokio::time::timeout(Duration::from_secs(20), trickle(client, b"x", Duration::from_millis(20)));
    let reply = given_up.await.expect("it is waited for");
    assert!(reply.starts_with("HTTP/1.1 408 ") && reply.contains("too slowly"), "{reply}");
    let written = site.get(&location).await.header("range").unwrap().to_owned();
    assert!(written.strip_prefix("0-").unwrap().parse::<u64>().unwrap() >= 100, "{written}: what came stays");
}

#[tokio::test]
async fn a_manifest_comes_in_time_or_makes_room_for_others() {
    // Invariant 17
    let site = Sealock::setup().settings("[server]\nstall_timeout = \"500ms\"").start().await;
    let mut client = connect(site.address).await.unwrap();
    let head = format!("PUT /v2/{NAME}/manifests/1 HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", 4 << 20);
    client.write_all(head.as_bytes()).await.unwrap();
    // Fast enough for an upload; all of it would take a minute and a half.
    let piece = noise(1, 1000);
    let given_up = tokio::time::timeout(Duration::from_secs(20), trickle(client, &piece, Duration::from_millis(20)));
    let reply = given_up.await.expect("it is waited for");
    assert!(reply.starts_with("HTTP/1.1 408 ") && reply.contains("too long to come"), "{reply}");
}

#[tokio::test]
async fn a_manifest_that_is_too_large_is_refused_before_all_of_it_is_there() {
    // Invariant 17
    let site = Sealock::setup().start().await;
    let more = MANIFEST_SIZE_MAX as usize + 1;
    let stated = format!("Content-Length: {more}\r\n\r\n").into_bytes();
    let mut unstated = format!("Transfer-Encoding: chunked\r\n\r\n{more:x}\r\n").into_bytes();
    unstated.resize(unstated.len() + more, b' ');
    for rest in [stated, unstated] {
        let mut client = connect(site.address).await.unwrap();
        let head = format!("PUT /v2/{NAME}/manifests/1 HTTP/1.1\r\nHost: x\r\n");
        client.write_all(&[head.as_bytes(), &rest].concat()).await.unwrap();
        let mut reply = [0; 12];
        let answered = tokio::time::timeout(Duration::from_secs(20), client.read_exact(&mut reply));
        answered.await.expect("its end is not waited for").unwrap();
        assert_eq!(&reply, b"HTTP/1.1 413");
    }
}

#[tokio::test]
async fn manifests_that_are_being_received_have_so_much_room_together() {
    // Invariant 17
    let site = Sealock::setup().start().await;
    let size = MANIFEST_SIZE_MAX as usize;
    // Each but for its last byte; 64 MiB have no room for all of them.
    let head = format!("PUT /v2/{NAME}/manifests/1 HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n");
    let most = [head.as_bytes(), &vec![b' '; size - 1]].concat();
    let clients = (0..17).map(|_| {
        Box::pin(async {
            let mut client = connect(site.address).await.unwrap();
            // Whoever is refused is so before all is sent.
            let _ = client.write_all(&most).await;
            let mut reply = [0; 12];
            client.read_exact(&mut reply).await.map(|_| reply)
        })
    });
    let first = tokio::time::timeout(Duration::from_secs(30), select_all(clients));
    let (reply, ..) = first.await.expect("one of them is refused");
    assert_eq!(&reply.unwrap(), b"HTTP/1.1 429");
}

#[tokio::test]
async fn one_address_begins_so_many_uploads_and_not_those_of_all() {
    // Invariant 17
    let site = Sealock::setup().start().await;
    for _ in 0..UPLOADS_PER_CLIENT_MAX {
        begin(&site, NAME).await;
    }
    let refused = site.send(Method::POST, &uploads(NAME), &[]).await.unwrap();
    assert_eq!(refusal(&refused), (429, "TOOMANYREQUESTS".to_owned()));
    site.advance(Duration::from_secs(60));
    begin(&site, NAME).await;
}

#[tokio::test]
async fn two_requests_cannot_write_to_one_upload() {
    // Invariant 2
    let site = Sealock::setup().start().await;
    let location = begin(&site, NAME).await;
    let mut first = half_a_patch(&site, &location, 10, b"01234").await;
    let second = loop {
        // Until the first is being written.
        let second = patch(&site, &location, None, "x").await;
        if second.status != StatusCode::ACCEPTED {
            break second;
        }
        first = half_a_patch(&site, &location, 10, b"01234").await;
    };
    assert_eq!(refusal(&second), (409, "BLOB_UPLOAD_INVALID".to_owned()));
    first.write_all(b"56789").await.unwrap();
    let mut head = [0; 12];
    first.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 202");
}

#[tokio::test]
async fn an_upload_is_its_repositorys_and_ends_once() {
    // Invariant 14
    let site = Sealock::setup().start().await;
    let location = begin(&site, NAME).await;
    let elsewhere = location.replace(NAME, OTHER);
    let unknown = (404, "BLOB_UPLOAD_UNKNOWN".to_owned());
    assert_eq!(refusal(&site.get(&elsewhere).await), unknown);
    assert_eq!(refusal(&patch(&site, &elsewhere, None, "x").await), unknown);
    assert_eq!(refusal(&super::delete(&site, &elsewhere).await), unknown);
    assert_eq!(super::delete(&site, &location).await.status, StatusCode::NO_CONTENT);
    assert_eq!(refusal(&super::delete(&site, &location).await), unknown);
    assert_eq!(refusal(&patch(&site, &location, None, "x").await), unknown);
    let none = site.send_body(Method::PUT, &begin(&site, NAME).await, &[], "x").await.unwrap();
    assert_eq!(refusal(&none), (400, "DIGEST_INVALID".to_owned()));
}

#[tokio::test]
async fn a_blob_that_is_too_large_is_refused_before_and_while_it_comes() {
    // Invariants 16, 17
    let site = Sealock::setup().settings("[push]\nblob_size_max = \"1KiB\"").start().await;
    let (large, limit) = (noise(1, 1025), noise(2, 1024));
    let path = format!("{}?digest={}", uploads(NAME), Digest::sha256(&large));
    let stated = site.send_body(Method::POST, &path, &[], large.clone()).await.unwrap();
    assert_eq!(refusal(&stated), (413, "SIZE_INVALID".to_owned()));
    let location = begin(&site, NAME).await;
    assert_eq!(patch(&site, &location, None, large.slice(..1000)).await.status, StatusCode::ACCEPTED);
    let pieces = [Ok::<_, std::io::Error>(Frame::data(large.slice(1000..)))];
    let streamed = site.begin_with(Method::PATCH, &location, &[], StreamBody::new(stream::iter(pieces))).await.unwrap();
    assert_eq!(streamed.status(), StatusCode::PAYLOAD_TOO_LARGE);
    // It could never be finished.
    while site.get(&location).await.status != StatusCode::NOT_FOUND {}
    push_blob(&site, NAME, limit).await;
}

#[tokio::test]
async fn a_full_disk_is_507_and_takes_pushes_again_when_there_is_room() {
    // Invariants 6, 16
    let faults = Faults::default();
    let site = Sealock::setup().faults(&faults).start().await;
    let bytes = noise(1, 100_000);
    for step in [Step::Room, Step::Write, Step::Rename, Step::Commit] {
        let location = begin(&site, NAME).await;
        faults.fail(step, 0, ENOSPC);
        let refused = finish(&site, &location, &Digest::sha256(&bytes), bytes.clone()).await;
        assert_eq!(refusal(&refused), (507, "UNAVAILABLE".to_owned()), "{step:?}");
        assert_eq!(site.blob(NAME, &Digest::sha256(&bytes)).await.status, StatusCode::NOT_FOUND, "{step:?}");
    }
    push_blob(&site, NAME, bytes.clone()).await;
    assert_kept(&site, NAME, &bytes).await;
}

#[tokio::test]
async fn sixteen_uploads_at_once_are_sixteen_right_blobs() {
    // Invariants 2, 17
    let site = Sealock::setup().start().await;
    let push = |seed: u8| {
        let site = &site;
        async move {
            let bytes = noise(seed, 2 << 20);
            let location = begin(site, NAME).await;
            assert_eq!(patch(site, &location, None, bytes.clone()).await.status, StatusCode::ACCEPTED);
            let finished = finish(site, &location, &Digest::sha256(&bytes), "").await;
            assert_eq!(finished.status, StatusCode::CREATED, "{finished:?}");
            assert_kept(site, NAME, &bytes).await;
        }
    };
    futures_util::future::join_all((0..16).map(push)).await;
}
