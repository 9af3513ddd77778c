//! Ranges of Services that are added and removed while the cloud runs, and the record of every address, by kubectl.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhow_e2e::{HOST_IP, Host, eventually, run};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

fn ready(host: &Host, name: &str) -> Result<(String, String)> {
    let cidr = host.get(&["get", "servicecidr", name])?;
    let conditions = cidr["status"]["conditions"].as_array().context("no conditions")?;
    let ready = conditions.iter().find(|one| one["type"] == "Ready").context("not said")?;
    let text = |field: &str| ready[field].as_str().unwrap_or_default().to_owned();
    Ok((text("status"), text("reason")))
}

fn service(host: &Host, name: &str, ip: &str) -> Result<Value> {
    let spec = json!({"clusterIP": ip, "ports": [{"port": 80, "targetPort": 8080}]});
    host.apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}).to_string())?;
    host.get(&["get", "service", name])
}

fn address(ip: &str, parent: &Value) -> String {
    let metadata = json!({"name": ip});
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress", "metadata": metadata, "spec": {"parentRef": parent}})
        .to_string()
}

fn extra(cidr: &str) -> String {
    let (metadata, spec) = (json!({"name": "extra"}), json!({"cidrs": [cidr]}));
    json!({"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": metadata, "spec": spec}).to_string()
}

#[test]
fn services_have_addresses_of_all_ready_ranges() {
    let host = Host::new().unwrap();
    host.dhow(&["up"]).unwrap();

    // The default range and its addresses are recorded, and protected.
    eventually(SOON, || {
        let cidr = host.get(&["get", "servicecidr", "kubernetes"])?;
        ensure!(cidr["spec"]["cidrs"] == json!(["10.43.0.0/16"]), "{cidr}");
        let finalizers = cidr["metadata"]["finalizers"].to_string();
        ensure!(finalizers.contains("networking.k8s.io/service-cidr-finalizer"), "{finalizers}");
        ensure!(ready(&host, "kubernetes")?.0 == "True", "not ready");
        let address = host.get(&["get", "ipaddress", "10.43.0.1"])?;
        let parent = json!({"group": "", "resource": "services", "namespace": "default", "name": "kubernetes"});
        let held = &address["spec"]["parentRef"];
        ensure!(parent.as_object().into_iter().flatten().all(|(k, v)| held[k] == *v || k == "group"), "{held}");
        let labels = &address["metadata"]["labels"];
        ensure!(labels["ipaddress.kubernetes.io/managed-by"] == "ipallocator.k8s.io", "{labels}");
        Ok(())
    })
    .unwrap();

    // Another range is open once it is there.
    let refused = service(&host, "early", "10.50.0.5").unwrap_err().to_string();
    assert!(refused.contains("the provided IP is not in the valid range 10.43.0.0/16"), "{refused}");
    host.apply(&extra("10.50.0.0/28")).unwrap();
    host.kubectl(&["wait", "--for=condition=Ready", "servicecidr/extra", "--timeout=30s"]).unwrap();
    let made = eventually(SOON, || service(&host, "more", "10.50.0.5")).unwrap();
    assert_eq!(made["spec"]["clusterIP"], "10.50.0.5");
    eventually(SOON, || host.kubectl(&["get", "ipaddress", "10.50.0.5"])).unwrap();
    // It is served like any other, also where nothing else leads out of the machine.
    run(host.command("ip").args(["route", "del", "default"])).unwrap();
    let mut server = host.serve("hello", 8080).unwrap();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "more", "labels": {"kubernetes.io/service-name": "more"}},
        "endpoints": [{"addresses": [HOST_IP]}], "ports": [{"port": 8080}],
    });
    let served = host.apply(&slice.to_string()).and_then(|_| eventually(SOON, || host.curl(&["http://10.50.0.5/"])));
    let _ = server.kill().and_then(|()| server.wait());
    assert_eq!(served.unwrap(), "hello");

    // A record that is removed comes back, and one that says something wrong is put right.
    host.kubectl(&["delete", "ipaddress", "10.50.0.5"]).unwrap();
    eventually(SOON, || host.kubectl(&["get", "ipaddress", "10.50.0.5"])).unwrap();

    // What people keep for something else is nobody's, and what a Service has nobody keeps.
    let gateway =
        json!({"group": "gateway.networking.k8s.io", "resource": "gateways", "namespace": "default", "name": "g"});
    host.apply(&address("10.43.0.200", &gateway)).unwrap();
    let taken = service(&host, "taken", "10.43.0.200").unwrap_err().to_string();
    assert!(taken.contains("provided IP is already allocated"), "{taken}");
    host.kubectl(&["delete", "ipaddress", "10.43.0.200"]).unwrap();
    eventually(SOON, || service(&host, "taken", "10.43.0.200")).unwrap();
    let refused = host.apply(&address("10.43.0.200", &gateway)).unwrap_err().to_string();
    assert!(refused.contains("already exists") || refused.contains("immutable"), "{refused}");

    // A range goes when the last address of it does, and gives none until then.
    host.kubectl(&["delete", "servicecidr", "extra", "--wait=false"]).unwrap();
    eventually(SOON, || {
        let (status, reason) = ready(&host, "extra")?;
        ensure!((status.as_str(), reason.as_str()) == ("False", "Terminating"), "{status} {reason}");
        Ok(())
    })
    .unwrap();
    let refused = service(&host, "late", "10.50.0.6").unwrap_err().to_string();
    assert!(refused.contains("not in the valid range"), "{refused}");
    host.kubectl(&["delete", "service", "more"]).unwrap();
    eventually(SOON, || {
        ensure!(host.kubectl(&["get", "servicecidr", "extra"]).is_err(), "still there");
        let routes = run(host.command("ip").arg("route"))?;
        ensure!(!routes.contains("10.50.0."), "still routed: {routes}");
        ensure!(host.kubectl(&["get", "ipaddress", "10.50.0.5"]).is_err(), "its address is still recorded");
        Ok(())
    })
    .unwrap();
}
