//! The section `dns` of the settings and the name server's HTTP endpoint, with unbound as the resolvers, dig and curl.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhow_e2e::{Host, eventually, run};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
/// Speaks TLS alone.
const UPSTREAM: &str = "198.18.0.53";
/// Knows one domain.
const STUB: &str = "198.18.0.54";

struct Unbound(Child);

impl Drop for Unbound {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn unbound(host: &Host, name: &str, server: &str) -> Result<Unbound> {
    let file = host.folder().join(name);
    let config = format!(
        "server:\n  username: \"\"\n  chroot: \"\"\n  pidfile: \"\"\n  use-syslog: no\n  do-daemonize: no\n  directory: \"{}\"\n  \
         module-config: \"iterator\"\n  do-ip6: no\n  access-control: 0.0.0.0/0 allow\n{server}remote-control:\n  \
         control-enable: no\n",
        host.folder().display()
    );
    std::fs::write(&file, config)?;
    Ok(Unbound(host.spawn("unbound", &["-d", "-c", file.to_str().context("path")?])?))
}

/// An authority, and a certificate of it for dns.example.org.
fn certify(folder: &Path) -> Result<()> {
    let script = "set -e
        new='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
        openssl req -x509 $new -days 2 -subj /CN=test-authority -keyout ca.key -out ca.pem
        openssl req -new $new -subj /CN=dns.example.org -keyout dns.key -out dns.csr
        printf 'subjectAltName=DNS:dns.example.org\\n' > dns.ext
        openssl x509 -req -in dns.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile dns.ext -out dns.pem";
    run(Command::new("sh").args(["-c", script]).current_dir(folder)).map(drop)
}

fn configure(host: &Host, upstream: &str) -> Result<()> {
    let dns = json!({
        "upstreams": [upstream],
        "stubDomains": {"corp.example": [STUB]},
        "tlsCa": host.folder().join("ca.pem"),
    });
    std::fs::write(host.folder().join("config.yaml"), json!({"dns": dns}).to_string()).context("write the settings")
}

fn dig(host: &Host, name: &str, more: &[&str]) -> Result<String> {
    let answer = run(host.command("dig").args(["@10.42.0.1", "+time=3", "+tries=1", name]).args(more))?;
    Ok(answer)
}

fn answers(host: &Host, name: &str, expected: &str) -> Result<()> {
    eventually(SOON, || {
        let answer = dig(host, name, &["+short"])?;
        ensure!(answer.trim() == expected, "{name}: {answer}");
        Ok(())
    })
}

fn http(host: &Host, path: &str) -> Result<String> {
    host.curl(&[&format!("http://10.42.0.1:9153{path}")])
}

/// What a counter of the name server stands at.
fn counter(host: &Host, name: &str) -> Result<f64> {
    let metrics = http(host, "/metrics")?;
    let lines = metrics.lines().filter(|line| line.starts_with(name) && !line.starts_with('#'));
    Ok(lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
}

#[test]
fn resolvers_of_the_settings_and_the_http_endpoint() {
    let mut host = Host::new().unwrap();
    for address in [UPSTREAM, STUB] {
        run(host.command("ip").args(["addr", "add", &format!("{address}/32"), "dev", "host0"])).unwrap();
    }
    certify(host.folder()).unwrap();
    let folder = host.folder().display().to_string();
    let server = format!(
        "  interface: {UPSTREAM}@853\n  tls-service-key: \"{folder}/dns.key\"\n  tls-service-pem: \"{folder}/dns.pem\"\n  \
         local-zone: \"example.org.\" static\n  local-data: \"www.example.org. 60 IN A 192.0.2.80\"\n  \
         local-zone: \"corp.example.\" static\n"
    );
    let _upstream = unbound(&host, "upstream.conf", &server).unwrap();
    let server = format!(
        "  interface: {STUB}@53\n  local-zone: \"corp.example.\" static\n  \
         local-data: \"intranet.corp.example. 60 IN A 192.0.2.81\"\n"
    );
    let _stub = unbound(&host, "stub.conf", &server).unwrap();
    configure(&host, &format!("tls://{UPSTREAM}#dns.example.org")).unwrap();
    let config = host.folder().join("config.yaml");
    host.set("DHOW_CONFIG", config.to_str().unwrap());
    host.dhow(&["up"]).unwrap();

    answers(&host, "kubernetes.default.svc.cluster.local", "10.43.0.1").unwrap();
    answers(&host, "www.example.org", "192.0.2.80").unwrap();
    answers(&host, "intranet.corp.example", "192.0.2.81").unwrap();
    // Denials of others are passed on as such.
    let denied = dig(&host, "none.example.org", &[]).unwrap();
    assert!(denied.contains("status: NXDOMAIN"), "{denied}");

    assert_eq!(http(&host, "/healthz").unwrap(), "ok");
    assert_eq!(http(&host, "/readyz").unwrap(), "ok");
    assert!(http(&host, "/nothing").is_err());
    let (asked, hits) = ("dhow_dns_requests_total", "dhow_dns_cache_hits_total");
    let before = (counter(&host, asked).unwrap(), counter(&host, hits).unwrap());
    answers(&host, "www.example.org", "192.0.2.80").unwrap();
    let after = (counter(&host, asked).unwrap(), counter(&host, hits).unwrap());
    assert!(after.0 > before.0 && after.1 > before.1, "{before:?}, then {after:?}");
    // Every family has its head, so that a scraper knows what it is.
    let metrics = http(&host, "/metrics").unwrap();
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let name = line.split(['{', ' ']).next().unwrap();
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        let has = |name: &str| metrics.contains(&format!("# TYPE {name} "));
        assert!(has(name) || has(family), "{line}");
    }
    // Nobody outside reaches it: it is the pods' side alone that it listens on.
    let listening = run(host.command("ss").args(["-Hltn", "sport = :9153"])).unwrap();
    assert_eq!((listening.lines().count(), listening.contains("10.42.0.1:9153")), (1, true), "{listening}");

    // A resolver with a certificate for another name is not believed.
    configure(&host, &format!("tls://{UPSTREAM}#other.example.org")).unwrap();
    host.dhow(&["down"]).unwrap();
    host.dhow(&["up"]).unwrap();
    answers(&host, "intranet.corp.example", "192.0.2.81").unwrap();
    let refused = dig(&host, "www.example.org", &["+time=8"]).unwrap();
    assert!(refused.contains("status: SERVFAIL"), "{refused}");
    // A mistake in the section is told at once, by its place.
    let wrong: Value = json!({"dns": {"upstreams": ["tls://198.18.0.53"]}});
    std::fs::write(&config, wrong.to_string()).unwrap();
    host.dhow(&["down"]).unwrap();
    let said = host.dhow(&["up"]).unwrap_err().to_string();
    assert!(said.contains("dns.upstreams") && said.contains("tls://ADDRESS#NAME"), "{said}");
}
