//! Slow and rude clients over raw connections: each is cut off, and none keeps others from being served.
#![allow(clippy::unwrap_used)]

mod harness;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use dhow_apiserver::{AccessConfig, Limits};
use dhow_base::tls;
use harness::Cluster;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const SHORT: Duration = Duration::from_millis(300);
/// Nothing here takes as long, unless the server waits for ever.
const LONG: Duration = Duration::from_secs(20);

/// A cluster where one kind of patience is short.
async fn cluster(limits: Limits) -> Cluster {
    Cluster::start_with(AccessConfig { limits, ..AccessConfig::default() }).await
}

fn address(cluster: &Cluster) -> SocketAddr {
    cluster.url.trim_start_matches("https://").parse().unwrap()
}

async fn tcp(cluster: &Cluster) -> TcpStream {
    TcpStream::connect(address(cluster)).await.unwrap()
}

/// A connection by somebody with a certificate, or without.
async fn connect(cluster: &Cluster, protocol: &[u8], user: Option<&str>) -> TlsStream<TcpStream> {
    let pair = user.map(|user| cluster.ca.issue_client(user, &["system:masters"]).unwrap());
    let mut config: ClientConfig = (*tls::client_config(cluster.ca.cert_pem(), pair.as_ref()).unwrap()).clone();
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from("127.0.0.1").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, tcp(cluster).await).await.unwrap()
}

/// Everything until the server hangs up, which it has to.
async fn rest(stream: &mut (impl AsyncRead + Unpin)) -> Vec<u8> {
    let mut all = Vec::new();
    // However it hangs up.
    let _ = tokio::time::timeout(LONG, stream.read_to_end(&mut all)).await.expect("the server hangs up");
    all
}

/// Reads until the text is there.
async fn until(stream: &mut (impl AsyncRead + Unpin), text: &str) -> String {
    let mut all = Vec::new();
    let mut looked = 0;
    while !all[looked..].windows(text.len()).any(|window| window == text.as_bytes()) {
        looked = all.len().saturating_sub(text.len());
        let mut piece = [0; 64 << 10];
        let read = tokio::time::timeout(LONG, stream.read(&mut piece)).await.unwrap().unwrap();
        assert!(read > 0, "{}", String::from_utf8_lossy(&all));
        all.extend_from_slice(&piece[..read]);
    }
    String::from_utf8_lossy(&all).into_owned()
}

