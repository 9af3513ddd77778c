//! Resolvers upstream that are slow, dead, wrong or hostile.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use dhow_dns::{DnsConfig, UpstreamAddress};
use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME, SOA};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

use super::{ask, data, start};

/// A resolver that says what `answer` makes of a question (and whether it came by TCP), after a moment.
struct Fake {
    address: SocketAddr,
    /// Questions but for the probe for loops.
    asked: Arc<AtomicUsize>,
    /// Says nothing any more.
    dead: Arc<AtomicBool>,
}

fn reply(question: &Message) -> Message {
    let mut reply = Message::response(question.metadata.id, OpCode::Query);
    reply.add_query(question.queries[0].clone());
    reply
}

fn address(name: &str, ttl: u32, last: u8) -> Record {
    Record::from_rdata(Name::from_ascii(name).unwrap(), ttl, RData::A(A::new(192, 0, 2, last)))
}

async fn fake(answer: impl Fn(&Message, bool) -> Message + Send + Sync + 'static) -> Fake {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let udp = Arc::new(UdpSocket::bind(address).await.unwrap());
    let (asked, dead) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let answer = Arc::new(answer);
    let (counter, silent, by_udp) = (asked.clone(), dead.clone(), answer.clone());
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, peer)) = udp.recv_from(&mut buffer).await {
            let question = Message::from_vec(&buffer[..length]).unwrap();
            if silent.load(Ordering::SeqCst) || question.queries[0].query_type() == RecordType::HINFO {
                continue;
            }
            counter.fetch_add(1, Ordering::SeqCst);
            let (udp, answer) = (udp.clone(), by_udp.clone());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(30)).await;
                udp.send_to(&answer(&question, false).to_vec().unwrap(), peer).await.unwrap();
            });
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let Ok(length) = stream.read_u16().await else { continue };
            let mut frame = vec![0; usize::from(length)];
            stream.read_exact(&mut frame).await.unwrap();
            let bytes = answer(&Message::from_vec(&frame).unwrap(), true).to_vec().unwrap();
            stream.write_all(&[&(bytes.len() as u16).to_be_bytes(), bytes.as_slice()].concat()).await.unwrap();
        }
    });
    Fake { address, asked, dead }
}

fn config(upstreams: &[&Fake]) -> DnsConfig {
    let upstreams = upstreams.iter().map(|fake| UpstreamAddress::from(fake.address)).collect();
    DnsConfig { upstreams, upstream_timeout: Duration::from_secs(1), ..DnsConfig::default() }
}

