//! The layers as the kernel sees them: mounted as overlayfs in a mount namespace of their own.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Cursor;
use std::process::Command;

use common::{Packing, TestImage, tar_of};
use dhow_image::ImageStore;

#[tokio::test]
async fn overlayfs_shows_what_the_image_means() {
    let root = tempfile::tempdir().unwrap();
    let store = ImageStore::open(&root.path().join("store")).unwrap();
    let image = TestImage::with_layers(
        Packing::Zstd,
        vec![
            tar_of(&[("a/old", b"1"), ("a/kept", b"2"), ("b/old", b"3"), ("c/deep/old", b"4"), ("f", b"low")]),
            tar_of(&[("a/.wh.old", b""), ("b/.wh..wh..opq", b""), ("b/new", b"5"), (".wh.c", b""), ("f", b"high")]),
            tar_of(&[("c/again", b"6")]),
        ],
    );
    store.import(Cursor::new(image.oci_archive("app:1"))).await.unwrap();
    let layers = store.layers(&store.get("app:1").unwrap()).await.unwrap();
    let lower: Vec<String> = layers.iter().map(|l| l.display().to_string()).collect();
    let mount = root.path().join("merged");
    std::fs::create_dir(&mount).unwrap();
    let script =
        r#"mount -t overlay overlay -o "ro,lowerdir=$1" "$2" && cd "$2" && find . -type f | LC_ALL=C sort && cat f"#;
    let output = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-euc", script, "sh", &lower.join(":")])
        .arg(&mount)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "./a/kept\n./b/new\n./c/again\n./f\nhigh");
}
