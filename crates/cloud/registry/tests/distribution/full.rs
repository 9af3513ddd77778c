//! A disk that fills up: pushes are told, nothing half remains, and with space again they go on. The small disk is a tmpfs in
//! a mount namespace of its own, which takes root.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use dhow_image::Digest;
use dhow_registry::{Config, Everyone, Registry};
use dhow_store::{FsBlob, MemoryKv};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::harness::{Web, files, noise};

const CHILD: &str = "DHOW_REGISTRY_FULL_CHILD";

/// Not a test by itself: what happens on the small disk.
#[tokio::test]
async fn on_a_small_disk() {
    let Some(root) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    let config = Config { grace: Duration::ZERO, ..Config::default() };
    let blobs = Arc::new(FsBlob::open(&root).unwrap());
    let registry =
        Registry::open(config, Arc::new(MemoryKv::new()), blobs, Arc::new(Everyone::default())).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let web = Web::new(&listener.local_addr().unwrap().to_string());
    tokio::spawn(registry.clone().serve(listener, None, CancellationToken::new()));
    let mut kept = Vec::new();
    let refused = loop {
        let bytes = noise(kept.len() as u64, 1_500_000);
        let digest = Digest::of(&bytes);
        let location = web.begin("a").await;
        let reply = match kept.len() % 2 {
            0 => web.send("PUT", &format!("{location}?digest={digest}"), &[], bytes.clone()).await,
            _ => match web.send("PATCH", &location, &[], bytes.clone()).await {
                sent if sent.status.is_success() => {
                    web.send("PUT", &format!("{location}?digest={digest}"), &[], "").await
                }
                refused => refused,
            },
        };
        if !reply.status.is_success() {
            break reply;
        }
        kept.push((digest, bytes));
        assert!(kept.len() < 20, "the disk never fills up");
    };
    refused.expect(507);
    assert!(kept.len() > 2);
    assert_eq!((files(&root.join(".uploads")), files(&root.join("blobs"))), (0, kept.len()));
    for (digest, bytes) in &kept {
        assert!(web.get(&format!("/v2/a/blobs/{digest}")).await.expect(200).body == bytes[..]);
    }
    registry.collect().await.unwrap();
    web.push_blob("a", &noise(77, 1_500_000)).await;
}

#[test]
fn a_full_disk_is_told_and_leaves_nothing_half() {
    let dir = tempfile::tempdir().unwrap();
    let script =
        "mount -t tmpfs -o size=8m none \"$1\" || exit 77; exec \"$2\" --exact full::on_a_small_disk --nocapture";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .env(CHILD, dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) || text.contains("unshare failed") {
        eprintln!("skipped: making a small disk takes root: {text}");
        return;
    }
    assert!(output.status.success(), "{text}");
}
