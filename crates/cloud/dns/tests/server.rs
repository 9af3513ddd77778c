//! The server on loopback, asked over real UDP and TCP with messages built by hickory-proto.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dhow_dns::{Cluster, DnsConfig, Server};
use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio_util::sync::{CancellationToken, DropGuard};

#[derive(Default)]
struct Fixture {
    services: Vec<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
}

impl Cluster for Fixture {
    fn namespace_exists(&self, name: &str) -> bool {
        self.services.iter().any(|s| s.metadata.namespace.as_deref() == Some(name))
    }

    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        let mut found = self.services.iter().filter(|s| s.metadata.namespace.as_deref() == Some(namespace));
        found.find(|s| s.metadata.name.as_deref() == Some(name)).cloned()
    }

    fn slices(&self, namespace: &str, service: &str) -> Vec<Arc<EndpointSlice>> {
        let in_namespace = self.slices.iter().filter(|s| s.metadata.namespace.as_deref() == Some(namespace));
        in_namespace
            .filter(|s| s.metadata.labels.as_ref().unwrap()["kubernetes.io/service-name"] == service)
            .cloned()
            .collect()
    }

    fn service_by_ip(&self, ip: IpAddr) -> Option<Arc<Service>> {
        let ip = ip.to_string();
        self.services.iter().find(|s| s.spec.as_ref().unwrap().cluster_ip.as_deref() == Some(&ip)).cloned()
    }

    fn slices_by_ip(&self, ip: IpAddr) -> Vec<Arc<EndpointSlice>> {
        let ip = ip.to_string();
        let holds = |s: &&Arc<EndpointSlice>| s.endpoints.iter().any(|e| e.addresses.contains(&ip));
        self.slices.iter().filter(holds).cloned().collect()
    }
}

fn fixture() -> Fixture {
    let mut fixture = Fixture::default();
    let mut service = |namespace: &str, name: &str, spec: Value| {
        let object = json!({"metadata": {"namespace": namespace, "name": name}, "spec": spec});
        fixture.services.push(Arc::new(serde_json::from_value(object).unwrap()));
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
    service("default", "many", json!({"clusterIP": "None", "ports": []}));
    let mut slice = |name: &str, endpoints: Value| {
        let object = json!({
            "metadata": {"namespace": "default", "name": format!("{name}-1"), "labels": {"kubernetes.io/service-name": name}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "sql", "port": 3306, "protocol": "TCP"}],
        });
        fixture.slices.push(Arc::new(serde_json::from_value(object).unwrap()));
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
    fixture
}

struct Running {
    address: SocketAddr,
    _stop: DropGuard,
}

async fn start(config: DnsConfig) -> Running {
    let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let server = Server::bind(&[loopback], config).await.unwrap();
    let address = server.local_addrs()[0];
    let shutdown = CancellationToken::new();
    tokio::spawn(server.serve(Arc::new(fixture()), shutdown.clone()));
    Running { address, _stop: shutdown.drop_guard() }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

async fn raw(server: SocketAddr, bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").await?;
    socket.connect(server).await?;
    socket.send(bytes).await?;
    let mut buffer = vec![0; 65536];
    let length = tokio::time::timeout(Duration::from_secs(5), socket.recv(&mut buffer)).await??;
    buffer.truncate(length);
    Ok(buffer)
}

async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> Message {
    let question = question(name, kind);
    let answer = Message::from_vec(&raw(server, &question.to_vec().unwrap()).await.unwrap()).unwrap();
    assert_eq!(answer.metadata.id, question.metadata.id);
    answer
}

async fn ask_tcp(server: SocketAddr, question: &Message) -> Message {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let bytes = question.to_vec().unwrap();
    stream.write_all(&[&(bytes.len() as u16).to_be_bytes(), bytes.as_slice()].concat()).await.unwrap();
    let mut frame = vec![0; usize::from(stream.read_u16().await.unwrap())];
    stream.read_exact(&mut frame).await.unwrap();
    Message::from_vec(&frame).unwrap()
}

fn data(message: &Message) -> Vec<String> {
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
        match name.to_ascii().as_str() {
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
            counter.fetch_add(1, Ordering::SeqCst);
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
    let upstreams = vec![dead, upstream];
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
    assert_eq!(transfer.metadata.response_code, ResponseCode::Refused);
}

/// Whatever bytes arrive, the server still answers afterwards.
#[test]
fn random_bytes_do_not_stop_it() {
    use proptest::prelude::*;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let dns = runtime.block_on(start(DnsConfig::default()));
    let valid = question("_https._tcp.kubernetes.default.svc.cluster.local.", RecordType::SRV).to_vec().unwrap();
    let noise = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..600),
        // A question with some bytes changed gets further than noise does.
        proptest::collection::vec((0..valid.len(), any::<u8>()), 1..6).prop_map(move |changes| {
            let mut bytes = valid.clone();
            changes.into_iter().for_each(|(index, byte)| bytes[index] = byte);
            bytes
        }),
    ];
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(2000));
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let send = |bytes: Vec<u8>| {
        socket.send_to(&bytes, dns.address).unwrap();
        Ok(())
    };
    runner.run(&noise, send).unwrap();
    let answer = runtime.block_on(ask(dns.address, "kubernetes.default.svc.cluster.local.", RecordType::A));
    assert_eq!(data(&answer), ["10.43.0.1"]);
}

/// An API with the fixture's objects; its watches stay silent.
struct Api(Fixture);

#[async_trait::async_trait]
impl dhow_client::Transport for Api {
    async fn call(
        &self,
        request: http::Request<bytes::Bytes>,
    ) -> Result<http::Response<dhow_client::Body>, dhow_client::Error> {
        if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
            return std::future::pending().await;
        }
        let items = match request.uri().path().rsplit('/').next().unwrap() {
            "services" => json!(self.0.services.iter().map(AsRef::as_ref).collect::<Vec<&Service>>()),
            "endpointslices" => json!(self.0.slices.iter().map(AsRef::as_ref).collect::<Vec<&EndpointSlice>>()),
            "namespaces" => json!([{"metadata": {"name": "default"}}]),
            other => panic!("{other} is not needed for DNS"),
        };
        let list = json!({"metadata": {"resourceVersion": "1"}, "items": items});
        Ok(http::Response::new(dhow_client::full(list.to_string().into())))
    }
}

#[tokio::test]
async fn answers_come_from_the_watch() {
    let server = Server::bind(&[SocketAddr::from((Ipv4Addr::LOCALHOST, 0))], DnsConfig::default()).await.unwrap();
    let at = server.local_addrs()[0];
    let shutdown = CancellationToken::new();
    let client = dhow_client::Client::new(Arc::new(Api(fixture())));
    let running = tokio::spawn(server.run(client, shutdown.clone()));
    for (name, kind, expected) in [
        ("kubernetes.default.svc.cluster.local.", RecordType::A, "10.43.0.1"),
        ("db-0.db.default.svc.cluster.local.", RecordType::A, "10.42.0.7"),
        ("1.0.43.10.in-addr.arpa.", RecordType::PTR, "kubernetes.default.svc.cluster.local."),
        ("8.0.42.10.in-addr.arpa.", RecordType::PTR, "10-42-0-8.db.default.svc.cluster.local."),
        ("10-0-0-1.default.pod.cluster.local.", RecordType::A, "10.0.0.1"),
    ] {
        assert_eq!(data(&ask(at, name, kind).await), [expected], "{name}");
    }
    shutdown.cancel();
    running.await.unwrap();
}
