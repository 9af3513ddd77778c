//! Zones of users, judged by others: dig and delv ask, NSD and Knot are secondaries.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use dhow_client::Client;
use dhow_dns::{DnsConfig, Server, ZonesConfig};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::RecordType;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::support::Api;
use super::{ask, data};

const SECRET: &str = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";

struct Running {
    api: Arc<Api>,
    address: SocketAddr,
    _stop: DropGuard,
}

fn zone(dnssec: bool, notify: &[SocketAddr]) -> Value {
    json!({
        "metadata": {"name": "shop", "generation": 1, "resourceVersion": "40", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "origin": "Shop.Example", "nameServers": ["ns1.shop.example"], "recordNamespaces": ["default"],
            "dnssec": {"enabled": dnssec},
            "transfer": {"keySecrets": ["secondary"], "notify": notify.iter().map(ToString::to_string).collect::<Vec<_>>()},
        },
    })
}

fn record(id: &str, name: &str, kind: &str, values: &[&str]) -> Value {
    json!({
        "metadata": {"name": id, "namespace": "default", "generation": 1, "resourceVersion": "41",
            "creationTimestamp": "2026-01-02T00:00:00Z"},
        "spec": {"zone": "shop", "name": name, "type": kind, "values": values},
    })
}

fn records() -> Vec<Value> {
    let mut records = vec![
        record("ns1", "ns1", "A", &["192.0.2.53"]),
        record("www", "www", "A", &["192.0.2.1", "192.0.2.2"]),
        record("www6", "www", "AAAA", &["2001:db8::1"]),
        record("mail", "@", "MX", &["10 mail", "20 Mail2.Example.Org."]),
        record("spf", "@", "TXT", &["v=spf1 -all; \"x\""]),
        record("spf2", "txt", "TXT", &["v=spf1 -all"]),
        record("caa", "@", "CAA", &["0 issue \"ca.example.net\""]),
        record("srv", "_sip._tcp", "SRV", &["0 5 5060 www.shop.example."]),
        record("alias", "alias", "CNAME", &["www.shop.example."]),
        record("inside", "inside", "CNAME", &["kubernetes.default.svc.cluster.local."]),
        record("wild", "*.apps", "A", &["192.0.2.9"]),
        record("deep", "a.b.deep", "A", &["192.0.2.10"]),
        record("cut", "child", "NS", &["ns.child.shop.example."]),
        record("glue", "ns.child", "A", &["192.0.2.54"]),
        record("signed-cut", "secure", "NS", &["ns.elsewhere.example."]),
        record("ds", "secure", "DS", &["12345 13 2 00112233445566778899AABBCCDDEEFF00112233445566778899AABBCCDDEEFF"]),
        record("svcb", "@", "HTTPS", &["1 . alpn=h2"]),
        record("bad", "bad", "A", &["not an address"]),
        record("conflict", "www", "CNAME", &["other.example."]),
    ];
    for late in records.iter_mut().filter(|record| record["metadata"]["name"] == "conflict") {
        late["metadata"]["creationTimestamp"] = json!("2026-01-03T00:00:00Z");
    }
    let mut foreign = record("foreign", "foreign", "A", &["192.0.2.66"]);
    foreign["metadata"]["namespace"] = json!("shop");
    records.push(foreign);
    records
}

async fn start(dnssec: bool, notify: &[SocketAddr]) -> Running {
    let mut fixture = super::fixture();
    fixture.zones = vec![zone(dnssec, notify)];
    fixture.records = records();
    let text = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    fixture.secrets = vec![json!({
        "metadata": {"name": "secondary", "namespace": "dhow-dns", "resourceVersion": "9"},
        "data": {"name": text("xfr"), "algorithm": text("hmac-sha256"), "secret": text(SECRET)},
    })];
    let zones = ZonesConfig { namespace: "dhow-dns".into(), server: "ns.dns.cluster.local".into() };
    let config = DnsConfig { zones: Some(zones), ..DnsConfig::default() };
    let server = Server::bind(&[SocketAddr::from(([127, 0, 0, 1], 0))], config).await.unwrap();
    let address = server.local_addrs()[0];
    let shutdown = CancellationToken::new();
    let api = Arc::new(Api::new(fixture));
    tokio::spawn(server.run(Client::new(api.clone()), shutdown.clone()));
    // The first question waits for the zones.
    ask(address, "shop.example.", RecordType::SOA).await;
    Running { api, address, _stop: shutdown.drop_guard() }
}

