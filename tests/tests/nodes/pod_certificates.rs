//! Certificates of pods, signed here as a signer would: asked for by the node, shown in volumes, denied, and anew.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use dhow_e2e::{Host, eventually, run};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use dhow_e2e::pods::{SOON, event, exec, own, pod, running, status};

const SIGNER: &str = "example.com/pods";
const REQUESTS: &str = "podcertificaterequests";

/// In a cloud that runs.
pub fn part(host: &Host) -> Result<()> {
    let authority = Authority::new(host)?;
    let sources = json!([
        {"podCertificate": {"signerName": SIGNER, "keyType": "ED25519", "credentialBundlePath": "both.pem",
            "userAnnotations": {"example.com/name": "one"}}},
        {"podCertificate": {"signerName": SIGNER, "keyType": "ECDSAP384", "keyPath": "key.pem",
            "certificateChainPath": "chain.pem", "maxExpirationSeconds": 90000}},
    ]);
    certified(host, "certified", sources)?;
    let requests = requests(host, "certified", 2, &[])?;
    only_signers_and_nodes_say(host, &authority, &requests[0])?;
    for request in &requests {
        authority.sign(host, request, &[])?;
    }
    running(host, "certified")?;
    let first = shown(host)?;

    // An agent that has not asked itself asks anew, and disturbs nobody.
    run(Command::new("kill").args(["-9", &host.daemon_pid()?.to_string()]))?;
    host.dhow(&["up"])?;
    let old: Vec<String> = requests.iter().map(name).collect();
    for request in self::requests(host, "certified", 2, &old)? {
        authority.sign(host, &request, &[])?;
    }
    eventually(SOON, || {
        let now = shown(host)?;
        ensure!(now.iter().zip(&first).all(|(now, first)| now.1 != first.1), "the certificates are the same");
        Ok(())
    })?;
    let seen = status(host, "certified")?;
    ensure!(own(&seen)["restartCount"] == 0, "{seen:#}");

    certified(
        host,
        "denied",
        json!([{"podCertificate":
        {"signerName": SIGNER, "keyType": "ECDSAP521", "credentialBundlePath": "both.pem"}}]),
    )?;
    let denied = name(&self::requests(host, "denied", 1, &[])?[0]);
    let why = json!([{"type": "Denied", "status": "True", "reason": "UnsupportedKeyType", "message": "try ED25519"}]);
    patch(host, &denied, &json!({"conditions": why}), &[])?;
    let told = "was denied, reason=\"UnsupportedKeyType\", message=\"try ED25519\"";
    event(host, "denied", "Denied", told)?;
    let told = "PodCertificateRequest was permanently denied: reason=\"UnsupportedKeyType\" message=\"try ED25519\"";
    event(host, "denied", "FailedMount", told)?;
    let refused = certified(host, "bad", json!([{"podCertificate": {"signerName": SIGNER, "keyType": "DSA"}}]));
    let refused = refused.unwrap_err().to_string();
    ensure!(refused.contains("podCertificate.keyType: Unsupported value: \"DSA\""), "{refused}");
    ensure!(refused.contains("specify at least one of credentialBundlePath"), "{refused}");

    certified(
        host,
        "strange",
        json!([{"podCertificate":
        {"signerName": SIGNER, "keyType": "ED25519", "credentialBundlePath": "both.pem"}}]),
    )?;
    let asked = name(&self::requests(host, "strange", 1, &[])?[0]);
    let status = json!({"certificateChain": "x", "conditions": [{"type": "Issued", "status": "True", "reason": "R"}]});
    let refused = patch(host, &asked, &status, &[]).unwrap_err().to_string();
    ensure!(refused.contains("must contain at least one certificate"), "{refused}");
    Ok(())
}

fn certified(host: &Host, name: &str, sources: Value) -> Result<()> {
    let volumes = json!({"volumes": [{"name": "c", "projected": {"sources": sources}}]});
    pod(host, name, "sleep 1000", json!({"volumeMounts": [{"name": "c", "mountPath": "/c"}]}), volumes)
}

