//! What kubectl's attach, run and cp carry into containers and out of them.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, ensure};
use dhow_e2e::{Host, eventually};
use serde_json::json;

use dhow_e2e::pods::{IMAGE, SOON, nothing, pod, running};

pub fn attaches_and_copies(host: &Host) -> Result<()> {
    let image = format!("--image={IMAGE}");
    let mut command = host.command("kubectl");
    command.args([
        "run",
        "echo",
        &image,
        "-i",
        "--rm",
        "--restart=Never",
        "--image-pull-policy=IfNotPresent",
        "--",
        "sh",
        "-c",
        "read x; echo got $x",
    ]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    child.stdin.take().context("no input")?.write_all(b"hello\n")?;
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains("got hello"), "{text} {}", String::from_utf8_lossy(&output.stderr));
    pod(host, "files", "sleep 1000", nothing(), nothing())?;
    running(host, "files")?;
    let (from, to) = (host.folder().join("from"), host.folder().join("to"));
    std::fs::create_dir_all(from.join("deep"))?;
    std::fs::write(from.join("deep/file"), "contents")?;
    host.kubectl(&["cp", from.to_str().context("path")?, "files:/tmp/there"])?;
    host.kubectl(&["cp", "files:/tmp/there", to.to_str().context("path")?])?;
    ensure!(std::fs::read_to_string(to.join("deep/file"))? == "contents", "copied there and back");
    Ok(())
}

/// A container's input ends with a client that gave some, if it is to be given once; not with one that looks on.
pub fn ends_input_with_the_one_that_gave_it(host: &Host) -> Result<()> {
    let attach = |pod: &str, args: &[&str]| -> Result<Child> {
        let mut command = host.command("kubectl");
        command.args(["attach", pod]).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command.spawn()?)
    };
    let hears = |child: &mut Child, text: &str| -> Result<()> {
        let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        ensure!(lines.any(|line| line.is_ok_and(|line| line.contains(text))), "{text:?} was not heard");
        Ok(())
    };
    let leave = |mut child: Child| -> Result<()> {
        child.kill()?;
        child.wait().map(drop).map_err(Into::into)
    };
    let script = "while read line; do echo heard $line; done; echo over; while :; do echo ticks; sleep 0.2; done";
    for (name, once) in [("once", true), ("often", false)] {
        pod(
            host,
            name,
            &format!("(while sleep 0.2; do echo waits; done) & {script}"),
            json!({"stdin": true, "stdinOnce": once}),
            nothing(),
        )?;
        running(host, name)?;
        let mut looks_on = attach(name, &[])?;
        hears(&mut looks_on, "waits")?;
        leave(looks_on)?;
        let mut gives = attach(name, &["-i"])?;
        gives.stdin.as_mut().context("no input")?.write_all(b"one\n")?;
        hears(&mut gives, "heard one")?;
        leave(gives)?;
    }
    eventually(SOON, || {
        let said = host.kubectl(&["logs", "once"])?;
        ensure!(said.contains("over"), "the input goes on: {said}");
        Ok(())
    })?;
    let mut again = attach("often", &["-i"])?;
    again.stdin.as_mut().context("no input")?.write_all(b"two\n")?;
    hears(&mut again, "heard two")?;
    leave(again)?;
    let said = host.kubectl(&["logs", "often"])?;
    ensure!(!said.contains("over"), "the input ended: {said}");
    host.kubectl(&["delete", "pods", "once", "often", "--now"]).map(drop)
}
