//! A cloud on its embedded store moves to etcd and loses nothing, not even the trust of those who watch it.
#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use dhow_e2e::servers::{Etcd, Server};

/// What a command says when it fails with this exit code.
fn refusal(server: &Server, args: &[&str], flags: &[String]) -> Result<String> {
    let output = server.command(args, flags)?.output()?;
    ensure!(output.status.code() == Some(1), "{args:?} ended with {}", output.status);
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn version(server: &Server) -> Result<u64> {
    let list = server.kubectl(&["get", "--raw", "/api/v1/namespaces/default/configmaps?limit=1"])?;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    Ok(list["metadata"]["resourceVersion"].as_str().unwrap_or_default().parse()?)
}

#[test]
fn an_embedded_cloud_moves_to_etcd() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::new(folder.path(), "a").unwrap();
    server.start(&[]).unwrap();
    server.kubectl(&["create", "configmap", "kept", "--from-literal=k=v"]).unwrap();
    server.kubectl(&["create", "secret", "generic", "hidden", "--from-literal=word=unspoken"]).unwrap();
    server.kubectl(&["create", "deployment", "web", "--image=image.invalid/web:1"]).unwrap();
    let uid = ["get", "configmap", "kept", "-o", "jsonpath={.metadata.uid}"];
    let (kept, before) = (server.kubectl(&uid).unwrap(), version(&server).unwrap());

    let etcd = Etcd::start(&folder.path().join("etcd")).unwrap();
    let migrate = ["server", "migrate-store"];
    let running = refusal(&server, &migrate, &etcd.flags).unwrap();
    assert!(running.contains("dhow down"), "{running}");
    server.terminate().unwrap();
    let output = server.command(&migrate, &etcd.flags).unwrap().output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && told.contains("resource versions go on"), "{told}");

    // The old store is not used again by mistake; who repeats the move does no harm.
    let moved = refusal(&server, &["server"], &[]).unwrap();
    assert!(moved.contains("was moved to etcd://"), "{moved}");
    assert!(server.command(&migrate, &etcd.flags).unwrap().output().unwrap().status.success());

    server.start(&etcd.flags).unwrap();
    assert_eq!(server.kubectl(&uid).unwrap(), kept);
    let word = server.kubectl(&["get", "secret", "hidden", "-o", "jsonpath={.data.word}"]).unwrap();
    assert_eq!(word, "dW5zcG9rZW4=");
    // Versions go on, and whoever remembers one from before is told to list again.
    assert!(version(&server).unwrap() > before);
    let path = format!("/api/v1/configmaps?watch=true&timeoutSeconds=1&resourceVersion={before}");
    let expired = server.kubectl(&["get", "--raw", &path]).unwrap();
    assert!(expired.contains("\"ERROR\"") && expired.contains("410"), "{expired}");
    // Optimistic writes from before do not win either.
    let stale = format!(r#"{{"metadata":{{"resourceVersion":"{before}"}},"data":{{"k":"stale"}}}}"#);
    let refused = server.kubectl(&["patch", "configmap", "kept", "--type=merge", "-p", &stale]).unwrap_err();
    assert!(format!("{refused:#}").contains("the object has been modified"), "{refused:#}");
    // It goes on as a cluster, and others join it.
    server.kubectl(&["patch", "configmap", "kept", "--type=merge", "-p", r#"{"data":{"k":"new"}}"#]).unwrap();
    let mut second = Server::new(folder.path(), "b").unwrap();
    let mut flags = etcd.flags.clone();
    flags.extend(["--token-file".to_owned(), server.token_file().display().to_string()]);
    second.start(&flags).unwrap();
    let value = second.kubectl(&["get", "configmap", "kept", "-o", "jsonpath={.data.k}"]).unwrap();
    assert_eq!(value, "new");
    // Keys are not changed under running servers; where all are stopped they are, for all.
    let busy = refusal(&server, &["server", "rotate-keys"], &etcd.flags).unwrap();
    assert!(busy.contains("dhow down"), "{busy}");
    server.terminate().unwrap();
    let busy = refusal(&server, &["server", "rotate-keys"], &etcd.flags).unwrap();
    assert!(busy.contains("a server of the cluster runs at"), "{busy}");
    second.terminate().unwrap();
    let rotated = server.command(&["server", "rotate-keys"], &etcd.flags).unwrap().output().unwrap();
    assert!(rotated.status.success(), "{}", String::from_utf8_lossy(&rotated.stderr));
    second.start(&etcd.flags).unwrap();
    assert_eq!(second.kubectl(&["get", "secret", "hidden", "-o", "jsonpath={.data.word}"]).unwrap(), word);
    second.terminate().unwrap();

    // What is another cluster's is left alone.
    let mut other = Server::new(folder.path(), "c").unwrap();
    other.start(&[]).unwrap();
    other.terminate().unwrap();
    let refused = refusal(&other, &migrate, &etcd.flags).unwrap();
    assert!(refused.contains("hold another cluster"), "{refused}");
    other.start(&[]).unwrap();
}
