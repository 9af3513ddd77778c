//! The server on loopback, asked over real UDP and TCP with messages built by hickory-proto.
#![allow(clippy::unwrap_used)]

mod forward;
mod hostile;
mod kinds;
mod support;
mod zones;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dhow_client::Client;
use dhow_dns::{DnsConfig, Server};
use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::{CancellationToken, DropGuard};

use support::{Api, Fixture};

pub fn fixture() -> Fixture {
    let namespaces = vec![json!({"metadata": {"name": "default"}}), json!({"metadata": {"name": "shop"}})];
    let mut fixture = Fixture { namespaces, ..Fixture::default() };
    let mut service = |namespace: &str, name: &str, spec: Value| {
        let object = json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec});
        fixture.services.push(object);
    };
    let https = json!([{"name": "https", "port": 443}]);
    service("default", "kubernetes", json!({"clusterIP": "10.43.0.1", "ports": https}));
    service("default", "db", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 3306}]}));
    service("default", "idle", json!({"clusterIP": "None", "ports": []}));
    service("default", "site", json!({"type": "ExternalName", "externalName": "www.example.org"}));
    service(
        "default",
        "inner",
        json!({"type": "ExternalName", "externalName": "kubernetes.default.svc.cluster.local"}),
    );
    service("default", "round", json!({"type": "ExternalName", "externalName": "round.default.svc.cluster.local"}));
    service(
        "default",
        "web",
        json!({"clusterIP": "10.43.0.9", "clusterIPs": ["10.43.0.9", "fd43::9"],
        "ports": [{"name": "http", "port": 80}, {"name": "http", "port": 81, "protocol": "UDP"}]}),
    );
    service("default", "early", json!({"clusterIP": "None", "publishNotReadyAddresses": true}));
    service("kube-system", "kube-dns", json!({"clusterIP": "10.43.0.10"}));
    service("shop", "cart", json!({"clusterIP": "10.43.0.33"}));
    service("default", "many", json!({"clusterIP": "None", "ports": []}));
    let mut slice = |name: &str, endpoints: Value| {
        let object = json!({
            "metadata": {"namespace": "default", "name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "sql", "port": 3306, "protocol": "TCP"}],
        });
        fixture.slices.push(object);
    };
    slice(
        "db",
        json!([
            {"addresses": ["10.42.0.7"], "hostname": "db-0"},
            {"addresses": ["10.42.0.8"]},
            {"addresses": ["10.42.0.9"], "hostname": "db-2", "conditions": {"ready": false}},
        ]),
    );
    let many: Vec<Value> = (0..200).map(|i| json!({"addresses": [format!("10.42.1.{i}")]})).collect();
    slice("many", json!(many));
    slice("web", json!([{"addresses": ["10.42.0.20"], "hostname": "web-0"}, {"addresses": ["10.42.0.21"]}]));
    // Unready, but published; in two families; with a port of each protocol.
    fixture.slices.push(json!({
        "metadata": {"namespace": "default", "name": "early-6", "labels": {"kubernetes.io/service-name": "early"}},
        "addressType": "IPv6",
        "endpoints": [{"addresses": ["fd00::7"], "hostname": "Early-0", "conditions": {"ready": false}}],
        "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns", "port": 53, "protocol": "TCP"}],
    }));
    fixture.pods.push(json!({"metadata": {"namespace": "default", "name": "me"}, "spec": {},
        "status": {"phase": "Running", "podIPs": [{"ip": POD}]}}));
    fixture
}

/// The address of a pod in `default`, on loopback so that it can ask.
const POD: &str = "127.0.0.77";

pub struct Running {
    pub address: SocketAddr,
    _stop: DropGuard,
}

pub async fn start(config: DnsConfig) -> Running {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = Server::bind(&[loopback], config).await.unwrap();
    let address = server.local_addrs()[0];
    let shutdown = CancellationToken::new();
    tokio::spawn(server.run(Client::new(Arc::new(Api::new(fixture()))), shutdown.clone()));
    Running { address, _stop: shutdown.drop_guard() }
}

pub fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

pub async fn raw(server: SocketAddr, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; 65536];
    let length = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await??;
    buffer.truncate(length);
    Ok(buffer)
}

pub async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> Message {
    let question = question(name, kind);
    let answer = Message::from_vec(&raw(server, &question.to_vec().unwrap()).await.unwrap()).unwrap();
    assert_eq!(answer.metadata.id, question.metadata.id);
    answer
}

