//! ClusterTrustBundles: who may publish them, and volumes that show them.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use dhow_e2e::{Host, eventually, run};
use serde_json::{Value, json};

use dhow_e2e::pods::{SOON, event, exec, pod, running};

const SERVING: &str = "kubernetes.io/kube-apiserver-serving";

pub fn test() -> Result<()> {
    let host = Host::new()?;
    crate::start(&host, "{}\n", &[])?;
    the_cluster_publishes_its_own(&host)?;
    only_its_signer_may_publish(&host)?;
    volumes_show_them(&host)?;
    crate::pod_certificates::part(&host)?;
    host.kubectl(&["delete", "pods", "--all", "--timeout=60s"])?;
    host.dhow(&["down", "--purge"])?;
    host.ensure_purged()
}

/// A certificate authority of that name, in PEM.
fn authority(name: &str, is_one: bool) -> Result<String> {
    let constraint = format!("basicConstraints=critical,CA:{}", if is_one { "TRUE" } else { "FALSE" });
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]);
    run(openssl.args(["-keyout", "/dev/null", "-days", "2", "-subj", &format!("/CN={name}"), "-addext", &constraint]))
}

fn bundle(name: &str, signer: Option<&str>, labels: Value, anchors: &[&str]) -> String {
    let mut spec = json!({"trustBundle": anchors.concat()});
    if let Some(signer) = signer {
        spec["signerName"] = json!(signer);
    }
    let metadata = json!({"name": name, "labels": labels});
    json!({"apiVersion": "certificates.k8s.io/v1beta1", "kind": "ClusterTrustBundle", "metadata": metadata, "spec": spec})
        .to_string()
}

fn blocks(text: &str) -> Vec<&str> {
    text.split_inclusive("-----END CERTIFICATE-----\n").collect()
}

fn the_cluster_publishes_its_own(host: &Host) -> Result<()> {
    let selector = format!("spec.signerName={SERVING}");
    let found = eventually(SOON, || {
        let mut found = host.get(&["get", "clustertrustbundles", "--field-selector", &selector])?;
        ensure!(found["items"].as_array().is_some_and(|items| items.len() == 1), "{found}");
        Ok(found["items"][0].take())
    })?;
    let root = host.get(&["get", "configmap", "kube-root-ca.crt"])?;
    ensure!(found["spec"]["trustBundle"] == root["data"]["ca.crt"], "{found}");
    let name = found["metadata"]["name"].as_str().context("no name")?.to_owned();
    ensure!(name.starts_with("kubernetes.io:kube-apiserver-serving:"), "{name}");
    let table = host.kubectl(&["get", "clustertrustbundles"])?;
    ensure!(table.contains("SIGNERNAME") && table.contains(SERVING), "{table}");
    // Who takes it away gets it back, and what is no authority of the cluster's goes.
    let false_one = bundle(
        &format!("{}:false", SERVING.replace('/', ":")),
        Some(SERVING),
        json!({}),
        &[&authority("false", true)?],
    );
    host.apply(&false_one)?;
    host.kubectl(&["delete", "clustertrustbundle", &name])?;
    eventually(SOON, || {
        let found = host.get(&["get", "clustertrustbundles", "--field-selector", &selector])?;
        let names: Vec<&Value> =
            found["items"].as_array().into_iter().flatten().map(|b| &b["metadata"]["name"]).collect();
        ensure!(names == [&json!(name)], "{names:?}");
        Ok(())
    })
}

fn only_its_signer_may_publish(host: &Host) -> Result<()> {
    let leaf = host.apply(&bundle("leaf", None, json!({}), &[&authority("leaf", false)?])).unwrap_err().to_string();
    ensure!(leaf.contains("entry 0 does not have the CA bit set"), "{leaf}");
    let misnamed = host.apply(&bundle("x", Some("example.com/s"), json!({}), &[&authority("x", true)?])).unwrap_err();
    ensure!(misnamed.to_string().contains("must be named with prefix example.com:s:"), "{misnamed}");
    host.kubectl(&["create", "clusterrole", "publisher", "--verb=create,get,patch", "--resource=clustertrustbundles"])?;
    host.kubectl(&["create", "clusterrolebinding", "publisher", "--clusterrole=publisher", "--user=jane"])?;
    let file = host.folder().join("bundle.json");
    std::fs::write(
        &file,
        bundle("example.com:s:v1", Some("example.com/s"), json!({"v": "1"}), &[&authority("one", true)?]),
    )?;
    let apply = ["--as=jane", "create", "-f", file.to_str().context("path")?];
    let refused = host.kubectl(&apply).unwrap_err().to_string();
    ensure!(refused.contains("user not permitted to attest for signerName \"example.com/s\""), "{refused}");
    let attest = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
        "metadata": {"name": "attester"}, "rules": [{"apiGroups": ["certificates.k8s.io"], "resources": ["signers"],
            "resourceNames": ["example.com/s"], "verbs": ["attest"]}]});
    host.apply(&attest.to_string())?;
    host.kubectl(&["create", "clusterrolebinding", "attester", "--clusterrole=attester", "--user=jane"])?;
    eventually(SOON, || host.kubectl(&apply).map(drop))?;
    // Every account of a pod may read them.
    let may = ["auth", "can-i", "watch", "clustertrustbundles", "--as=system:serviceaccount:default:default"];
    ensure!(host.kubectl(&[&may[..], &["--as-group=system:serviceaccounts"]].concat())?.trim() == "yes");
    Ok(())
}

