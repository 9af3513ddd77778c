//! Builds as kinds of the API: what is pushed to a repository is built, pushed to the cluster's registry and deployed; and what
//! a tenant may not, a build may not.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhow_e2e::git::{self, Served};
use dhow_e2e::{HOST_IP, Host, eventually, in_turn, run};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(40);
const REGISTRY: &str = "198.18.0.1:5443";
const INSIDE: &str = "registry.dhow-registry.svc.cluster.local";
const GIT_PORT: u16 = 8099;
const SECRET: &str = "s3cret";

const OBJECTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: builder, namespace: shop}
---
apiVersion: v1
kind: Secret
metadata: {name: hook, namespace: shop}
stringData: {token: s3cret}
---
apiVersion: v1
kind: Secret
metadata: {name: key, namespace: shop}
stringData: {value: k3y}
---
apiVersion: registry.dhow.io/v1alpha1
kind: Project
metadata: {name: shop}
spec:
  members:
  - {kind: ServiceAccount, namespace: shop, name: builder, role: Developer}
---
apiVersion: build.dhow.io/v1alpha1
kind: Build
metadata: {name: app, namespace: shop}
spec:
  source:
    git: {url: 'http://198.18.0.1:8099/cgi-bin/git/app.git', ref: main}
    contextDir: site
  args: {GREETING: hello}
  secrets: [{id: key, secret: key, key: value}]
  output: {images: ['registry.dhow-registry.svc.cluster.local/shop/app:latest', 'registry.dhow-registry.svc.cluster.local/shop/app:$(commit)']}
  serviceAccountName: builder
  timeout: 2m
  triggers:
    webhooks:
    - {name: github, type: GitHub, secret: hook}
  deploy: [{kind: Deployment, name: app}]
---
apiVersion: build.dhow.io/v1alpha1
kind: Build
metadata: {name: sent, namespace: shop}
spec:
  source: {upload: {}}
  serviceAccountName: builder
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: app, namespace: shop}
spec:
  selector: {matchLabels: {app: app}}
  template:
    metadata: {labels: {app: app}}
    spec:
      terminationGracePeriodSeconds: 0
      containers: [{name: main, image: 'registry.dhow-registry.svc.cluster.local/shop/app:latest', ports: [{containerPort: 8000}]}]
---
apiVersion: v1
kind: Service
metadata: {name: app, namespace: shop}
spec: {selector: {app: app}, ports: [{port: 80, targetPort: 8000}]}
"#;

const DOCKERFILE: &str = "FROM registry.dhow-registry.svc.cluster.local/shop/python:3
ARG GREETING
WORKDIR /srv
COPY . .
RUN --mount=type=secret,id=key grep -q ^.3y$ /run/secrets/key && test ! -e secret.txt && \\
    echo \"$GREETING $(cat version)\" > index.html
