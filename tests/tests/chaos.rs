//! A short run of `bench/chaos.py`: everything of ours is killed at random beneath a database.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::process::Command;

use dhow_e2e::{binary, workspace};

#[test]
fn nothing_acknowledged_is_lost_whoever_is_killed() {
    let mut chaos = Command::new("python3");
    chaos.arg(workspace().join("bench/chaos.py")).arg("--binary").arg(binary().unwrap());
    chaos.arg("--images").arg(workspace().join("target/images"));
    chaos.args(["--minutes", "0.3", "--database", "redis", "--idle", "4", "--pause", "2.5", "--patience", "120"]);
    let output = chaos.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    eprintln!("{said}");
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
}
