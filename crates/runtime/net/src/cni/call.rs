//! One call of a plugin: a program, what it is told by environment and standard input, and what it says.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

/// A plugin that hangs must not hold up a pod's end for ever.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Check,
    Del,
    Gc,
}

impl Verb {
    fn command(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
            Self::Gc => "GC",
        }
    }

    /// As errors have it.
    fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Check => "check",
            Self::Del => "delete",
            Self::Gc => "gc",
        }
    }
}

/// What a plugin is told of the container.
#[derive(Debug, Clone, Default)]
pub(crate) struct Container<'a> {
    pub id: &'a str,
    /// `None` when it is gone.
    pub netns: Option<&'a Path>,
    pub interface: &'a str,
    /// `KEY=value;…`
    pub args: &'a str,
}

/// Where plugins are, and in whose network they work.
#[derive(Debug)]
pub(crate) struct Plugins {
    pub folders: Vec<PathBuf>,
    pub host_netns: Option<OwnedFd>,
}

impl Plugins {
    /// Whether the plugin that `told` names is there.
    pub fn find(&self, verb: Verb, told: &Value) -> Result<(), String> {
        let kind = told["type"].as_str().unwrap_or_default();
        self.program(kind).map(drop).map_err(|why| failed(verb, kind, &why))
    }

    /// Runs the plugin that `told` names; returns what it printed. Errors are in the plugin's own words.
    pub async fn call(&self, verb: Verb, container: &Container<'_>, told: &Value) -> Result<Value, String> {
        let kind = told["type"].as_str().unwrap_or_default();
        let said = self.run(verb, container, kind, told).await;
        said.map_err(|why| failed(verb, kind, &why))
    }

    async fn run(&self, verb: Verb, container: &Container<'_>, kind: &str, told: &Value) -> Result<Value, String> {
        let program = self.program(kind)?;
        let folders = std::env::join_paths(&self.folders).unwrap_or_default();
        let mut command = tokio::process::Command::new(&program);
        command
            .env("CNI_COMMAND", verb.command())
            .env("CNI_CONTAINERID", container.id)
            .env("CNI_NETNS", container.netns.map_or_else(OsString::new, |path| path.as_os_str().to_owned()))
            .env("CNI_IFNAME", container.interface)
            .env("CNI_ARGS", container.args)
            .env("CNI_PATH", folders)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(netns) = &self.host_netns {
            let netns = netns.try_clone().map_err(|error| error.to_string())?;
            let enter = move || Ok(move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?);
            // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
            unsafe { command.pre_exec(enter) };
        }
        let mut child = command.spawn().map_err(|error| format!("start {}: {error}", program.display()))?;
        let ended = async {
            if let Some(mut input) = child.stdin.take() {
                // One that does not read it all has its own reasons.
                let _ = input.write_all(told.to_string().as_bytes()).await;
            }
            child.wait_with_output().await
        };
        let output = match tokio::time::timeout(PATIENCE, ended).await {
            Ok(output) => output.map_err(|error| error.to_string())?,
            Err(_) => return Err(format!("no answer within {} seconds", PATIENCE.as_secs())),
        };
        if output.status.success() {
            return match output.stdout.trim_ascii() {
                b"" => Ok(Value::Null),
                said => serde_json::from_slice(said).map_err(|error| format!("its answer cannot be read: {error}")),
            };
        }
        Err(failure(&output.stdout, &output.stderr, output.status))
    }

    fn program(&self, kind: &str) -> Result<PathBuf, String> {
        if kind.is_empty() || kind.contains('/') {
            return Err(format!("invalid plugin name: {kind}"));
        }
        let candidates = self.folders.iter().map(|folder| folder.join(kind));
        candidates.into_iter().find(|path| path.is_file()).ok_or_else(|| {
            let folders: Vec<String> = self.folders.iter().map(|folder| folder.display().to_string()).collect();
            format!("failed to find plugin {kind:?} in path [{}]", folders.join(" "))
        })
    }
}

fn failed(verb: Verb, kind: &str, why: &str) -> String {
    format!("plugin type={kind:?} failed ({}): {why}", verb.name())
}

/// What went wrong, as the plugin says it.
fn failure(stdout: &[u8], stderr: &[u8], status: std::process::ExitStatus) -> String {
    let said: Option<Value> = serde_json::from_slice(stdout).ok();
    let part = |key: &str| said.as_ref().and_then(|said| said[key].as_str()).filter(|text| !text.is_empty());
    match (part("msg"), part("details")) {
        (Some(message), Some(details)) => format!("{message}; {details}"),
        (Some(message), None) => message.to_owned(),
        (None, _) => {
            let [out, err] = [stdout, stderr].map(|text| String::from_utf8_lossy(text).trim().to_owned());
            let text = if err.is_empty() { out } else { err };
            match text.is_empty() {
                true => format!("netplugin failed with no error message: {status}"),
                false => format!("netplugin failed: {text:?}"),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use serde_json::json;

    use super::*;

    fn plugin(folder: &Path, name: &str, script: &str) {
        let path = folder.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[tokio::test]
    async fn plugins_are_told_everything_and_speak_for_themselves() {
        let folder = tempfile::tempdir().unwrap();
        plugin(
            folder.path(),
            "tells",
            r#"read told; printf '{"command":"%s %s %s %s %s","told":%s}' "$CNI_COMMAND" "$CNI_CONTAINERID" "$CNI_NETNS" "$CNI_IFNAME" "$CNI_ARGS" "$told""#,
        );
        plugin(
            folder.path(),
            "refuses",
            r#"echo '{"code": 7, "msg": "no addresses left", "details": "in 10.0.0.0/30"}'; exit 1"#,
        );
        plugin(folder.path(), "crashes", "echo 'panic: nil map' >&2; exit 2");
        plugin(folder.path(), "silent", "exit 3");
        plugin(folder.path(), "babbles", "echo oops");
        let plugins = Plugins { folders: vec!["/nonexistent".into(), folder.path().to_owned()], host_netns: None };
        let container =
            Container { id: "c1", netns: Some(Path::new("/n")), interface: "eth0", args: "K8S_POD_NAME=web" };
        let call = async |kind: &str| plugins.call(Verb::Add, &container, &json!({"type": kind})).await;
        let said = call("tells").await.unwrap();
        assert_eq!(said, json!({"command": "ADD c1 /n eth0 K8S_POD_NAME=web", "told": {"type": "tells"}}));
        for (kind, says) in [
            ("refuses", "plugin type=\"refuses\" failed (add): no addresses left; in 10.0.0.0/30".to_owned()),
            ("crashes", "plugin type=\"crashes\" failed (add): netplugin failed: \"panic: nil map\"".to_owned()),
            (
                "absent",
                format!(
                    "plugin type=\"absent\" failed (add): failed to find plugin \"absent\" in path [/nonexistent {}]",
                    folder.path().display()
                ),
            ),
            ("../x", "plugin type=\"../x\" failed (add): invalid plugin name: ../x".to_owned()),
        ] {
            assert_eq!(call(kind).await.unwrap_err(), says);
        }
        assert!(call("silent").await.unwrap_err().contains("no error message: exit status: 3"));
        assert!(call("babbles").await.unwrap_err().contains("cannot be read"));
    }
}
