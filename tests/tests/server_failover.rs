//! A machine that joined by one server goes on with another when that one is killed, and when it is silent.
//!
//! Two servers on one etcd, which runs on the machine that is the node; the servers reach it as if it were on theirs.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::fs::File;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use dhow_e2e::machines::{Machine, Machines};
use dhow_e2e::{eventually, run, workspace};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);
const STORE: [&str; 2] = ["--store", "etcd+http://127.0.0.1:2379"];
/// Passes connections to 127.0.0.1:2379 on to another machine.
const FORWARD: &str = "
import asyncio, sys
async def pump(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    writer.close()
async def serve(reader, writer):
    try:
        there = await asyncio.open_connection(sys.argv[1], 2379)
    except OSError:
        return writer.close()
    await asyncio.gather(pump(reader, there[1]), pump(there[0], writer))
async def main():
    await (await asyncio.start_server(serve, '127.0.0.1', 2379)).serve_forever()
asyncio.run(main())
";

/// Ends with the test.
struct Running(Child);

impl Running {
    fn kill(mut self) -> Result<()> {
        self.0.kill().context("kill it")?;
        self.0.wait().context("wait for it").map(drop)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(machine: &Machine, program: &str, args: &[&str]) -> Result<Running> {
    let log = machine.data_dir().with_file_name("other.log");
    let log = File::options().create(true).append(true).open(log).context("open a log")?;
    let mut command = machine.command(program);
    command.args(args).stdout(Stdio::null()).stderr(log);
    Ok(Running(command.spawn().with_context(|| format!("start {program}"))?))
}

fn binary() -> Result<String> {
    let here = std::env::current_exe().context("find the test executable")?;
    let binary = here.ancestors().nth(2).context("find the target folder")?.join("dhow");
    Ok(binary.display().to_string())
}

fn kubectl(server: &Machine, args: &[&str]) -> Result<String> {
    let config = server.data_dir().join("admin.kubeconfig");
    run(server.command("kubectl").arg("--kubeconfig").arg(config).args(["--request-timeout", "10s"]).args(args))
}

fn get(server: &Machine, args: &[&str]) -> Result<Value> {
    serde_json::from_str(&kubectl(server, &[args, &["-o", "json"]].concat())?).context("read kubectl's JSON")
}

fn serve(machine: &Machine, more: &[&str]) -> Result<Running> {
    let started = start(machine, &binary()?, &[&["server"][..], &STORE, more].concat())?;
    eventually(SOON, || kubectl(machine, &["get", "--raw", "/readyz"]).map(drop))?;
    Ok(started)
}

fn known(node: &Machine) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(node.data_dir().join("node-pki/servers")).context("read the list")?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// The node is heard of again, through this server.
fn is_heard(server: &Machine) -> Result<()> {
    let renewed = || -> Result<Value> {
        Ok(get(server, &["-n", "kube-node-lease", "get", "lease", "m2"])?["spec"]["renewTime"].clone())
    };
    let begin = Instant::now();
    let before = eventually(SOON, renewed)?;
    eventually(SOON, || {
        ensure!(renewed()? != before, "the lease is not renewed");
        Ok(())
    })?;
    eprintln!("heard of after {} ms", begin.elapsed().as_millis());
    kubectl(server, &["wait", "--for=condition=Ready", "node/m2", "--timeout=30s"]).map(drop)
}

/// It runs a new pod, which is reached by exec, and whose name server knows a new service.
fn works(server: &Machine, name: &str) -> Result<()> {
    let arguments = ["run", name, "--image=docker.io/library/busybox:latest", "--image-pull-policy=Never"];
    eventually(SOON, || kubectl(server, &[&arguments[..], &["--restart=Never", "--", "sleep", "100000"]].concat()))?;
    kubectl(server, &["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"])?;
    kubectl(server, &["expose", "pod", name, "--port=80", &format!("--name={name}")])?;
    let address = get(server, &["get", "service", name])?["spec"]["clusterIP"].as_str().context("none")?.to_owned();
    eventually(SOON, || {
        let found = kubectl(server, &["exec", name, "--", "nslookup", &format!("{name}.default.svc.cluster.local")])?;
        ensure!(found.contains(&address), "{found}");
        Ok(())
    })
}

#[test]
fn a_node_goes_on_with_another_server() {
    let machines = Machines::new(2).unwrap();
    let [a, b, node] = machines.all.as_slice() else { panic!("three machines") };
    let folder = node.data_dir().with_file_name("etcd");
    let etcd = ["--data-dir", folder.to_str().unwrap(), "--log-level", "error", "--listen-peer-urls"];
    let urls = ["http://127.0.0.1:2380", "--listen-client-urls", "http://0.0.0.0:2379", "--advertise-client-urls"];
    let _etcd = start(node, "etcd", &[&etcd[..], &urls, &["http://127.0.0.1:2379"]].concat()).unwrap();
    let _forwards = [a, b].map(|machine| start(machine, "python3", &["-c", FORWARD, &node.address]).unwrap());
    eventually(SOON, || {
        run(a.command("curl").args(["-sf", "--max-time", "2", "http://127.0.0.1:2379/health"])).map(drop)
    })
    .unwrap();

    let first = serve(a, &[]).unwrap();
    let token = a.data_dir().with_file_name("server-token");
    std::fs::write(&token, a.dhow(&["server", "token"]).unwrap()).unwrap();
    let second = serve(b, &["--token-file", token.to_str().unwrap()]).unwrap();

    let config = a.data_dir().join("admin.kubeconfig");
    let config = ["--kubeconfig", config.to_str().unwrap()];
    let token = a.dhow(&[&["token", "create", "--ttl", "1h"][..], &config].concat()).unwrap();
    node.dhow(&["join", "https://198.18.0.1:6443", "--token", token.trim()]).unwrap();
    kubectl(a, &["wait", "--for=condition=Ready", "node/m2", "--timeout=60s"]).unwrap();
    let archive = workspace().join("target/images/busybox.tar");
    let archive = ["image", "import", "--node", "m2", archive.to_str().unwrap()];
    a.dhow(&[&archive[..], &config].concat()).unwrap();
    // It learns of the server that it did not join by.
    eventually(SOON, || {
        let known = known(node)?;
        ensure!(known == ["https://198.18.0.1:6443", "https://198.18.0.2:6443"], "{known:?}");
        Ok(())
    })
    .unwrap();
    works(a, "before").unwrap();

    eprintln!("the server that it joined by is killed");
    first.kill().unwrap();
    is_heard(b).unwrap();
    works(b, "after-kill").unwrap();

    eprintln!("the node starts anew meanwhile");
    run(node.command("kill").args(["-9", &node.daemon_pid().unwrap().to_string()])).unwrap();
    node.dhow(&["join"]).unwrap();
    is_heard(b).unwrap();

    eprintln!("the first is back, the second says nothing any more");
    let _first = serve(a, &[]).unwrap();
    eventually(SOON, || {
        ensure!(known(node)?.len() == 2, "it does not know the first any more");
        Ok(())
    })
    .unwrap();
    b.plug(false).unwrap();
    is_heard(a).unwrap();
    works(a, "after-silence").unwrap();
    b.plug(true).unwrap();
    drop(second);
    node.dhow(&["down", "--purge"]).unwrap();
    node.ensure_purged().unwrap();
}