pub async fn ask_tcp(server: SocketAddr, question: &Message) -> Message {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let bytes = question.to_vec().unwrap();
    stream.write_all(&[&(bytes.len() as u16).to_be_bytes(), bytes.as_slice()].concat()).await.unwrap();
    let mut frame = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut frame).await.unwrap();
    Message::from_vec(&frame).unwrap()
}

pub fn data(message: &Message) -> Vec<String> {
    message.answers.iter().map(|record| record.data.to_string()).collect()
}

#[tokio::test]
async fn cluster_names() {
    let dns = start(DnsConfig::default()).await;
    let at = dns.address;
    let answer = ask(at, "kubernetes.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(data(&answer), ["10.43.0.1"]);
    assert!(answer.metadata.authoritative && answer.metadata.recursion_available);
    assert_eq!(answer.answers[0].ttl, 5);
    assert_eq!(data(&ask(at, "KUBERNETES.Default.SVC.cluster.LOCAL.", RecordType::A).await), ["10.43.0.1"]);
    let srv = ask(at, "_https._tcp.kubernetes.default.svc.cluster.local.", RecordType::SRV).await;
    assert_eq!(data(&srv), ["0 100 443 kubernetes.default.svc.cluster.local."]);
    assert_eq!(srv.additionals[0].data.to_string(), "10.43.0.1");
    let ptr = ask(at, "1.0.43.10.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(data(&ptr), ["kubernetes.default.svc.cluster.local."]);
    let txt = ask(at, "dns-version.cluster.local.", RecordType::TXT).await;
    assert_eq!(data(&txt), ["1.1.0"]);
    assert_eq!(data(&ask(at, "10-42-0-7.default.pod.cluster.local.", RecordType::A).await), ["10.42.0.7"]);
}

#[tokio::test]
async fn headless_names_are_their_ready_endpoints() {
    let dns = start(DnsConfig::default()).await;
    let at = dns.address;
    let all: BTreeSet<String> =
        data(&ask(at, "db.default.svc.cluster.local.", RecordType::A).await).into_iter().collect();
    assert_eq!(all, BTreeSet::from(["10.42.0.7".to_owned(), "10.42.0.8".to_owned()]));
    assert_eq!(data(&ask(at, "db-0.db.default.svc.cluster.local.", RecordType::A).await), ["10.42.0.7"]);
    assert_eq!(data(&ask(at, "10-42-0-8.db.default.svc.cluster.local.", RecordType::A).await), ["10.42.0.8"]);
    let unready = ask(at, "db-2.db.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(unready.metadata.response_code, ResponseCode::NXDomain);
    let idle = ask(at, "idle.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(idle.metadata.response_code, ResponseCode::NXDomain);
    let srv = ask(at, "_sql._tcp.db.default.svc.cluster.local.", RecordType::SRV).await;
    assert_eq!(srv.answers.len(), 2);
    assert!(data(&srv).contains(&"0 50 3306 db-0.db.default.svc.cluster.local.".to_owned()), "{:?}", data(&srv));
    let ptr = ask(at, "7.0.42.10.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(data(&ptr), ["db-0.db.default.svc.cluster.local."]);
}

#[tokio::test]
async fn no_is_authoritative_and_says_for_how_long() {
    let dns = start(DnsConfig::default()).await;
    for name in [
        "www.google.com.default.svc.cluster.local.",
        "nothing.default.svc.cluster.local.",
        "kubernetes.other.svc.cluster.local.",
        "_ftp._tcp.kubernetes.default.svc.cluster.local.",
        "x.y.z.cluster.local.",
        "300-1-1-1.default.pod.cluster.local.",
    ] {
        let answer = ask(dns.address, name, RecordType::A).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{name}");
        assert!(answer.metadata.authoritative, "{name}");
        assert!(matches!(&answer.authorities[0].data, RData::SOA(soa) if soa.minimum == 5), "{name}");
    }
    // The name exists, this type does not.
    for (name, kind) in [
        ("kubernetes.default.svc.cluster.local.", RecordType::AAAA),
        ("_https._tcp.kubernetes.default.svc.cluster.local.", RecordType::A),
        ("default.svc.cluster.local.", RecordType::A),
        ("cluster.local.", RecordType::A),
    ] {
        let answer = ask(dns.address, name, kind).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "{name}");
        assert!(answer.answers.is_empty() && answer.authorities.len() == 1, "{name}");
    }
}

#[tokio::test]
async fn large_answers_are_cut_for_udp_and_whole_on_tcp() {
    let dns = start(DnsConfig::default()).await;
    let mut question = question("many.default.svc.cluster.local.", RecordType::A);
    let bytes = raw(dns.address, &question.to_vec().unwrap()).await.unwrap();
    assert!(bytes.len() <= 512);
    assert!(Message::from_vec(&bytes).unwrap().metadata.truncation);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    question.set_edns(edns);
    let bytes = raw(dns.address, &question.to_vec().unwrap()).await.unwrap();
    assert!(bytes.len() <= 1232);
    assert!(Message::from_vec(&bytes).unwrap().edns.is_some());
    let whole = ask_tcp(dns.address, &question).await;
    assert_eq!((whole.answers.len(), whole.metadata.truncation), (200, false));
}

/// An upstream that knows `www.example.org`, says `big.example.org` only over TCP, and counts questions.
async fn upstream() -> (SocketAddr, Arc<AtomicUsize>) {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let udp = UdpSocket::bind(address).await.unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = asked.clone();
    let answer = |bytes: &[u8], by_tcp: bool| {
        let question = Message::from_vec(bytes).unwrap();
        let mut reply = Message::response(question.metadata.id, OpCode::Query);
        let query = question.queries[0].clone();
        let name = query.name().clone();
        reply.add_query(query);
        match name.to_ascii().to_ascii_lowercase().as_str() {
            "big.example.org." if !by_tcp => reply.metadata.truncation = true,
            "www.example.org." | "big.example.org." => {
                reply.add_answer(Record::from_rdata(name, 60, RData::A(A(Ipv4Addr::new(192, 0, 2, 80)))));
            }
            _ => {
                reply.metadata.response_code = ResponseCode::NXDomain;
                let soa = SOA::new(name.clone(), name.clone(), 1, 1, 1, 1, 60);
                reply.add_authority(Record::from_rdata(name, 60, RData::SOA(soa)));
            }
        }
        reply.to_vec().unwrap()
    };
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, peer)) = udp.recv_from(&mut buffer).await {
            // The probe for loops does not count.
            let probe = Message::from_vec(&buffer[..length]).unwrap().queries[0].query_type() == RecordType::HINFO;
            counter.fetch_add(usize::from(!probe), Ordering::SeqCst);
            // Somebody else's guess comes first; it must not be believed.
            let mut forged = answer(&buffer[..length], false);
            forged[0] ^= 0xff;
            udp.send_to(&forged, peer).await.unwrap();
            udp.send_to(&answer(&buffer[..length], false), peer).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let mut frame = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut frame).await.unwrap();
            let reply = answer(&frame, true);
            stream.write_all(&[&(reply.len() as u16).to_be_bytes(), reply.as_slice()].concat()).await.unwrap();
        }
    });
    (address, asked)
}