#[tokio::test]
async fn equal_questions_are_asked_once_and_ended_answers_outlive_the_resolver() {
    let fake = fake(|question, _| {
        let mut reply = reply(question);
        reply.add_answer(address(&question.queries[0].name().to_ascii(), 1, 1));
        reply
    })
    .await;
    let dns = start(config(&[&fake])).await;
    let at = dns.address;
    let all = futures::future::join_all((0..20).map(|_| ask(at, "www.example.org.", RecordType::A))).await;
    assert!(all.iter().all(|answer| data(answer) == ["192.0.2.1"]));
    assert_eq!(fake.asked.load(Ordering::SeqCst), 1);
    fake.dead.store(true, Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for _ in 0..2 {
        let stale = ask(at, "www.example.org.", RecordType::A).await;
        assert_eq!((data(&stale), stale.answers[0].ttl), (vec!["192.0.2.1".to_owned()], 30));
    }
    let unknown = ask(at, "other.example.org.", RecordType::A).await;
    assert_eq!(unknown.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn hot_names_are_fetched_before_they_end() {
    let fake = fake(|question, _| {
        let mut reply = reply(question);
        reply.add_answer(address(&question.queries[0].name().to_ascii(), 2, 1));
        reply
    })
    .await;
    let dns = start(config(&[&fake])).await;
    for _ in 0..4 {
        ask(dns.address, "hot.example.org.", RecordType::A).await;
    }
    ask(dns.address, "cold.example.org.", RecordType::A).await;
    assert_eq!(fake.asked.load(Ordering::SeqCst), 2);
    tokio::time::sleep(Duration::from_millis(1850)).await;
    ask(dns.address, "hot.example.org.", RecordType::A).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(fake.asked.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn records_of_others_in_an_answer_are_dropped() {
    let fake = fake(|question, _| {
        let mut reply = reply(question);
        let name = question.queries[0].name().to_ascii();
        let (alias, target) = (Name::from_ascii(&name).unwrap(), Name::from_ascii("real.example.net.").unwrap());
        reply.add_answer(Record::from_rdata(alias, 60, RData::CNAME(CNAME(target))));
        reply.add_answer(address("real.example.net.", 60, 1));
        reply.add_answer(address("bank.example.com.", 60, 66));
        let bank = Name::from_ascii("bank.example.com.").unwrap();
        reply.add_authority(Record::from_rdata(
            bank.clone(),
            60,
            RData::SOA(SOA::new(bank.clone(), bank, 1, 1, 1, 1, 60)),
        ));
        reply.add_additional(address("bank.example.com.", 60, 66));
        reply
    })
    .await;
    let dns = start(config(&[&fake])).await;
    let answer = ask(dns.address, "www.example.org.", RecordType::A).await;
    assert_eq!(data(&answer), ["real.example.net.", "192.0.2.1"]);
    assert!(answer.authorities.is_empty() && answer.additionals.is_empty());
    ask(dns.address, "bank.example.com.", RecordType::A).await;
    assert_eq!(fake.asked.load(Ordering::SeqCst), 2, "nothing was learnt of the bank");
}

#[tokio::test]
async fn other_letters_in_the_question_are_checked_by_tcp() {
    let fake = fake(|question, by_tcp| {
        let mut reply = Message::response(question.metadata.id, OpCode::Query);
        let mut query = question.queries[0].clone();
        query.set_name(query.name().to_lowercase());
        let name = query.name().to_ascii();
        reply.add_query(query);
        reply.add_answer(address(&name, 60, if by_tcp { 1 } else { 66 }));
        reply
    })
    .await;
    let dns = start(config(&[&fake])).await;
    let name = "a-long-enough-name-to-have-some-upper-letter.example.org.";
    assert_eq!(data(&ask(dns.address, name, RecordType::A).await), ["192.0.2.1"]);
    // From then on it is known that this resolver does so.
    assert_eq!(data(&ask(dns.address, "x.example.org.", RecordType::A).await), ["192.0.2.66"]);
}

#[tokio::test]
async fn zones_have_their_own_resolvers() {
    let say = |last: u8| {
        move |question: &Message, _| {
            let mut reply = reply(question);
            reply.add_answer(address(&question.queries[0].name().to_ascii(), 60, last));
            reply
        }
    };
    let (all, corp, deep) = (fake(say(1)).await, fake(say(2)).await, fake(say(3)).await);
    let stub = |zone: &str, fake: &Fake| (zone.to_owned(), vec![fake.address.into()]);
    let stub_domains = vec![stub("corp.example", &corp), stub("deep.corp.example", &deep)];
    let dns = start(DnsConfig { stub_domains, ..config(&[&all]) }).await;
    for (name, expected) in [
        ("example.", "192.0.2.1"),
        ("notcorp.example.", "192.0.2.1"),
        ("corp.example.", "192.0.2.2"),
        ("x.corp.example.", "192.0.2.2"),
        ("x.deep.corp.example.", "192.0.2.3"),
    ] {
        assert_eq!(data(&ask(dns.address, name, RecordType::A).await), [expected], "{name}");
    }
}

#[tokio::test]
async fn a_resolver_that_asks_us_is_found_out() {
    // It forwards to us, which we learn only when both are there.
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let good = fake(|question, _| {
        let mut reply = reply(question);
        reply.add_answer(address(&question.queries[0].name().to_ascii(), 60, 1));
        reply
    })
    .await;
    let upstreams = vec![socket.local_addr().unwrap().into(), good.address.into()];
    let dns = start(DnsConfig { upstreams, ..config(&[]) }).await;
    let (to, asked) = (dns.address, Arc::new(AtomicUsize::new(0)));
    let counter = asked.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, _)) = socket.recv_from(&mut buffer).await {
            counter.fetch_add(1, Ordering::SeqCst);
            socket.send_to(&buffer[..length], to).await.unwrap();
        }
    });
    assert_eq!(data(&ask(to, "www.example.org.", RecordType::A).await), ["192.0.2.1"]);
    // What was on its way before it was found out has arrived by then.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = asked.load(Ordering::SeqCst);
    assert_eq!(data(&ask(to, "mail.example.org.", RecordType::A).await), ["192.0.2.1"]);
    assert_eq!(asked.load(Ordering::SeqCst), before, "it is not asked any more");
}

#[tokio::test]
async fn tls_resolvers_are_believed_by_certificate() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let made = rcgen::generate_simple_self_signed(vec!["dns.example.org".to_owned()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, made.cert.pem()).unwrap();
    let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let server = rustls::ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = connections.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut stream) = acceptor.accept(stream).await else { return };
                while let Ok(length) = stream.read_u16().await {
                    let mut frame = vec![0; usize::from(length)];
                    stream.read_exact(&mut frame).await.unwrap();
                    let question = Message::from_vec(&frame).unwrap();
                    let mut reply = reply(&question);
                    reply.add_answer(address(&question.queries[0].name().to_ascii(), 60, 1));
                    let bytes = reply.to_vec().unwrap();
                    stream.write_all(&[&(bytes.len() as u16).to_be_bytes(), bytes.as_slice()].concat()).await.unwrap();
                    stream.flush().await.unwrap();
                }
            });
        }
    });
    let with = |name: &str, ca: Option<std::path::PathBuf>| DnsConfig {
        upstreams: vec![UpstreamAddress { address: at, tls: Some(name.to_owned()) }],
        tls_ca: ca,
        ..config(&[])
    };
    let dns = start(with("dns.example.org", Some(ca.clone()))).await;
    for name in ["a.example.org.", "b.example.org.", "c.example.org."] {
        assert_eq!(data(&ask(dns.address, name, RecordType::A).await), ["192.0.2.1"]);
    }
    // One for the probe for loops at most, one for the questions.
    assert!(connections.load(Ordering::SeqCst) <= 2, "{connections:?}");
    for config in [with("other.example.org", Some(ca)), with("dns.example.org", None)] {
        let dns = start(config).await;
        let answer = ask(dns.address, "a.example.org.", RecordType::A).await;
        assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    }
}

#[tokio::test]
async fn the_cache_is_bounded_in_bytes() {
    let fake = fake(|question, _| {
        let mut reply = reply(question);
        reply.add_answer(address(&question.queries[0].name().to_ascii(), 60, 1));
        reply
    })
    .await;
    let dns = start(DnsConfig { cache_bytes: 8192, ..config(&[&fake]) }).await;
    let names: Vec<String> = (0..100).map(|index| format!("n{index}.example.org.")).collect();
    for name in &names {
        ask(dns.address, name, RecordType::A).await;
    }
    for name in names.iter().rev().take(5) {
        ask(dns.address, name, RecordType::A).await;
    }
    assert_eq!(fake.asked.load(Ordering::SeqCst), 100, "the last ones are there");
    ask(dns.address, &names[0], RecordType::A).await;
    assert_eq!(fake.asked.load(Ordering::SeqCst), 101, "the first ones went");
}