fn name(request: &Value) -> String {
    request["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

/// Waits for a pod's requests, but for some.
fn requests(host: &Host, pod: &str, count: usize, but: &[String]) -> Result<Vec<Value>> {
    let selector = format!("spec.podName={pod}");
    eventually(SOON, || {
        let found = host.get(&["get", REQUESTS, "--field-selector", &selector])?;
        let mut all = found["items"].as_array().cloned().unwrap_or_default();
        all.retain(|request| !but.contains(&name(request)));
        ensure!(all.len() == count, "{found:#}");
        Ok(all)
    })
}

fn patch(host: &Host, name: &str, status: &Value, more: &[&str]) -> Result<()> {
    let patch = json!({"status": status}).to_string();
    let args = ["patch", REQUESTS, name, "--subresource=status", "--type=merge", "-p", &patch];
    host.kubectl(&[&args[..], more].concat()).map(drop)
}

fn only_signers_and_nodes_say(host: &Host, authority: &Authority, request: &Value) -> Result<()> {
    let (spec, node) = (&request["spec"], host.get(&["get", "node", "e2e"])?);
    ensure!(spec["maxExpirationSeconds"] == 86_400 || spec["maxExpirationSeconds"] == 90_000, "{request:#}");
    ensure!(spec["nodeUID"] == node["metadata"]["uid"] && spec["serviceAccountName"] == "default", "{request:#}");
    ensure!(request["metadata"]["ownerReferences"][0]["uid"] == spec["podUID"], "{request:#}");
    // A node cannot ask in the name of another's pod, nor of a pod that is not what it says.
    let as_node = ["--as=system:node:e2e", "--as-group=system:nodes", "create", "-f"];
    for (field, value, told) in [
        ("nodeName", "other", "which is not the requesting node \"e2e\""),
        ("serviceAccountUID", "else", "has serviceAccountUID \"else\""),
    ] {
        let mut forged = json!({"apiVersion": "certificates.k8s.io/v1beta1", "kind": "PodCertificateRequest",
            "metadata": {"name": "forged", "namespace": "default"}, "spec": spec});
        forged["spec"][field] = json!(value);
        let file = host.folder().join("forged.json");
        std::fs::write(&file, forged.to_string())?;
        let refused = host.kubectl(&[&as_node[..], &[file.to_str().context("path")?]].concat());
        let refused = refused.unwrap_err().to_string();
        ensure!(refused.contains(told), "{refused}");
    }
    // Who may write the status may not sign for everybody.
    host.kubectl(&["create", "clusterrole", "writer", "--verb=get,patch", &format!("--resource={REQUESTS}/status")])?;
    host.kubectl(&["create", "clusterrolebinding", "writer", "--clusterrole=writer", "--user=john"])?;
    eventually(SOON, || {
        let refused = authority.sign(host, request, &["--as=john"]).unwrap_err().to_string();
        ensure!(
            refused.contains(r#"User "john" is not permitted to "sign" for signer "example.com/pods""#),
            "{refused}"
        );
        Ok(())
    })
}

/// Key and certificate of each kind of source, by the kind, as the pod sees them; they belong to each other.
fn shown(host: &Host) -> Result<BTreeMap<&'static str, String>> {
    let kinds = [("bundle", "/c/both.pem", "/c/both.pem"), ("files", "/c/key.pem", "/c/chain.pem")];
    kinds.into_iter().map(|(kind, key, chain)| Ok((kind, pair(host, "certified", key, chain)?))).collect()
}

/// The public key of these files of a pod.
fn pair(host: &Host, pod: &str, key: &str, chain: &str) -> Result<String> {
    let of = |command: &str, file: &str| -> Result<String> {
        let place = host.folder().join("shown.pem");
        std::fs::write(&place, exec(host, pod, &format!("cat {file}"))?)?;
        run(Command::new("openssl").args(command.split(' ')).arg("-in").arg(&place))
    };
    let public = of("pkey -pubout", key)?;
    ensure!(public == of("x509 -pubkey -noout", chain)?, "{key} and {chain} are of two pairs");
    Ok(public)
}

/// In a cloud whose clock is set forward: by the rules of the API no certificate is old enough within five minutes, and then
/// nodes take up to five minutes more, so that not all ask at once.
pub fn renews() -> Result<()> {
    let mut host = Host::new()?;
    let clock = host.folder().join("clock");
    std::fs::write(&clock, "+0")?;
    host.set("LD_PRELOAD", &clock_library()?);
    host.set("FAKETIME_TIMESTAMP_FILE", &clock.to_string_lossy());
    host.set("FAKETIME_CACHE_DURATION", "1");
    host.set("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    crate::start(&host, "{}\n", &[])?;
    let authority = Authority::new(&host)?;
    certified(
        &host,
        "renewed",
        json!([{"podCertificate":
        {"signerName": SIGNER, "keyType": "ED25519", "credentialBundlePath": "both.pem"}}]),
    )?;
    let now = || pair(&host, "renewed", "/c/both.pem", "/c/both.pem");
    let asked = requests(&host, "renewed", 1, &[])?;
    authority.sign_until(&host, &asked[0], MARGIN, &[])?;
    running(&host, "renewed")?;
    let first = now()?;

    // The agent sleeps by a clock that cannot be set, so a change of the pod wakes it.
    std::fs::write(&clock, "+16m")?;
    let begun = Timestamp::now();
    eventually(SOON, || {
        let seen = run(host.command("date").arg("+%s"))?.trim().parse::<i64>()?;
        ensure!(seen - begun.as_second() > 900, "the clock was not set");
        Ok(())
    })?;
    let old: Vec<String> = asked.iter().map(name).collect();
    let again = eventually(SOON, || {
        host.kubectl(&["annotate", "pod", "renewed", "--overwrite", &format!("at={}", Timestamp::now())])?;
        let found = host.get(&["get", REQUESTS])?;
        let all = found["items"].as_array().context("no requests")?;
        all.iter().find(|request| !old.contains(&name(request))).cloned().context("nothing is asked for")
    })?;
    ensure!(now()? == first, "the old certificate went before the new one came");
    authority.sign_until(&host, &again, MARGIN, &[])?;
    eventually(SOON, || {
        ensure!(now()? != first, "the certificate is the same");
        Ok(())
    })?;
    let seen = status(&host, "renewed")?;
    ensure!(own(&seen)["restartCount"] == 0, "{seen:#}");
    ensure!(requests(&host, "renewed", 1, &old)?.iter().map(name).eq([name(&again)]), "it was asked for once more");
    host.kubectl(&["delete", "pods", "--all", "--timeout=60s"]).map(drop)
}

/// The shortest time that the API allows between a certificate's beginning and its renewal.
const MARGIN: SignedDuration = SignedDuration::from_mins(10);

/// What gives programs another time than the machine's.
fn clock_library() -> Result<String> {
    let found = run(Command::new("find").args(["/usr/lib", "-name", "libfaketimeMT.so.1"]))?;
    found.lines().next().map(str::to_owned).context("faketime is not installed")
}

/// A signer's own authority.
struct Authority {
    folder: std::path::PathBuf,
}

impl Authority {
    fn new(host: &Host) -> Result<Self> {
        let own = Self { folder: host.folder().to_owned() };
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days"]);
        run(openssl
            .args(["2", "-subj", "/CN=pods", "-keyout"])
            .arg(own.at("ca.key"))
            .arg("-out")
            .arg(own.at("ca.pem")))?;
        Ok(own)
    }

    fn at(&self, name: &str) -> std::path::PathBuf {
        self.folder.join(name)
    }

    /// Gives the request what it asks for, for a day, to be renewed after the half.
    fn sign(&self, host: &Host, request: &Value, more: &[&str]) -> Result<()> {
        self.sign_until(host, request, SignedDuration::from_hours(12), more)
    }

    /// The same, to be renewed after that time, by the clock of the host.
    fn sign_until(&self, host: &Host, request: &Value, renewal: SignedDuration, more: &[&str]) -> Result<()> {
        let key = request["spec"]["pkixPublicKey"].as_str().context("no key")?;
        std::fs::write(self.at("asked.pem"), format!("-----BEGIN PUBLIC KEY-----\n{key}\n-----END PUBLIC KEY-----\n"))?;
        let mut openssl = host.command("openssl");
        openssl.args(["x509", "-new", "-days", "1", "-subj", "/CN=pod", "-force_pubkey"]).arg(self.at("asked.pem"));
        openssl.arg("-CA").arg(self.at("ca.pem")).arg("-CAkey").arg(self.at("ca.key"));
        run(openssl.arg("-out").arg(self.at("given.pem")))?;
        let chain = std::fs::read_to_string(self.at("given.pem"))?;
        let mut openssl = Command::new("openssl");
        openssl.args(["x509", "-noout", "-startdate", "-enddate", "-dateopt", "iso_8601", "-in"]);
        let dates = run(openssl.arg(self.at("given.pem")))?;
        let date = |name: &str| -> Result<String> {
            let found = dates.lines().find_map(|line| line.strip_prefix(name)).context("no date")?;
            Ok(found.replace(' ', "T"))
        };
        let (begins, ends) = (date("notBefore=")?, date("notAfter=")?);
        let refresh = begins.parse::<Timestamp>()? + renewal;
        let status = json!({"certificateChain": format!("made here\n{chain}"), "notBefore": begins, "notAfter": ends,
            "beginRefreshAt": refresh.to_string(),
            "conditions": [{"type": "Issued", "status": "True", "reason": "Issued", "message": "so it is"}]});
        patch(host, &name(request), &status, more)
    }
}