/// Until `done`, or the test fails: what is outside of this process tells nobody when it is ready.
async fn until<T>(what: &str, mut done: impl AsyncFnMut() -> Option<T>) -> T {
    for _ in 0..200 {
        if let Some(value) = done().await {
            return value;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{what} did not happen");
}

fn accepted(object: &Value) -> (String, String) {
    let condition = &object["status"]["conditions"][0];
    (condition["status"].as_str().unwrap_or_default().into(), condition["reason"].as_str().unwrap_or_default().into())
}

#[tokio::test(flavor = "multi_thread")]
async fn records_are_served_and_told_of() {
    let dns = start(false, &[]).await;
    let at = dns.address;
    for (name, kind, expected) in [
        ("www.shop.example.", RecordType::A, vec!["192.0.2.1", "192.0.2.2"]),
        ("WWW.Shop.Example.", RecordType::AAAA, vec!["2001:db8::1"]),
        ("shop.example.", RecordType::MX, vec!["10 mail.", "20 mail2.example.org."]),
        ("shop.example.", RecordType::NS, vec!["ns1.shop.example."]),
        ("txt.shop.example.", RecordType::TXT, vec!["v=spf1 -all"]),
        ("_sip._tcp.shop.example.", RecordType::SRV, vec!["0 5 5060 www.shop.example."]),
        ("alias.shop.example.", RecordType::A, vec!["www.shop.example.", "192.0.2.1", "192.0.2.2"]),
        ("inside.shop.example.", RecordType::A, vec!["kubernetes.default.svc.cluster.local.", "10.43.0.1"]),
        ("x.y.apps.shop.example.", RecordType::A, vec!["192.0.2.9"]),
        ("a.b.deep.shop.example.", RecordType::A, vec!["192.0.2.10"]),
    ] {
        let answer = ask(at, name, kind).await;
        assert_eq!(data(&answer), expected, "{name} {kind}");
        assert!(answer.metadata.authoritative, "{name}");
    }
    for (name, kind, code) in [
        ("nothing.shop.example.", RecordType::A, ResponseCode::NXDomain),
        ("foreign.shop.example.", RecordType::A, ResponseCode::NXDomain),
        ("b.deep.shop.example.", RecordType::A, ResponseCode::NoError),
        ("www.shop.example.", RecordType::MX, ResponseCode::NoError),
        ("x.apps.shop.example.", RecordType::MX, ResponseCode::NoError),
    ] {
        let answer = ask(at, name, kind).await;
        assert_eq!((answer.metadata.response_code, answer.answers.len()), (code, 0), "{name} {kind}");
        assert_eq!(answer.authorities[0].record_type(), RecordType::SOA, "{name}");
    }
    let referral = ask(at, "host.child.shop.example.", RecordType::A).await;
    assert!(!referral.metadata.authoritative && referral.answers.is_empty());
    assert_eq!(referral.authorities[0].data.to_string(), "ns.child.shop.example.");
    assert_eq!(referral.additionals[0].data.to_string(), "192.0.2.54");
    let zone =
        until("the zone's status", async || dns.api.get("zones", "shop").filter(|z| z["status"].is_object())).await;
    assert_eq!(accepted(&zone), ("True".into(), "Served".into()));
    let soa = ask(at, "shop.example.", RecordType::SOA).await;
    let hickory_proto::rr::RData::SOA(soa) = &soa.answers[0].data else { panic!("no SOA") };
    assert_eq!(zone["status"]["serial"], soa.serial);
    for (name, reason) in
        [("www", "Served"), ("bad", "InvalidValue"), ("conflict", "Conflict"), ("foreign", "NamespaceNotAllowed")]
    {
        until(name, async || {
            let record = dns.api.get("records", name).unwrap();
            (accepted(&record).1 == reason).then_some(())
        })
        .await;
    }
    // One that comes, one that goes; the serial moves with each, and never back.
    let serial = soa.serial;
    dns.api.put("records", record("new", "new", "A", &["192.0.2.77"]));
    until("the new record", async || {
        (data(&ask(at, "new.shop.example.", RecordType::A).await) == ["192.0.2.77"]).then_some(())
    })
    .await;
    dns.api.delete("records", "new");
    until("the record's end", async || {
        let answer = ask(at, "new.shop.example.", RecordType::A).await;
        (answer.metadata.response_code == ResponseCode::NXDomain).then_some(())
    })
    .await;
    let answer = ask(at, "shop.example.", RecordType::SOA).await;
    let hickory_proto::rr::RData::SOA(soa) = &answer.answers[0].data else { panic!("no SOA") };
    assert!(soa.serial > serial + 1, "{} after {serial}", soa.serial);
}

fn run(command: &str, args: &[&str]) -> String {
    let output = Command::new(command).args(args).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

async fn dig(at: SocketAddr, args: &str) -> String {
    let line = format!("@127.0.0.1 -p {} +tries=1 +time=5 {args}", at.port());
    tokio::task::spawn_blocking(move || run("dig", &line.split(' ').collect::<Vec<_>>())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_zone_is_validated_by_delv() {
    let dns = start(true, &[]).await;
    let zone =
        until("the DS record", async || dns.api.get("zones", "shop").filter(|z| z["status"]["ds"].is_string())).await;
    let ds = zone["status"]["ds"].as_str().unwrap().to_owned();
    let words: Vec<&str> = ds.split(' ').collect();
    let folder = tempfile::tempdir().unwrap();
    let anchor = folder.path().join("anchor");
    let text = format!(
        "trust-anchors {{ \"shop.example.\" static-ds {} {} {} \"{}\"; }};\n",
        words[0], words[1], words[2], words[3]
    );
    std::fs::write(&anchor, text).unwrap();
    let port = dns.address.port().to_string();
    let delv = async |name: &str, kind: &str| {
        let args = ["@127.0.0.1", "-p", &port, "-a", anchor.to_str().unwrap(), "+root=shop.example", name, kind]
            .map(str::to_owned);
        tokio::task::spawn_blocking(move || run("delv", &args.each_ref().map(String::as_str))).await.unwrap()
    };
    for (name, kind, expected) in [
        ("www.shop.example", "A", "; fully validated"),
        ("shop.example", "MX", "; fully validated"),
        ("shop.example", "SOA", "; fully validated"),
        ("alias.shop.example", "AAAA", "; fully validated"),
        ("x.y.apps.shop.example", "A", "; fully validated"),
        ("secure.shop.example", "DS", "; fully validated"),
        ("nothing.shop.example", "A", "ncache nxdomain"),
        ("www.shop.example", "MX", "ncache nxrrset"),
        ("b.deep.shop.example", "A", "ncache nxrrset"),
        ("x.apps.shop.example", "MX", "ncache nxrrset"),
        ("child.shop.example", "DS", "ncache nxrrset"),
    ] {
        let said = delv(name, kind).await;
        assert!(said.contains(expected) && said.contains("fully validated"), "{name} {kind}: {said}");
    }
    let unsigned = dig(dns.address, "+dnssec +norec host.child.shop.example A").await;
    assert!(unsigned.contains("NSEC") && unsigned.contains("ns.child.shop.example."), "{unsigned}");
    let plain = dig(dns.address, "www.shop.example A").await;
    assert!(!plain.contains("RRSIG"), "only for who asks: {plain}");
    // Another key is not believed.
    let other = std::fs::read_to_string(&anchor).unwrap().replace(words[3], &words[3].replace(&words[3][..2], "00"));
    std::fs::write(&anchor, other).unwrap();
    let said = delv("www.shop.example", "A").await;
    assert!(!said.contains("; fully validated"), "{said}");
}

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // As a service manager would, so that its own children end with it.
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

fn free_port() -> SocketAddr {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn nsd(folder: &Path, own: SocketAddr, primary: SocketAddr) -> Daemon {
    let dir = folder.display();
    let config = format!(
        "server:\n  ip-address: 127.0.0.1@{}\n  username: \"\"\n  zonesdir: \"{dir}\"\n  database: \"\"\n  pidfile: \"{dir}/pid\"\n  \
         xfrdfile: \"{dir}/xfrd\"\n  xfrdir: \"{dir}\"\n  zonelistfile: \"{dir}/list\"\n\
         remote-control:\n  control-enable: no\n\
         key:\n  name: \"xfr\"\n  algorithm: hmac-sha256\n  secret: \"{SECRET}\"\n\
         zone:\n  name: shop.example\n  zonefile: zone\n  request-xfr: AXFR 127.0.0.1@{} xfr\n  allow-notify: 127.0.0.1 xfr\n",
        own.port(),
        primary.port()
    );
    std::fs::write(folder.join("nsd.conf"), config).unwrap();
    let mut command = Command::new("/usr/sbin/nsd");
    command.arg("-d").arg("-c").arg(folder.join("nsd.conf"));
    Daemon(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

fn knot(folder: &Path, own: SocketAddr, primary: SocketAddr) -> Daemon {
    let dir = folder.display();
    let config = format!(
        "server:\n  listen: 127.0.0.1@{}\n  rundir: \"{dir}\"\n  udp-workers: 1\n  tcp-workers: 1\n\
         database:\n  storage: \"{dir}\"\n\
         key:\n  - id: xfr\n    algorithm: hmac-sha256\n    secret: {SECRET}\n\
         remote:\n  - id: primary\n    address: 127.0.0.1@{}\n    key: xfr\n\
         acl:\n  - id: notify\n    key: xfr\n    action: notify\n\
         zone:\n  - domain: shop.example\n    storage: \"{dir}\"\n    master: primary\n    acl: notify\n",
        own.port(),
        primary.port()
    );
    std::fs::write(folder.join("knot.conf"), config).unwrap();
    let mut command = Command::new("/usr/sbin/knotd");
    command.arg("-c").arg(folder.join("knot.conf"));
    Daemon(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn secondaries_follow_by_transfer_and_notify() {
    let (nsd_at, knot_at) = (free_port(), free_port());
    let dns = start(true, &[nsd_at, knot_at]).await;
    let (nsd_folder, knot_folder) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let _nsd = nsd(nsd_folder.path(), nsd_at, dns.address);
    let _knot = knot(knot_folder.path(), knot_at, dns.address);
    let questions = [
        "+noauthority www.shop.example A",
        "+noauthority +dnssec www.shop.example AAAA",
        "+noauthority x.apps.shop.example A",
        "+dnssec no.shop.example A",
        "+dnssec b.deep.shop.example A",
    ];
    let essence = |text: String| {
        let mut lines: Vec<String> = text
            .lines()
            .filter(|line| !line.is_empty() && (!line.starts_with(';') || line.contains("status:")))
            .map(|line| line.split("id:").next().unwrap().split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        lines.sort();
        lines
    };
    for (who, at) in [("NSD", nsd_at), ("Knot", knot_at)] {
        until(who, async || dig(at, "+short www.shop.example A").await.contains("192.0.2.1").then_some(())).await;
        for question in questions {
            let ours = essence(dig(dns.address, &format!("+noadditional +norec {question}")).await);
            let theirs = essence(dig(at, &format!("+noadditional +norec {question}")).await);
            assert_eq!(ours, theirs, "{who}: {question}");
        }
    }
    dns.api.put("records", record("news", "news", "A", &["192.0.2.88"]));
    for (who, at) in [("NSD", nsd_at), ("Knot", knot_at)] {
        // Far sooner than their refresh of an hour.
        until(who, async || dig(at, "+short news.shop.example A").await.contains("192.0.2.88").then_some(())).await;
    }
    // The whole zone, for who has the key; nothing for others.
    let whole = dig(dns.address, &format!("-y hmac-sha256:xfr:{SECRET} shop.example AXFR")).await;
    assert!(whole.contains("a.b.deep.shop.example.") && !whole.contains("failed"), "{whole}");
    assert_eq!(whole.matches("\tSOA\t").count(), 2, "{whole}");
    for args in [
        "shop.example AXFR",
        "-y hmac-sha256:xfr:YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eXo= shop.example AXFR",
        &format!("-y hmac-sha256:other:{SECRET} shop.example AXFR"),
        "cluster.local AXFR",
    ] {
        let refused = dig(dns.address, args).await;
        assert!(refused.contains("failed") && !refused.contains("192.0.2"), "{args}: {refused}");
    }
}
