//! The plugin: one short-lived process per call.
#![allow(clippy::print_stdout)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Failure, INVALID_CONFIG, INVALID_ENVIRONMENT, IO_FAILURE, Request, TRY_AGAIN, TYPE, VERSIONS};

/// How long the daemon may take. Runtimes give up later than this.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether this process was started as the plugin, or as the loopback plugin that containerd wants beside any other.
pub fn asked_for() -> bool {
    let name = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&name).file_name().unwrap_or_default().to_owned();
    std::env::var_os("CNI_COMMAND").is_some() && (name == TYPE || name == "loopback")
}

/// Does what the environment says and prints what CNI wants to hear.
pub fn main() -> ExitCode {
    let variable = |name: &str| std::env::var(name).unwrap_or_default();
    if variable("CNI_COMMAND") == "VERSION" {
        println!("{}", json!({"cniVersion": "1.0.0", "supportedVersions": VERSIONS}));
        return ExitCode::SUCCESS;
    }
    let mut text = String::new();
    let read = std::io::stdin().read_to_string(&mut text).map_err(|error| error.to_string());
    let config: Result<Value, String> =
        read.and_then(|_| serde_json::from_str(&text).map_err(|error| error.to_string()));
    let answer = match config {
        Ok(config) => call(Request {
            command: variable("CNI_COMMAND"),
            container: variable("CNI_CONTAINERID"),
            netns: variable("CNI_NETNS"),
            interface: variable("CNI_IFNAME"),
            args: variable("CNI_ARGS"),
            config,
        }),
        Err(error) => Err(Failure::new(INVALID_CONFIG, "read the network configuration", error)),
    };
    match answer {
        Ok(Value::Null) => ExitCode::SUCCESS,
        Ok(result) => {
            println!("{result}");
            ExitCode::SUCCESS
        }
        Err(failure) => {
            println!(
                "{}",
                json!({"cniVersion": "1.0.0", "code": failure.code, "msg": failure.msg, "details": failure.details})
            );
            ExitCode::FAILURE
        }
    }
}

fn call(request: Request) -> Result<Value, Failure> {
    if request.config["type"] == "loopback" {
        return loopback(&request);
    }
    let Some(socket) = request.config["socket"].as_str() else {
        return Err(Failure::new(INVALID_CONFIG, "the network configuration names no socket of dhow", ""));
    };
    let unreachable = |error: std::io::Error| {
        Failure::new(TRY_AGAIN, "dhow does not answer; is it running?", format!("{socket}: {error}"))
    };
    let mut stream = UnixStream::connect(socket).map_err(unreachable)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(unreachable)?;
    let failed = |error: &dyn ToString| Failure::new(IO_FAILURE, "ask dhow for a network", error.to_string());
    let text = serde_json::to_vec(&request).map_err(|error| failed(&error))?;
    stream
        .write_all(&text)
        .and_then(|()| stream.shutdown(std::net::Shutdown::Write))
        .map_err(|error| failed(&error))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).map_err(|error| failed(&error))?;
    let answer: Result<Value, Failure> = serde_json::from_str(&answer).map_err(|error| failed(&error))?;
    answer
}

/// Brings the namespace's own interface up.
fn loopback(request: &Request) -> Result<Value, Failure> {
    if request.command != "ADD" {
        return Ok(Value::Null);
    }
    let up = Command::new("nsenter")
        .arg(format!("--net={}", request.netns))
        .args(["ip", "link", "set", "lo", "up"])
        .output()
        .map_err(|error| Failure::new(IO_FAILURE, "run nsenter", error))?;
    if !up.status.success() {
        let text = String::from_utf8_lossy(&up.stderr).into_owned();
        return Err(Failure::new(INVALID_ENVIRONMENT, "bring up loopback", text));
    }
    Ok(json!({
        "cniVersion": request.config["cniVersion"],
        "interfaces": [{"name": "lo", "mac": "00:00:00:00:00:00", "sandbox": request.netns}],
        "ips": [{"address": "127.0.0.1/8", "interface": 0}],
    }))
}