/// A request for a ConfigMap of that size whose body is still to come.
fn post(size: usize) -> String {
    format!(
        "POST /api/v1/namespaces/default/configmaps HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
         content-length: {size}\r\n\r\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_nothing_is_cut_off() {
    let cluster = cluster(Limits { handshake: SHORT, head: SHORT, ..Limits::default() }).await;
    // No handshake; then no request, over either protocol; then a head that never ends.
    assert_eq!(rest(&mut tcp(&cluster).await).await, b"");
    assert_eq!(rest(&mut connect(&cluster, b"http/1.1", None).await).await, b"");
    rest(&mut connect(&cluster, b"h2", None).await).await;
    let mut slow = connect(&cluster, b"http/1.1", None).await;
    slow.write_all(b"GET /version HTTP/1.1\r\nhost: a\r\nx-one: ").await.unwrap();
    rest(&mut slow).await;
    // A head in time is answered, over and over.
    let mut good = connect(&cluster, b"http/1.1", None).await;
    for _ in 0..3 {
        good.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        assert!(until(&mut good, "ok").await.starts_with("HTTP/1.1 200"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_without_requests_ends() {
    let cluster = cluster(Limits { idle: SHORT, ..Limits::default() }).await;
    let mut idle = connect(&cluster, b"http/1.1", Some("somebody")).await;
    idle.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    until(&mut idle, "ok").await;
    // A watch is a request, however quiet.
    let mut watching = connect(&cluster, b"http/1.1", Some("somebody")).await;
    let watch = "GET /api/v1/namespaces/default/configmaps?watch=true HTTP/1.1\r\nhost: a\r\n\r\n";
    watching.write_all(watch.as_bytes()).await.unwrap();
    until(&mut watching, "\r\n\r\n").await;
    rest(&mut idle).await;
    let map = json!({"metadata": {"name": "late"}});
    cluster.json("POST", "/api/v1/namespaces/default/configmaps", "application/json", &map).await;
    until(&mut watching, "\"late\"").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_is_waited_for_only_of_those_who_may_send_it() {
    let cluster = cluster(Limits { pause: SHORT, ..Limits::default() }).await;
    let mut stranger = connect(&cluster, b"http/1.1", None).await;
    let nothing_yet = post(1000).replace("host", "authorization: Bearer wrong\r\nhost");
    stranger.write_all(nothing_yet.as_bytes()).await.unwrap();
    assert!(until(&mut stranger, "\r\n\r\n").await.starts_with("HTTP/1.1 401"));
    let mut slow = connect(&cluster, b"http/1.1", Some("somebody")).await;
    slow.write_all(post(1000).as_bytes()).await.unwrap();
    slow.write_all(b"{\"metadata\": ").await.unwrap();
    let answer = rest(&mut slow).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    assert!(answer.contains("Timeout: request did not complete within the allotted timeout"), "{answer}");
    // As long as it keeps coming, it is read.
    let body = json!({"metadata": {"name": "patient"}}).to_string();
    let mut steady = connect(&cluster, b"http/1.1", Some("somebody")).await;
    steady.write_all(post(body.len()).as_bytes()).await.unwrap();
    let mut ticks = tokio::time::interval(SHORT / 10);
    for piece in body.as_bytes().chunks(4) {
        ticks.tick().await;
        steady.write_all(piece).await.unwrap();
    }
    assert!(until(&mut steady, "\r\n\r\n").await.starts_with("HTTP/1.1 201"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_never_ends_is_cut_off() {
    let cluster = cluster(Limits { body: SHORT, ..Limits::default() }).await;
    let mut endless = connect(&cluster, b"http/1.1", Some("somebody")).await;
    endless.write_all(post(1 << 20).as_bytes()).await.unwrap();
    let (mut read, mut write) = tokio::io::split(endless);
    let writer = tokio::spawn(async move {
        let mut ticks = tokio::time::interval(SHORT / 10);
        loop {
            ticks.tick().await;
            if write.write_all(b" ").await.is_err() {
                return;
            }
        }
    });
    let answer = until(&mut read, "allotted timeout").await;
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    writer.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_do_not_take_all_places() {
    let cluster = cluster(Limits { newcomers_each: 2, ..Limits::default() }).await;
    // Whoever has a certificate takes no place.
    let mut known = Vec::new();
    for _ in 0..4 {
        known.push(connect(&cluster, b"http/1.1", Some("somebody")).await);
    }
    for stream in &mut known {
        stream.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        until(stream, "ok").await;
    }
    let (first, mut second) = (tcp(&cluster).await, connect(&cluster, b"http/1.1", None).await);
    second.write_all(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    until(&mut second, "ok").await;
    assert_eq!(rest(&mut tcp(&cluster).await).await, b"");
    // Their going makes room.
    drop((first, second));
    tokio::time::timeout(LONG, async {
        loop {
            let mut stream = tcp(&cluster).await;
            let mut byte = [0];
            // One that was let in hears nothing for now.
            if tokio::time::timeout(SHORT, stream.read(&mut byte)).await.is_err() {
                return;
            }
        }
    })
    .await
    .unwrap();
}

/// A frame of HTTP/2 (RFC 9113, 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rapid_resets_end_the_connection() {
    let cluster = cluster(Limits::default()).await;
    let rude = connect(&cluster, b"h2", None).await;
    let (mut read, mut write) = tokio::io::split(rude);
    let writer = tokio::spawn(async move {
        let mut flood = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, b"")].concat();
        for stream in (1..4000).step_by(2) {
            // `GET https://a/`, from the static table and one literal (RFC 7541); then CANCEL.
            flood.extend(frame(1, 5, stream, b"\x82\x87\x84\x41\x01a"));
            flood.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
        }
        let _ = write.write_all(&flood).await;
        write
    });
    let said = rest(&mut read).await;
    drop(writer);
    // GOAWAY with ENHANCE_YOUR_CALM, or a connection that is simply gone.
    let mut frames = said.as_slice();
    while frames.len() >= 9 {
        let length = usize::from(frames[0]) << 16 | usize::from(frames[1]) << 8 | usize::from(frames[2]);
        if frames[3] == 7 && frames.len() >= 17 {
            assert_eq!(frames[16], 0xb, "{frames:?}");
        }
        frames = &frames[(9 + length).min(frames.len())..];
    }
    assert_eq!(cluster.curl("/livez", &[]).await, "200");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_never_reads_is_cut_off() {
    const WRITES: usize = 30;
    let cluster = cluster(Limits::default()).await;
    let map = |n: usize| json!({"metadata": {"name": "large"}, "data": {"n": n.to_string(), "text": "x".repeat((1 << 20) - 4096)}});
    let maps = "/api/v1/namespaces/default/configmaps";
    assert_eq!(cluster.json("POST", maps, "application/json", &map(0)).await.0, 201);
    let mut lazy = connect(&cluster, b"http/1.1", Some("lazy")).await;
    let watch = format!("GET {maps}?watch=true&allowWatchBookmarks=true HTTP/1.1\r\nhost: a\r\n\r\n");
    lazy.write_all(watch.as_bytes()).await.unwrap();
    until(&mut lazy, "\r\n\r\n").await;
    for n in 1..WRITES {
        let (code, _) = cluster.json("PUT", &format!("{maps}/large"), "application/json", &map(n)).await;
        assert_eq!(code, 200);
    }
    // What it gets now is what was on its way; the rest it has to ask for.
    let seen = until(&mut lazy, "\r\n0\r\n\r\n").await;
    assert!(seen.len() < (WRITES / 2) << 20, "{} bytes", seen.len());
    assert!(!seen.contains("\"type\":\"ERROR\""));
}