CMD [\"python3\", \"-m\", \"http.server\", \"8000\"]
";

type Step = fn(&Host, &Path) -> Result<()>;

#[test]
fn what_is_pushed_is_built_and_runs() {
    let host = Host::new().unwrap();
    let folder = host.folder().join("git");
    let _web = serve_git(&host, &folder).unwrap();
    let steps: &[(&str, Step)] = &[
        ("starts", starts),
        ("a push is built and deployed", a_push_is_built_and_deployed),
        ("a push is told once", a_push_is_told_once),
        ("mistakes are in the status", mistakes_are_in_the_status),
        ("what is sent is built", what_is_sent_is_built),
        ("runs are stopped", runs_are_stopped),
        ("tenants are not the machine", tenants_are_not_the_machine),
        ("a killed server goes on", a_killed_server_goes_on),
    ];
    in_turn(steps, |step| step(&host, &folder)).unwrap();
}

/// A repository behind git's own web server, in the test's network.
fn serve_git(host: &Host, folder: &Path) -> Result<Served> {
    git::publish(folder)?;
    let script = "set -e; git init -q --bare -b main repositories/app.git; git init -q -b main work; cd work; \
         git config user.name Ada; git config user.email ada@example.org; git remote add origin ../repositories/app.git; mkdir site";
    run(Command::new("sh").args(["-c", script]).current_dir(folder))?;
    // A server without a name: nobody answers here who would be asked for it.
    let serve = "import http.server as h, socketserver, sys\n\
         h.CGIHTTPRequestHandler.have_fork = False\n\
         h.HTTPServer.server_bind = socketserver.TCPServer.server_bind\n\
         server = h.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), h.CGIHTTPRequestHandler)\n\
         server.server_name, server.server_port = server.server_address\n\
         server.serve_forever()\n";
    let mut web = host.command("python3");
    web.args(["-c", serve, HOST_IP, &GIT_PORT.to_string()]).current_dir(folder.join("web"));
    Ok(Served(web.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
}

/// Commits what is in `site` and pushes it; returns the commit.
fn push(folder: &Path, files: &[(&str, &str)]) -> Result<String> {
    let work = folder.join("work");
    for (name, text) in files {
        fs::write(work.join("site").join(name), text)?;
    }
    run(Command::new("sh")
        .args(["-c", "git add -A && git commit -qm Change && git push -q origin main"])
        .current_dir(&work))?;
    Ok(run(Command::new("git").args(["rev-parse", "HEAD"]).current_dir(&work))?.trim().to_owned())
}

fn starts(host: &Host, _: &Path) -> Result<()> {
    host.dhow(&["up"])?;
    host.import(&["python"])?;
    eventually(SOON, || host.apply(OBJECTS))?;
    eventually(SOON, || host.dhow(&["image", "push", "python", &format!("{REGISTRY}/shop/python:3")]))?;
    let refused = host.apply(
        "apiVersion: build.dhow.io/v1alpha1\nkind: Build\nmetadata: {name: bad, namespace: shop}\n\
         spec: {source: {upload: {}, git: {url: 'file:///etc'}}}\n",
    );
    let refused = format!("{:#}", refused.unwrap_err());
    ensure!(refused.contains("exactly one of") && refused.contains("spec.source.git.url"), "{refused}");
    Ok(())
}

/// Tells the webhook, as GitHub does; returns status and answer.
fn tell(host: &Host, commit: &str, secret: &str) -> Result<(String, Value)> {
    let body = format!(r#"{{"ref": "refs/heads/main", "after": "{commit}", "head_commit": {{"message": "Change"}}}}"#);
    let signed = format!("printf %s '{body}' | openssl dgst -sha256 -hmac '{secret}' -r | cut -d' ' -f1");
    let signature = run(Command::new("sh").args(["-c", &signed]))?;
    let config = host.kubectl(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"])?;
    let url = format!("{config}/apis/build.dhow.io/v1alpha1/namespaces/shop/builds/app/webhooks/github");
    let signature = format!("X-Hub-Signature-256: sha256={}", signature.trim());
    let mut curl = host.command("curl");
    curl.args(["--silent", "--insecure", "--max-time", "10", "--write-out", "\n%{http_code}", "--data", &body]);
    let said =
        run(curl.args(["-H", &signature, "-H", "X-GitHub-Event: push", "-H", "Content-Type: application/json", &url]))?;
    let (text, status) = said.rsplit_once('\n').context("no status")?;
    Ok((status.to_owned(), serde_json::from_str(text).unwrap_or_default()))
}

fn run_of(host: &Host, name: &str) -> Result<Value> {
    host.get(&["get", "buildrun", name, "--namespace", "shop"])
}

/// The run once it is over.
fn over(host: &Host, name: &str) -> Result<Value> {
    eventually(SOON, || {
        let run = run_of(host, name)?;
        let phase = run["status"]["phase"].as_str().unwrap_or_default();
        ensure!(matches!(phase, "Succeeded" | "Failed" | "Cancelled"), "{}", run["status"]);
        Ok(run["status"].clone())
    })
}

fn fetched(host: &Host) -> Result<String> {
    let service = host.get(&["get", "service", "app", "--namespace", "shop"])?;
    host.curl(&[&format!("http://{}/", service["spec"]["clusterIP"].as_str().context("no address")?)])
}

fn a_push_is_built_and_deployed(host: &Host, folder: &Path) -> Result<()> {
    let files =
        [("Dockerfile", DOCKERFILE), ("version", "one"), ("secret.txt", "s"), (".dockerignore", "secret.txt\n")];
    let commit = push(folder, &files)?;
    let (status, said) = tell(host, &commit, SECRET)?;
    ensure!(status == "201", "{status} {said}");
    let name = said["buildRun"].as_str().context("no run")?.to_owned();
    let log = host.dhow(&["builds", "logs", "--namespace", "shop", "--follow", &name])?;
    let done = over(host, &name)?;
    ensure!(done["phase"] == "Succeeded", "{done}\n{log}");
    ensure!(log.contains("COPY . .") && log.contains(&commit) && !log.contains("k3y"), "{log}");
    ensure!(done["commit"] == commit.as_str() && done["author"] == "Ada" && done["attempts"] == 1, "{done}");
    ensure!(done["names"][1] == format!("{INSIDE}/shop/app:{}", &commit[..12]), "{done}");
    let image = done["image"].as_str().context("no image")?;
    eventually(SOON, || {
        let deployment = host.get(&["get", "deployment", "app", "--namespace", "shop"])?;
        ensure!(deployment["spec"]["template"]["spec"]["containers"][0]["image"] == image, "{deployment}");
        ensure!(fetched(host)? == "hello one\n", "another page");
        Ok(())
    })?;
    let build = eventually(SOON, || {
        let build = host.get(&["get", "build", "app", "--namespace", "shop"])?;
        ensure!(
            build["status"]["image"] == image && build["status"]["lastPhase"] == "Succeeded",
            "{}",
            build["status"]
        );
        Ok(build)
    })?;
    ensure!(build["status"]["commit"] == commit.as_str(), "{}", build["status"]);
    // The next one finds what this one made, and rolls.
    let commit = push(folder, &[("version", "two")])?;
    tell(host, &commit, SECRET)?;
    eventually(SOON, || {
        ensure!(fetched(host)? == "hello two\n", "another page");
        Ok(())
    })
}

fn a_push_is_told_once(host: &Host, folder: &Path) -> Result<()> {
    let commit = run(Command::new("git").args(["rev-parse", "HEAD"]).current_dir(folder.join("work")))?;
    let (status, said) = tell(host, commit.trim(), SECRET)?;
    ensure!(status == "200" && said["message"].as_str().is_some_and(|text| text.contains("told before")), "{said}");
    let (status, said) = tell(host, commit.trim(), "guess")?;
    ensure!(status == "403", "{status} {said}");
    let runs = host.get(&["get", "buildruns", "--namespace", "shop", "--field-selector", "spec.build=app"])?;
    ensure!(runs["items"].as_array().is_some_and(|all| all.len() == 2), "{runs}");
    Ok(())
}

fn mistakes_are_in_the_status(host: &Host, folder: &Path) -> Result<()> {
    push(folder, &[("Dockerfile", &DOCKERFILE.replace("WORKDIR /srv", "RUN echo here; exit 7"))])?;
    let start = ["builds", "start", "--namespace", "shop", "app"];
    let name = host.dhow(&start)?.trim().to_owned();
    let failed = over(host, &name)?;
    ensure!(failed["phase"] == "Failed" && failed["reason"] == "StepFailed" && failed["line"] == 3, "{failed}");
    let text = |field: &str| failed[field].as_str().unwrap_or_default().to_owned();
    ensure!(text("message").contains("Dockerfile:3") && text("message").contains("exit code: 7"), "{failed}");
    ensure!(text("step").contains("RUN echo here"), "{failed}");
    let raw = format!("/apis/build.dhow.io/v1alpha1/namespaces/shop/buildruns/{name}/log?tailLines=20");
    let log = host.kubectl(&["get", "--raw", &raw])?;
    ensure!(log.lines().any(|line| line.ends_with(" here")), "{log}");
    // Built again it fails again; as of a commit it does not.
    let good = run(Command::new("git").args(["rev-parse", "HEAD~1"]).current_dir(folder.join("work")))?;
    let name = host.dhow(&[&start[..], &["--revision", good.trim()]].concat())?.trim().to_owned();
    let done = over(host, &name)?;
    ensure!(done["phase"] == "Succeeded" && done["commit"] == good.trim(), "{done}");
    Ok(())
}

/// A folder to be sent.
fn context(folder: &Path, dockerfile: &str) -> Result<PathBuf> {
    let context = folder.join("context");
    fs::create_dir_all(&context)?;
    fs::write(context.join("Dockerfile"), dockerfile)?;
    fs::write(context.join(".dockerignore"), "*\n!data\n")?;
    fs::write(context.join("data"), "d")?;
    fs::write(context.join("other"), "o")?;
    Ok(context)
}

fn send(host: &Host, folder: &Path, dockerfile: &str) -> Result<String> {
    let context = context(folder, dockerfile)?.display().to_string();
    Ok(host.dhow(&["builds", "start", "--namespace", "shop", "sent", "--from", &context])?.trim().to_owned())
}

fn what_is_sent_is_built(host: &Host, folder: &Path) -> Result<()> {
    let name = send(host, folder, "FROM scratch\nCOPY . /files\n")?;
    let done = over(host, &name)?;
    ensure!(done["phase"] == "Succeeded" && done["names"][0] == format!("{INSIDE}/shop/sent:latest"), "{done}");
    // Nothing of it stays on the node but the log.
    ensure!(fs::read_dir(host.data_dir().join("builds/uploads"))?.count() == 0, "something is left");
    let start = host.dhow(&["builds", "start", "--namespace", "shop", "sent"])?;
    let failed = over(host, start.trim())?;
    ensure!(failed["phase"] == "Failed" && failed["reason"] == "InvalidRun", "{failed}");
    Ok(())
}

fn sleeping(base: &str) -> String {
    format!("FROM {base}\nRUN sleep 1000\n")
}

fn running(host: &Host, name: &str) -> Result<Value> {
    eventually(SOON, || {
        let run = run_of(host, name)?;
        ensure!(run["status"]["phase"] == "Running", "{}", run["status"]);
        let steps = fs::read_dir(host.data_dir().join("builds/sandboxes"))?.count();
        ensure!(steps == 1, "{steps} steps");
        Ok(run["status"].clone())
    })
}

fn no_steps(host: &Host) -> Result<()> {
    eventually(SOON, || {
        let steps = fs::read_dir(host.data_dir().join("builds/sandboxes"))?.count();
        ensure!(steps == 0, "{steps} steps");
        Ok(())
    })
}

fn runs_are_stopped(host: &Host, folder: &Path) -> Result<()> {
    let base = format!("{INSIDE}/shop/python:3");
    let first = send(host, folder, &sleeping(&base))?;
    running(host, &first)?;
    // Another one waits behind it, and says why.
    let second = send(host, folder, &sleeping(&base))?;
    eventually(SOON, || {
        let run = run_of(host, &second)?;
        let why = run["status"]["message"].as_str().unwrap_or_default();
        ensure!(run["status"]["phase"] == "Pending" && why.contains(&first), "{}", run["status"]);
        Ok(())
    })?;
    host.dhow(&["builds", "cancel", "--namespace", "shop", &first])?;
    ensure!(over(host, &first)?["phase"] == "Cancelled", "not cancelled");
    running(host, &second)?;
    host.kubectl(&["delete", "buildrun", &second, "--namespace", "shop"])?;
    no_steps(host)
}

fn tenants_are_not_the_machine(host: &Host, folder: &Path) -> Result<()> {
    let base = format!("{INSIDE}/shop/python:3");
    for (dockerfile, says) in [
        (format!("FROM {base}\nRUN --network=host true\n"), "--network=host is for those who administer the node"),
        (format!("FROM {base}\nRUN --security=insecure true\n"), "--security=insecure is for those"),
        ("FROM scratch\nADD http://127.0.0.1:10250/ /x\n".to_owned(), "an address of the machine itself"),
        ("FROM scratch\nADD http://localhost:1/a.git /x\n".to_owned(), "an address of the machine itself"),
    ] {
        let name = send(host, folder, &dockerfile)?;
        let failed = over(host, &name)?;
        let message = failed["message"].as_str().unwrap_or_default();
        ensure!(failed["phase"] == "Failed" && message.contains(says), "{dockerfile}: {failed}");
    }
    // Somebody who may only look sees logs and starts nothing.
    let may = |verb: &str, what: &str, part: &str, role: &str| {
        let user = format!("{role}@example.org");
        let mut ask = host.command("kubectl");
        ask.args(["auth", "can-i", verb, what, part, "--namespace", "shop", "--as", &user]);
        Ok::<_, anyhow::Error>(String::from_utf8(ask.output()?.stdout)?.trim() == "yes")
    };
    for role in ["view", "edit"] {
        let user = format!("--user={role}@example.org");
        host.kubectl(&[
            "create",
            "rolebinding",
            role,
            "--namespace",
            "shop",
            &format!("--clusterrole=dhow:build:{role}"),
            &user,
        ])?;
    }
    ensure!(may("get", "buildruns.build.dhow.io", "--subresource=log", "view")?, "viewers read no logs");
    ensure!(!may("create", "buildruns.build.dhow.io", "--subresource=", "view")?, "viewers start runs");
    ensure!(may("create", "builds.build.dhow.io", "--subresource=upload", "edit")?, "editors send nothing");
    Ok(())
}

fn a_killed_server_goes_on(host: &Host, folder: &Path) -> Result<()> {
    let name = send(host, folder, &sleeping(&format!("{INSIDE}/shop/python:3")))?;
    let first = running(host, &name)?;
    ensure!(first["attempts"] == 1, "{first}");
    run(Command::new("kill").args(["-9", &host.daemon_pid()?.to_string()]))?;
    host.dhow(&["up"])?;
    eventually(SOON, || {
        let run = run_of(host, &name)?;
        let again = run["status"]["attempts"].as_u64().is_some_and(|attempts| attempts > 1);
        ensure!(run["status"]["phase"] == "Running" && again, "{}", run["status"]);
        Ok(())
    })?;
    running(host, &name)?;
    host.kubectl(&["delete", "buildrun", &name, "--namespace", "shop"])?;
    no_steps(host)?;
    host.dhow(&["down", "--purge"])?;
    host.ensure_purged()
}