#[tokio::test]
async fn other_names_come_from_upstream_once() {
    let (upstream, asked) = upstream().await;
    let dead = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let upstreams = vec![dead.into(), upstream.into()];
    let dns = start(DnsConfig { upstreams, upstream_timeout: Duration::from_secs(1), ..DnsConfig::default() }).await;
    let at = dns.address;
    for _ in 0..3 {
        let answer = ask(at, "www.example.org.", RecordType::A).await;
        assert_eq!(data(&answer), ["192.0.2.80"]);
        assert!(!answer.metadata.authoritative);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    for _ in 0..2 {
        let missing = ask(at, "missing.example.org.", RecordType::A).await;
        assert_eq!(missing.metadata.response_code, ResponseCode::NXDomain);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2);
    assert_eq!(data(&ask(at, "big.example.org.", RecordType::A).await), ["192.0.2.80"]);
    // Aliases: out of the zone, inside it, and in a circle.
    let alias = ask(at, "site.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(data(&alias), ["www.example.org.", "192.0.2.80"]);
    assert_eq!(data(&ask(at, "site.default.svc.cluster.local.", RecordType::CNAME).await), ["www.example.org."]);
    let inner = ask(at, "inner.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(data(&inner), ["kubernetes.default.svc.cluster.local.", "10.43.0.1"]);
    let round = ask(at, "round.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(round.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn without_upstream_the_answer_is_a_failure_not_silence() {
    let dns = start(DnsConfig::default()).await;
    let answer = ask(dns.address, "www.example.org.", RecordType::A).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn nonsense_gets_an_error_or_silence() {
    let dns = start(DnsConfig::default()).await;
    let mut broken = question("kubernetes.default.svc.cluster.local.", RecordType::A).to_vec().unwrap();
    broken.truncate(20);
    let reply = raw(dns.address, &broken).await.unwrap();
    assert_eq!((&reply[..2], reply[3] & 15), (&broken[..2], 1), "FORMERR with the same id");
    let mut update = question("cluster.local.", RecordType::A);
    update.metadata.op_code = OpCode::Update;
    let reply = raw(dns.address, &update.to_vec().unwrap()).await.unwrap();
    assert!(matches!(reply[3] & 15, 1 | 4), "NOTIMP or FORMERR");
    let transfer = ask(dns.address, "cluster.local.", RecordType::AXFR).await;
    assert_eq!(transfer.metadata.response_code, ResponseCode::FormErr, "not in a datagram");
}

/// Asks as the pod.
async fn ask_as_pod(server: SocketAddr, name: &str, kind: RecordType) -> Message {
    let socket = UdpSocket::bind((POD, 0)).await.unwrap();
    socket.send_to(&question(name, kind).to_vec().unwrap(), server).await.unwrap();
    let mut buffer = vec![0; 4096];
    let length = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await.unwrap().unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

#[tokio::test]
async fn a_pods_search_path_is_walked_in_one_question() {
    let (upstream, asked) = upstream().await;
    let upstreams = vec![upstream.into()];
    let config = DnsConfig { upstreams, search: Some(vec!["corp.example.org".into()]), ..DnsConfig::default() };
    let dns = start(config.clone()).await;
    let at = dns.address;
    let first = "www.example.org.default.svc.cluster.local.";
    let answer = ask_as_pod(at, first, RecordType::A).await;
    assert_eq!(data(&answer), ["www.example.org.", "192.0.2.80"]);
    assert_eq!(answer.answers[0].name.to_ascii(), first);
    assert_eq!(asked.load(Ordering::SeqCst), 2, "the host's search domain, then the name itself");
    // The other family: the name exists, so the search ends there too.
    let other = ask_as_pod(at, first, RecordType::AAAA).await;
    assert_eq!(
        (other.metadata.response_code, data(&other)),
        (ResponseCode::NoError, vec!["www.example.org.".to_owned()])
    );
    // Another namespace's service, and a name of the cluster that was written out.
    for name in ["cart.shop.default.svc.cluster.local.", "cart.shop.svc.cluster.local.default.svc.cluster.local."] {
        let answer = ask_as_pod(at, name, RecordType::A).await;
        assert_eq!(data(&answer), ["cart.shop.svc.cluster.local.", "10.43.0.33"], "{name}");
    }
    // Single labels are services; others' namespaces, other clients and nonsense are not searched for.
    let count = asked.load(Ordering::SeqCst);
    for name in ["missing.default.svc.cluster.local.", "www.example.org.shop.svc.cluster.local."] {
        assert_eq!(ask_as_pod(at, name, RecordType::A).await.metadata.response_code, ResponseCode::NXDomain, "{name}");
    }
    assert_eq!(ask(at, first, RecordType::A).await.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(asked.load(Ordering::SeqCst), count);
    let nowhere = ask_as_pod(at, "no.such.host.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(nowhere.metadata.response_code, ResponseCode::NXDomain);
    let off = start(DnsConfig { search: None, ..config }).await;
    assert_eq!(ask_as_pod(off.address, first, RecordType::A).await.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn families_ports_and_names_of_the_specification() {
    let dns = start(DnsConfig::default()).await;
    let at = dns.address;
    for (name, kind, expected) in [
        ("web.default.svc.cluster.local.", RecordType::A, vec!["10.43.0.9"]),
        ("web.default.svc.cluster.local.", RecordType::AAAA, vec!["fd43::9"]),
        ("_http._tcp.web.default.svc.cluster.local.", RecordType::SRV, vec!["0 100 80 web.default.svc.cluster.local."]),
        ("_http._udp.web.default.svc.cluster.local.", RecordType::SRV, vec!["0 100 81 web.default.svc.cluster.local."]),
        ("web-0.web.default.svc.cluster.local.", RecordType::A, vec!["10.42.0.20"]),
        ("early.default.svc.cluster.local.", RecordType::AAAA, vec!["fd00::7"]),
        ("early-0.early.default.svc.cluster.local.", RecordType::AAAA, vec!["fd00::7"]),
        (
            "_dns._udp.early.default.svc.cluster.local.",
            RecordType::SRV,
            vec!["0 100 53 early-0.early.default.svc.cluster.local."],
        ),
        ("ns.dns.cluster.local.", RecordType::A, vec!["10.43.0.10"]),
        ("cluster.local.", RecordType::NS, vec!["ns.dns.cluster.local."]),
        ("9.0.43.10.in-addr.arpa.", RecordType::PTR, vec!["web.default.svc.cluster.local."]),
        (
            "7.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa.",
            RecordType::PTR,
            vec!["early-0.early.default.svc.cluster.local."],
        ),
        ("fd00--7.default.pod.cluster.local.", RecordType::AAAA, vec!["fd00::7"]),
        ("8.0.42.10.in-addr.arpa.", RecordType::PTR, vec!["10-42-0-8.db.default.svc.cluster.local."]),
    ] {
        assert_eq!(data(&ask(at, name, kind).await), expected, "{name} {kind}");
    }
    // Endpoints without a host name of their own have one only where nothing balances.
    let hidden = ask(at, "10-42-0-21.web.default.svc.cluster.local.", RecordType::A).await;
    assert_eq!(hidden.metadata.response_code, ResponseCode::NXDomain);
    // Something is below `_tcp`, so it exists.
    let between = ask(at, "_tcp.web.default.svc.cluster.local.", RecordType::SRV).await;
    assert_eq!((between.metadata.response_code, between.answers.len()), (ResponseCode::NoError, 0));
    let srv = ask(at, "_http._tcp.web.default.svc.cluster.local.", RecordType::SRV).await;
    assert_eq!(srv.additionals.len(), 2, "both families of the target");
}

#[tokio::test]
async fn letters_cookies_and_versions_are_answered_as_they_came() {
    let dns = start(DnsConfig::default()).await;
    let mut bytes = question("kUberNetes.Default.sVc.cluster.LOCAL.", RecordType::A).to_vec().unwrap();
    let reply = raw(dns.address, &bytes).await.unwrap();
    assert_eq!(reply[12..bytes.len()], bytes[12..]);
    // A client's cookie comes back with ours behind it; with both, the same comes back.
    let plain = bytes.len();
    bytes[11] = 1;
    bytes.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    let reply = raw(dns.address, &bytes).await.unwrap();
    let cookie = reply[reply.len() - 24..].to_vec();
    assert_eq!(cookie[..8], [1, 2, 3, 4, 5, 6, 7, 8]);
    bytes.truncate(plain);
    bytes.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 28, 0, 10, 0, 24]);
    bytes.extend(&cookie);
    let again = raw(dns.address, &bytes).await.unwrap();
    assert!(again.ends_with(&cookie));
    bytes.truncate(plain);
    bytes.extend([0, 0, 41, 4, 208, 0, 7, 0, 0, 0, 0]);
    let version = Message::from_vec(&raw(dns.address, &bytes).await.unwrap()).unwrap();
    assert_eq!((u16::from(version.metadata.response_code), version.edns.unwrap().version()), (16, 0));
}

#[tokio::test]
async fn connections_carry_many_questions_at_once() {
    let (upstream, _) = upstream().await;
    let slow = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let stub_domains = vec![("slow.example.".to_owned(), vec![slow.local_addr().unwrap().into()])];
    let dns = start(DnsConfig { upstreams: vec![upstream.into()], stub_domains, ..DnsConfig::default() }).await;
    let mut stream = TcpStream::connect(dns.address).await.unwrap();
    let mut sent = Vec::new();
    let names = ["x.slow.example.", "www.example.org.", "kubernetes.default.svc.cluster.local."];
    let questions: Vec<Message> = names.iter().map(|name| question(name, RecordType::A)).collect();
    for question in &questions {
        let bytes = question.to_vec().unwrap();
        sent.extend((bytes.len() as u16).to_be_bytes());
        sent.extend(bytes);
    }
    stream.write_all(&sent).await.unwrap();
    let mut ids = Vec::new();
    for _ in 0..3 {
        let mut frame = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut frame).await.unwrap();
        ids.push(Message::from_vec(&frame).unwrap().metadata.id);
    }
    // Who has to wait holds nobody up.
    assert_eq!(ids.last(), Some(&questions[0].metadata.id));
}

/// The fixture's services with their slices.
pub fn fixture_services() -> Vec<(Value, Vec<Value>)> {
    let fixture = fixture();
    let slices = |service: &Value| {
        let name = &service["metadata"]["name"];
        let of = |slice: &&Value| slice["metadata"]["labels"]["kubernetes.io/service-name"] == *name;
        fixture.slices.iter().filter(of).cloned().collect()
    };
    fixture.services.iter().map(|service| (service.clone(), slices(service))).collect()
}