fn volumes_show_them(host: &Host) -> Result<()> {
    let (one, two) = (authority("one", true)?, authority("two", true)?);
    host.apply(&bundle("own", None, json!({}), &[&one]))?;
    host.apply(&bundle("example.com:s:v2", Some("example.com/s"), json!({"v": "2"}), &[&two, &one]))?;
    let sources = json!([
        {"clusterTrustBundle": {"name": "own", "path": "own.pem"}},
        {"clusterTrustBundle": {"signerName": "example.com/s", "labelSelector": {}, "path": "all.pem"}},
        {"clusterTrustBundle": {"signerName": "example.com/s", "labelSelector": {"matchLabels": {"v": "2"}},
            "path": "second.pem"}},
        {"clusterTrustBundle": {"name": "absent", "optional": true, "path": "absent.pem"}},
        {"clusterTrustBundle": {"signerName": SERVING, "labelSelector": {}, "path": "api.pem"}},
    ]);
    let volumes = |sources: Value| json!({"volumes": [{"name": "trust", "projected": {"sources": sources}}]});
    let mounts = || json!({"volumeMounts": [{"name": "trust", "mountPath": "/trust", "readOnly": true}]});
    pod(host, "trusts", "sleep 1000", mounts(), volumes(sources))?;
    running(host, "trusts")?;
    let read = |name: &str| exec(host, "trusts", &format!("cat /trust/{name}"));
    ensure!(read("own.pem")? == one && read("absent.pem")?.is_empty());
    let mut wanted = [one.as_str(), two.as_str()];
    wanted.sort_unstable();
    let second = read("second.pem")?;
    let mut seen = blocks(&second);
    seen.sort_unstable();
    ensure!(seen == wanted, "{second}");
    ensure!(blocks(&read("all.pem")?).len() == 3, "the first bundle's, and two");
    // It is what the API server is known by.
    let file = host.folder().join("api.pem");
    std::fs::write(&file, read("api.pem")?)?;
    let server = host.kubectl(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"])?;
    // Who it is is known before it may refuse the stranger.
    run(host.command("curl").args(["--silent", "--show-error", "--cacert"]).arg(&file).arg(format!("{server}/livez")))?;

    // What changes shows in the pods that run.
    host.apply(&bundle("own", None, json!({}), &[&two]))?;
    host.apply(&bundle("absent", None, json!({}), &[&one]))?;
    host.kubectl(&["delete", "clustertrustbundle", "example.com:s:v1"])?;
    eventually(SOON, || {
        ensure!(read("own.pem")? == two && read("absent.pem")? == one);
        ensure!(blocks(&read("all.pem")?).len() == 2, "{}", read("all.pem")?);
        Ok(())
    })?;

    // What a volume needs is waited for, and said.
    pod(
        host,
        "waits",
        "sleep 1000",
        mounts(),
        volumes(json!([{"clusterTrustBundle": {"name": "late", "path": "p"}}])),
    )?;
    event(host, "waits", "FailedMount", "MountVolume.SetUp failed for volume \"trust\" : ")?;
    event(host, "waits", "FailedMount", "clustertrustbundle.certificates.k8s.io \"late\" not found")?;
    host.apply(&bundle("late", None, json!({}), &[&one]))?;
    running(host, "waits")?;
    let both = json!([{"clusterTrustBundle": {"name": "a", "signerName": "a.b/c", "path": "p"}}]);
    let refused = pod(host, "both", "sleep 1000", mounts(), volumes(both)).unwrap_err().to_string();
    ensure!(refused.contains("only one of name and signerName may be used"), "{refused}");
    Ok(())
}
