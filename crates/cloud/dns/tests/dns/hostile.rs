//! What strangers send: answered as the RFCs say, or not at all, and never more than the answer to a question.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use dhow_dns::DnsConfig;
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::RecordType;
use proptest::prelude::*;
use tokio::net::UdpSocket;

use super::{ask, data, question, raw, start};

const NAME: &str = "kubernetes.default.svc.cluster.local.";

/// A question with one thing changed.
fn with(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = question(NAME, RecordType::A).to_vec().unwrap();
    change(&mut bytes);
    bytes
}

fn code(reply: &[u8]) -> u8 {
    reply[3] & 15
}

#[tokio::test]
async fn errors_say_what_is_wrong() {
    let dns = start(DnsConfig::default()).await;
    let length = with(|_| {}).len();
    let kind = |bytes: &mut Vec<u8>, kind: u16| bytes[length - 4..length - 2].copy_from_slice(&kind.to_be_bytes());
    let class = |bytes: &mut Vec<u8>, class: u16| bytes[length - 2..].copy_from_slice(&class.to_be_bytes());
    for (what, bytes, expected) in [
        ("cut short", with(|b| b.truncate(20)), 1),
        ("no question", with(|b| b[5] = 0), 1),
        ("two questions", with(|b| b[5] = 2), 1),
        ("an answer in the question", with(|b| b[7] = 1), 1),
        ("more behind the end", with(|b| b.push(0)), 1),
        ("a pointer to itself", with(|b| b.splice(12..length - 4, [0xc0, 12]).for_each(drop)), 1),
        ("a pointer into the header", with(|b| b.splice(12..length - 4, [0xc0, 0]).for_each(drop)), 1),
        ("a label type nobody has", with(|b| b[12] = 0x40), 1),
        (
            "two OPT records",
            with(|b| {
                b[11] = 2;
                b.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0].repeat(2));
            }),
            1,
        ),
        (
            "an option longer than its record",
            with(|b| {
                b[11] = 1;
                b.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 4, 0, 10, 0, 9]);
            }),
            1,
        ),
        (
            "a cookie too short",
            with(|b| {
                b[11] = 1;
                b.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 6, 0, 10, 0, 2, 1, 2]);
            }),
            1,
        ),
        ("OPT as a question", with(|b| kind(b, 41)), 1),
        ("AXFR in a datagram", with(|b| kind(b, 252)), 1),
        ("MAILA", with(|b| kind(b, 254)), 4),
        ("class ANY", with(|b| class(b, 255)), 5),
        ("class CHAOS", with(|b| class(b, 3)), 5),
        ("IQUERY", with(|b| b[2] |= 1 << 3), 4),
        ("STATUS", with(|b| b[2] |= 2 << 3), 4),
        ("NOTIFY from a stranger", with(|b| b[2] |= 4 << 3), 9),
        ("UPDATE from a stranger", with(|b| b[2] |= 5 << 3), 4),
    ] {
        let reply = raw(dns.address, &bytes).await.unwrap();
        assert_eq!((&reply[..2], code(&reply)), (&bytes[..2], expected), "{what}");
        assert!(reply[2] & 0x80 != 0 && reply.len() <= bytes.len() + 11, "{what}");
    }
    let name = "x".repeat(63);
    let long = format!("{name}.{name}.{name}.{name}");
    let mut labels = Vec::new();
    long.split('.').for_each(|label| {
        labels.push(63);
        labels.extend(label.bytes());
    });
    labels.push(0);
    let reply = raw(dns.address, &with(|b| b.splice(12..length - 4, labels).for_each(drop))).await.unwrap();
    assert_eq!(code(&reply), 1, "a name of 257 bytes");
}

#[tokio::test]
async fn replies_are_never_answered() {
    let dns = start(DnsConfig::default()).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for bytes in [with(|b| b[2] |= 0x80), vec![0; 11], vec![]] {
        socket.send_to(&bytes, dns.address).await.unwrap();
    }
    socket.send_to(&with(|_| {}), dns.address).await.unwrap();
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).await.unwrap();
    let first = Message::from_vec(&buffer[..length]).unwrap();
    assert_eq!(data(&first), ["10.43.0.1"], "the first reply is to the only question");
    let another = tokio::time::timeout(Duration::from_millis(100), socket.recv(&mut buffer)).await;
    assert!(another.is_err(), "and there is no other");
}

#[tokio::test]
async fn any_gets_one_small_set() {
    let dns = start(DnsConfig::default()).await;
    let answer = ask(dns.address, "many.default.svc.cluster.local.", RecordType::ANY).await;
    assert!(answer.metadata.truncation || answer.answers.iter().all(|r| r.record_type() == RecordType::A));
    let other = ask(dns.address, "www.example.org.", RecordType::ANY).await;
    assert_eq!(other.answers[0].record_type(), RecordType::HINFO);
}

#[tokio::test]
async fn a_flood_is_cut_to_the_limit() {
    let dns = start(DnsConfig { rate_limit: Some(20), ..DnsConfig::default() }).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(dns.address).await.unwrap();
    for _ in 0..100 {
        socket.send(&with(|_| {})).await.unwrap();
    }
    let (mut whole, mut cut) = (0, 0);
    let mut buffer = [0; 512];
    while let Ok(Ok(length)) = tokio::time::timeout(Duration::from_millis(300), socket.recv(&mut buffer)).await {
        let reply = Message::from_vec(&buffer[..length]).unwrap();
        if reply.metadata.truncation { cut += 1 } else { whole += 1 }
    }
    // Two seconds may have been touched.
    assert!((20..=40).contains(&whole), "{whole}");
    assert!((20..=40).contains(&cut), "{cut}");
    let by_tcp = super::ask_tcp(dns.address, &question(NAME, RecordType::A)).await;
    assert_eq!(by_tcp.metadata.response_code, ResponseCode::NoError);
}

fn noise() -> impl Strategy<Value = Vec<u8>> {
    let mut valid = question("_https._tcp.kubernetes.default.svc.cluster.local.", RecordType::SRV).to_vec().unwrap();
    valid[11] = 1;
    valid.extend([0, 0, 41, 4, 208, 0, 0, 128, 0, 0, 12, 0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..600),
        // A question with some bytes changed gets further than noise does.
        proptest::collection::vec((0..valid.len(), any::<u8>()), 1..6).prop_map(move |changes| {
            let mut bytes = valid.clone();
            changes.into_iter().for_each(|(index, byte)| bytes[index] = byte);
            bytes
        }),
    ]
}

/// The whole way from bytes to bytes: no panic, nothing larger than may be, nothing that another parser cannot read.
#[test]
fn whatever_arrives_the_reply_is_well_formed() {
    use dhow_dns::answer::{Next, Origin, Transport};
    let view = dhow_dns::testing::view("cluster.local", &super::fixture_services());
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(4000));
    let check = |bytes: Vec<u8>| {
        let origin = Origin { peer: IpAddr::from([127, 0, 0, 1]), transport: Transport::Udp, now: Instant::now() };
        let mut out = Vec::new();
        match view.answer(&bytes, origin, &[], &mut out) {
            Next::Send { .. } => {
                prop_assert!(out.len() <= 1232 && out.len() >= 12);
                prop_assert_eq!(&out[..2], &bytes[..2]);
                prop_assert!(out[2] & 0x80 != 0 && bytes[2] & 0x80 == 0);
                prop_assert!(Message::from_vec(&out).is_ok(), "{:?}", out);
            }
            Next::Silent | Next::Transfer | Next::Ask(_) => prop_assert!(out.is_empty()),
        }
        Ok(())
    };
    runner.run(&noise(), check).unwrap();
}
