//! Builds from wherever their files are: repositories behind HTTP and ssh with submodules and secrets, archives, buckets,
//! artifacts and images of a registry; and what the hosts of repositories say by webhooks.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dhow_e2e::git::{self, Served};
use dhow_e2e::s3::S3;
use dhow_e2e::{HOST_IP, Host, eventually, in_turn, run};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const REGISTRY: &str = "198.18.0.1:5443";
const INSIDE: &str = "registry.dhow-registry.svc.cluster.local";
/// Debian's docker-registry, as somebody else's.
const OTHER: &str = "198.18.0.1:5000";
const WEB: &str = "http://198.18.0.1:8099";
const BUCKET_AT: &str = "198.18.0.1:9000";
const SECRET: &str = "s3cret";

const OBJECTS: &str = r#"
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Secret
metadata: {name: basic, namespace: shop}
stringData: {username: ada, password: passw0rd}
---
apiVersion: v1
kind: Secret
metadata: {name: bearer, namespace: shop}
stringData: {bearerToken: t0ken}
---
apiVersion: v1
kind: Secret
metadata: {name: bucket, namespace: shop}
stringData: {accesskey: test-access, secretkey: test-secret-only-for-tests}
---
apiVersion: v1
kind: Secret
metadata: {name: hook, namespace: shop}
stringData: {token: s3cret}
---
apiVersion: registry.dhow.io/v1alpha1
kind: Project
metadata: {name: shop}
spec:
  members:
  - {kind: ServiceAccount, namespace: shop, name: default, role: Developer}
"#;

/// Needs what is in the submodule of the submodule.
const DOCKERFILE: &str = "FROM registry.dhow-registry.svc.cluster.local/shop/busybox:1
COPY . /context
RUN test \"$(cat /context/lib/deep/file)\" = deep && test ! -e /context/.git && test ! -e /context/lib/deep/.git
";

/// Takes files and repositories below `private` only from those who know the password or the token.
const SERVER: &str = r#"
import base64, http.server as h, socketserver, sys
proofs = ("Basic " + base64.b64encode(b"ada:passw0rd").decode(), "Bearer t0ken", "Basic " + base64.b64encode(b"x-access-token:t0ken").decode())
class Handler(h.CGIHTTPRequestHandler):
    have_fork = False
    def proven(self):
        if "/private/" not in self.path or self.headers.get("Authorization") in proofs:
            return True
        self.send_response(401)
        self.send_header("WWW-Authenticate", "Basic realm=private")
        self.end_headers()
    def do_GET(self):
        if self.proven():
            super().do_GET()
    def do_POST(self):
        if self.proven():
            super().do_POST()
class Server(h.ThreadingHTTPServer):
    def server_bind(self):
        # Without asking a name server for its own name, which nobody answers here.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]
Server((sys.argv[1], 8099), Handler).serve_forever()
"#;

type Step = fn(&Host, &Path) -> Result<()>;

#[test]
fn builds_bring_their_files_from_everywhere() {
    let mut host = Host::new().unwrap();
    let folder = host.folder().join("sources");
    fs::create_dir_all(&folder).unwrap();
    let settings = folder.join("config.yaml");
    fs::write(&settings, format!("registries:\n  hosts:\n    '{OTHER}': {{plainHttp: true}}\n")).unwrap();
    host.set("DHOW_CONFIG", settings.to_str().unwrap());
    let _other = serve_registry(&host, &folder).unwrap();
    let _web = serve(&host, &folder).unwrap();
    let _ssh = serve_ssh(&host, &folder).unwrap();
    let _bucket = S3::start_at(&host, BUCKET_AT).unwrap();
    let steps: &[(&str, Step)] = &[
        ("starts", starts),
        ("repositories are fetched with their submodules", repositories_are_fetched_with_their_submodules),
        ("who proves nothing gets nothing", who_proves_nothing_gets_nothing),
        ("archives, buckets, artifacts and images", archives_buckets_artifacts_and_images),
        ("contexts by address have logins", contexts_by_address_have_logins),
        ("a Compose file says all of it", a_compose_file_says_all_of_it),
        ("webhooks of all kinds", webhooks_of_all_kinds),
        ("images that changed run builds again", images_that_changed_run_builds_again),
    ];
    in_turn(steps, |step| step(&host, &folder)).unwrap();
}

fn shell(folder: &Path, script: &str) -> Result<String> {
    let mut command = Command::new("sh");
    command.args(["-euc", script]).current_dir(folder).env("GIT_CONFIG_GLOBAL", folder.join("gitconfig"));
    run(&mut command)
}

/// Repositories, each the submodule of another one, and files behind a web server.
fn serve(host: &Host, folder: &Path) -> Result<Served> {
    git::publish(folder)?;
    fs::create_dir_all(folder.join("web/private"))?;
    fs::write(folder.join("Dockerfile"), DOCKERFILE)?;
    let script = format!(
        "git config --global user.name Ada; git config --global user.email ada@example.org
        git config --global init.defaultBranch main; git config --global protocol.file.allow always
        mkdir -p repositories/private work
        for name in deep private/lib private/app; do git init -q --bare repositories/$name.git; done
        cd work
        git clone -q ../repositories/deep.git deep 2>/dev/null; cd deep; echo deep > file; git add .; git commit -qm Deep; git push -q origin main; cd ..
        git clone -q ../repositories/private/lib.git lib 2>/dev/null; cd lib
        git submodule --quiet add ../../deep.git deep; git config -f .gitmodules submodule.deep.url {WEB}/cgi-bin/git/deep.git
        git add .; git commit -qm Lib; git push -q origin main; cd ..
        git clone -q ../repositories/private/app.git app 2>/dev/null; cd app; cp ../../Dockerfile .
        git submodule --quiet add ../lib.git lib; git add .; git commit -qm App; git push -q origin main
        git tag -a v1 -m v1; git push -q origin v1"
    );
    shell(folder, &script)?;
    fs::write(folder.join("server.py"), SERVER)?;
    let mut web = host.command("python3");
    web.arg(folder.join("server.py")).arg(HOST_IP).current_dir(folder.join("web"));
    Ok(Served(web.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
}

/// A real sshd that lets one key in.
fn serve_ssh(host: &Host, folder: &Path) -> Result<Served> {
    let at = folder.display();
    shell(
        folder,
        "for name in host other user stranger; do ssh-keygen -q -t ed25519 -N '' -C $name -f $name; done; cp user.pub authorized
        chmod 600 authorized; mkdir -p /run/sshd",
    )?;
    let config = format!(
        "ListenAddress {HOST_IP}:2222\nHostKey {at}/host\nAuthorizedKeysFile {at}/authorized\nPasswordAuthentication no\n\
         KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\nPidFile none\n"
    );
    fs::write(folder.join("sshd_config"), config)?;
    let mut ssh = host.command("/usr/sbin/sshd");
    ssh.args(["-D", "-e", "-f"]).arg(folder.join("sshd_config"));
    Ok(Served(ssh.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
}

fn serve_registry(host: &Host, folder: &Path) -> Result<Served> {
    let settings = folder.join("registry.yml");
    let text = format!(
        "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}/registry}}}}\nhttp: {{addr: '{OTHER}'}}\n",
        folder.display()
    );
    fs::write(&settings, text)?;
    let mut serve = host.command("docker-registry");
    serve.arg("serve").arg(&settings).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(Served(serve.spawn()?))
}

fn starts(host: &Host, folder: &Path) -> Result<()> {
    host.dhow(&["up"])?;
    host.import(&["busybox"])?;
    eventually(SOON, || host.apply(OBJECTS))?;
    eventually(SOON, || host.dhow(&["image", "push", "busybox", &format!("{REGISTRY}/shop/busybox:1")]))?;
    // As people get it.
    let known = eventually(SOON, || {
        let known = run(host.command("ssh-keyscan").args(["-t", "ed25519", "-p", "2222", HOST_IP]))?;
        ensure!(known.contains("ssh-ed25519"), "{known}");
        Ok(known)
    })?;
    let read = |name: &str| fs::read_to_string(folder.join(name));
    let other = format!("[{HOST_IP}]:2222 {}", read("other.pub")?);
    for (name, key, known) in
        [("ssh", "user", &known), ("ssh-stranger", "stranger", &known), ("ssh-host", "user", &other)]
    {
        fs::write(folder.join("known"), known)?;
        let files = [
            format!("--from-file=ssh-privatekey={}", folder.join(key).display()),
            format!("--from-file=known_hosts={}", folder.join("known").display()),
        ];
        host.kubectl(&["create", "secret", "generic", name, "-n", "shop", &files[0], &files[1]])?;
    }
    Ok(())
}

/// Makes a Build, which runs once.
fn build(host: &Host, name: &str, source: Value) -> Result<()> {
    let build = json!({
        "apiVersion": "build.dhow.io/v1alpha1", "kind": "Build", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"source": source, "timeout": "1m", "triggers": {"onChange": true}},
    });
    host.apply(&build.to_string()).map(drop)
}

/// What its run came to.
fn over(host: &Host, build: &str) -> Result<Value> {
    eventually(SOON, || {
        let runs = host.get(&["get", "buildruns", "-n", "shop", "--field-selector", &format!("spec.build={build}")])?;
        let status = runs["items"][0]["status"].clone();
        let phase = status["phase"].as_str().unwrap_or_default();
        ensure!(matches!(phase, "Succeeded" | "Failed" | "Cancelled"), "{build}: {status}");
        Ok(status)
    })
}

fn all_succeed(host: &Host, names: &[&str]) -> Result<()> {
    for name in names {
        let status = over(host, name)?;
        ensure!(status["phase"] == "Succeeded", "{name}: {}: {}", status["reason"], status["message"]);
    }
    Ok(())
}

fn all_fail(host: &Host, names: &[(&str, &str)]) -> Result<()> {
    for (name, why) in names {
        let status = over(host, name)?;
        let message = status["message"].as_str().unwrap_or_default();
        ensure!(status["phase"] == "Failed" && message.contains(why), "{name}: {}: {message}", status["phase"]);
    }
    Ok(())
}

fn ssh_url(folder: &Path) -> String {
    format!("ssh://root@{HOST_IP}:2222{}/repositories/private/app.git", folder.display())
}

fn repositories_are_fetched_with_their_submodules(host: &Host, folder: &Path) -> Result<()> {
    let http = format!("{WEB}/cgi-bin/git/private/app.git");
    build(host, "basic", json!({"git": {"url": http, "ref": "main", "secret": "basic"}}))?;
    build(host, "bearer", json!({"git": {"url": http, "ref": "v1", "secret": "bearer"}}))?;
    build(host, "ssh", json!({"git": {"url": ssh_url(folder), "secret": "ssh"}}))?;
    build(host, "without", json!({"git": {"url": http, "secret": "basic", "submodules": false}}))?;
    all_succeed(host, &["basic", "bearer", "ssh"])?;
    let app = shell(&folder.join("work/app"), "git rev-parse HEAD")?;
    for name in ["basic", "bearer", "ssh"] {
        let status = over(host, name)?;
        ensure!(status["commit"] == app.trim() && status["commitMessage"] == "App", "{status}");
    }
    all_fail(host, &[("without", "lib/deep/file")]).or_else(|_| all_fail(host, &[("without", "exit code: 1")]))
}

fn who_proves_nothing_gets_nothing(host: &Host, folder: &Path) -> Result<()> {
    let http = format!("{WEB}/cgi-bin/git/private/app.git");
    build(host, "nobody", json!({"git": {"url": http}}))?;
    build(host, "stranger", json!({"git": {"url": ssh_url(folder), "secret": "ssh-stranger"}}))?;
    // Its key is right; but it is not the host that is known.
    build(host, "impostor", json!({"git": {"url": ssh_url(folder), "secret": "ssh-host"}}))?;
    build(host, "keyless", json!({"git": {"url": ssh_url(folder)}}))?;
    build(host, "no-secret", json!({"git": {"url": http, "secret": "none"}}))?;
    all_fail(
        host,
        &[
            ("nobody", "could not read Username"),
            ("stranger", "Permission denied"),
            ("keyless", "Permission denied"),
            ("impostor", "Host key verification failed"),
            ("no-secret", "there is no Secret none"),
        ],
    )?;
    // Whoever is away may come back.
    build(host, "away", json!({"git": {"url": format!("http://{HOST_IP}:8098/app.git")}}))?;
    eventually(SOON, || {
        let runs = host.get(&["get", "buildruns", "-n", "shop", "--field-selector", "spec.build=away"])?;
        let status = &runs["items"][0]["status"];
        ensure!(status["phase"] == "Pending" && status["reason"] == "Retrying", "{status}");
        Ok(())
    })?;
    host.kubectl(&["delete", "build", "away", "-n", "shop"])?;
    // A repository leads nobody to the machine itself.
    shell(
        folder,
        "cd work; git init -q --bare ../repositories/evil.git; git clone -q ../repositories/evil.git evil 2>/dev/null; cd evil
        cp ../../Dockerfile .; git submodule --quiet add ../deep.git deep
        git config -f .gitmodules submodule.deep.url http://127.0.0.1:10250/deep.git; git add .; git commit -qm Evil; git push -q origin main",
    )?;
    build(host, "evil", json!({"git": {"url": format!("{WEB}/cgi-bin/git/evil.git")}}))?;
    all_fail(host, &[("evil", "an address of the machine itself")])
}

/// Puts a file into the bucket, with a client that signs.
fn put(host: &Host, file: &Path, key: &str) -> Result<()> {
    let sign = ["--aws-sigv4", "aws:amz:us-east-1:s3", "--user", "test-access:test-secret-only-for-tests"];
    let body = ["-H", "x-amz-content-sha256: UNSIGNED-PAYLOAD"];
    let url = format!("http://{BUCKET_AT}/dhow/{key}");
    host.curl(&[&sign[..], &body[..], &["-T", file.to_str().context("path")?, &url]].concat()).map(drop)
}

fn archives_buckets_artifacts_and_images(host: &Host, folder: &Path) -> Result<()> {
    shell(
        folder,
        "mkdir -p site/lib/deep; cp Dockerfile site/; echo deep > site/lib/deep/file
        tar -C site -czf web/private/site.tar.gz .; mkdir top; cp -r site top/site; tar -cf web/top.tar top",
    )?;
    let sum = shell(folder, "sha256sum web/private/site.tar.gz | cut -d' ' -f1")?;
    let archive = |url: &str| json!({"url": format!("{WEB}/{url}")});
    let private = |secret: &str, sum: &str| {
        let mut source = archive("private/site.tar.gz");
        (source["secret"], source["checksum"]) = (json!(secret), json!(format!("sha256:{sum}")));
        json!({"archive": source})
    };
    build(host, "archive", private("basic", sum.trim()))?;
    build(host, "archive-folder", json!({"archive": archive("top.tar"), "contextDir": "top/site"}))?;
    build(host, "archive-other", private("bearer", &"0".repeat(64)))?;
    build(host, "archive-none", json!({"archive": archive("private/site.tar.gz")}))?;
    build(
        host,
        "inline",
        json!({"inline": "FROM registry.dhow-registry.svc.cluster.local/shop/busybox:1\nRUN true\n"}),
    )?;
    all_succeed(host, &["archive", "archive-folder", "inline"])?;
    all_fail(host, &[("archive-other", "digest mismatch"), ("archive-none", "401")])?;

    put(host, &folder.join("web/private/site.tar.gz"), "archives/a%20b.tgz")?;
    for file in ["Dockerfile", "lib/deep/file"] {
        put(host, &folder.join("site").join(file), &format!("sites/one/{file}"))?;
    }
    let bucket = |more: Value| {
        let mut source = json!({"endpoint": format!("http://{BUCKET_AT}"), "name": "dhow", "secret": "bucket"});
        source.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        json!({"bucket": source})
    };
    build(host, "bucket-object", bucket(json!({"object": "archives/a b.tgz"})))?;
    build(host, "bucket-prefix", bucket(json!({"prefix": "sites/one"})))?;
    build(host, "bucket-none", bucket(json!({"prefix": "nowhere/"})))?;
    build(host, "bucket-refused", bucket(json!({"object": "archives/a b.tgz", "secret": "basic"})))?;
    all_succeed(host, &["bucket-object", "bucket-prefix"])?;
    all_fail(host, &[("bucket-none", "has no files"), ("bucket-refused", "403")])?;

    // As Flux pushes a folder: one layer, and a configuration that is no image's.
    let blob = |path: &Path| -> Result<(String, u64)> {
        let sum = run(Command::new("sha256sum").arg(path))?;
        Ok((sum[..64].to_owned(), fs::metadata(path)?.len()))
    };
    let layout = folder.join("layout");
    fs::create_dir_all(layout.join("blobs/sha256"))?;
    let keep = |path: &Path, kind: &str| -> Result<Value> {
        let (sum, size) = blob(path)?;
        fs::copy(path, layout.join("blobs/sha256").join(&sum))?;
        Ok(json!({"mediaType": kind, "digest": format!("sha256:{sum}"), "size": size}))
    };
    let file = |name: &str, text: String| -> Result<std::path::PathBuf> {
        let path = folder.join(name);
        fs::write(&path, text)?;
        Ok(path)
    };
    let config = keep(&file("config", "{}".to_owned())?, "application/vnd.cncf.flux.config.v1+json")?;
    let layer = keep(&folder.join("web/private/site.tar.gz"), "application/vnd.cncf.flux.content.v1.tar+gzip")?;
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": [layer],
        "annotations": {"org.opencontainers.image.source": "https://example.org/site.git"}});
    let manifest = keep(&file("manifest", manifest.to_string())?, "application/vnd.oci.image.manifest.v1+json")?;
    fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())?;
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)?;
    let token = host.kubectl(&["create", "token", "-n", "shop", "default"])?;
    let creds = format!("token:{}", token.trim());
    let push = |name: &str| {
        let mut copy = host.command("skopeo");
        copy.args(["copy", "--quiet", "--dest-tls-verify=false", "--dest-creds", &creds]);
        run(copy.arg(format!("oci:{}", layout.display())).arg(format!("docker://{REGISTRY}/{name}")))
    };
    push("shop/manifests:1")?;
    build(host, "artifact", json!({"artifact": format!("{INSIDE}/shop/manifests:1")}))?;

    // As ORAS pushes a file and a folder: each with its name.
    shell(folder, "tar -C site -czf lib.tar.gz lib")?;
    let named = |path: &str, kind: &str, title: &str, unpack: bool| -> Result<Value> {
        let mut layer = keep(&folder.join(path), kind)?;
        layer["annotations"] = json!({"org.opencontainers.image.title": title});
        if unpack {
            layer["annotations"]["io.deis.oras.content.unpack"] = json!("true");
        }
        Ok(layer)
    };
    let layers = [
        named("Dockerfile", "text/plain", "Dockerfile", false)?,
        named("lib.tar.gz", "application/vnd.oci.image.layer.v1.tar+gzip", "lib", true)?,
    ];
    let manifest = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "artifactType": "application/vnd.example.site", "config": config, "layers": layers});
    let manifest = keep(&file("manifest", manifest.to_string())?, "application/vnd.oci.image.manifest.v1+json")?;
    fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())?;
    push("shop/files:1")?;
    build(host, "artifact-files", json!({"artifact": format!("{INSIDE}/shop/files:1")}))?;
    build(host, "artifact-none", json!({"artifact": format!("{INSIDE}/shop/nothing:1")}))?;

    // An image whose files are a context.
    fs::write(folder.join("of-image"), "FROM scratch\nCOPY site /\n")?;
    let name = format!("{REGISTRY}/shop/context:1");
    let mut push = host.dhow_command(&["build", "--quiet", "--push", "-t", &name, "-f", "of-image", "."]);
    run(push.current_dir(folder))?;
    build(host, "image", json!({"image": format!("{INSIDE}/shop/context:1")}))?;
    all_succeed(host, &["artifact", "artifact-files", "image"])?;
    all_fail(host, &[("artifact-none", "shop/nothing")])
}

fn contexts_by_address_have_logins(host: &Host, folder: &Path) -> Result<()> {
    let http = format!("{WEB}/cgi-bin/git/private/app.git#main");
    let built = |env: Option<(&str, &str)>, args: &[&str]| {
        let mut command = host.dhow_command(&["build", "--progress", "plain"]);
        command.envs(env).args(args).current_dir(folder);
        let output = command.output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (done, said) = built(Some(("GIT_AUTH_TOKEN", "t0ken")), &["--secret", "id=GIT_AUTH_TOKEN", &http]);
    ensure!(done && !said.contains("t0ken"), "{said}");
    let header = ["--secret", "id=GIT_AUTH_HEADER.198.18.0.1,env=PROOF", &http];
    let (done, said) = built(Some(("PROOF", "Bearer t0ken")), &header);
    ensure!(done, "{said}");
    let (done, said) = built(None, &[&http]);
    ensure!(!done && said.contains("could not read Username"), "{said}");
    let known = format!("[{HOST_IP}]:2222 {}", fs::read_to_string(folder.join("host.pub"))?);
    fs::write(folder.join("known"), known)?;
    let ssh = ssh_url(folder);
    let (done, said) =
        built(None, &["--secret", "id=GIT_SSH_KEY,src=user", "--secret", "id=GIT_KNOWN_HOSTS,src=known", &ssh]);
    ensure!(done, "{said}");
    // What the Dockerfile begins with is seen by the node first, and has a login, too.
    fs::write(folder.join("web/of-private"), format!("FROM {REGISTRY}/shop/busybox:1\nRUN true\n"))?;
    let (done, said) = built(None, &["--pull", &format!("{WEB}/of-private")]);
    ensure!(done && said.contains("wants a login"), "{said}");
    // ADD brings them by the same secrets.
    fs::write(folder.join("adds"), format!("FROM scratch\nADD {WEB}/cgi-bin/git/private/app.git#main /app\n"))?;
    let (done, said) =
        built(Some(("GIT_AUTH_TOKEN", "t0ken")), &["--secret", "id=GIT_AUTH_TOKEN", "-f", "adds", "site"]);
    ensure!(done, "{said}");
    Ok(())
}

fn a_compose_file_says_all_of_it(host: &Host, folder: &Path) -> Result<()> {
    let script = "mkdir project plain; cp -r site/lib plain; printf 'FROM busybox\nCOPY . /context\nRUN test -f /context/lib/deep/file\n' > plain/Dockerfile
        tar -C plain -cf web/plain.tar .";
    shell(folder, script)?;
    let compose = format!(
        "services:\n  app:\n    image: app:1\n    command: [sleep, '1000']\n    stop_grace_period: 0s\n    build:\n      context: {WEB}/plain.tar\n      \
         tags: ['app:second']\n      no_cache: true\n      cache_to: ['type=local,dest=steps,mode=max']\n      \
         cache_from: ['type=local,src=steps']\n      sbom: true\n"
    );
    let project = folder.join("project");
    fs::write(project.join("compose.yaml"), compose)?;
    let mut deploy = host.dhow_command(&["deploy", "--project", "whole", "compose.yaml"]);
    run(deploy.current_dir(&project))?;
    ensure!(project.join("steps/index.json").is_file(), "no cache was written beside the project");
    let id = |name: &str| -> Result<Value> {
        let image: Value = serde_json::from_str(&host.dhow(&["image", "inspect", name])?)?;
        Ok(image["id"].clone())
    };
    ensure!(id("app:1")? == id("app:second")? && id("app:1")?.is_string(), "another image by the second name");
    host.kubectl(&["delete", "namespace", "whole", "--wait=false"]).map(drop)
}

/// Tells a webhook; returns status and answer.
fn tell(host: &Host, hook: &str, body: &str, headers: &[String]) -> Result<(String, Value)> {
    let server = host.kubectl(&["config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"])?;
    let url = format!("{server}/apis/build.dhow.io/v1alpha1/namespaces/shop/builds/hooked/webhooks/{hook}");
    let mut curl = host.command("curl");
    curl.args(["--silent", "--insecure", "--max-time", "10", "--write-out", "\n%{http_code}", "--data", body]);
    curl.args(["-H", "Content-Type: application/json"]);
    for header in headers {
        curl.args(["-H", header]);
    }
    let said = run(curl.arg(&url))?;
    let (text, status) = said.rsplit_once('\n').context("no status")?;
    Ok((status.to_owned(), serde_json::from_str(text).unwrap_or_default()))
}

fn signature(body: &str, secret: &str) -> Result<String> {
    let signed = format!("printf %s '{body}' | openssl dgst -sha256 -hmac '{secret}' -r | cut -d' ' -f1");
    Ok(run(Command::new("sh").args(["-c", &signed]))?.trim().to_owned())
}

fn webhooks_of_all_kinds(host: &Host, folder: &Path) -> Result<()> {
    let commit = shell(&folder.join("work/app"), "git rev-parse HEAD")?.trim().to_owned();
    let tag = shell(&folder.join("work/app"), "git rev-parse v1")?.trim().to_owned();
    let zeros = "0".repeat(40);
    let hook = |name: &str, kind: &str| json!({"name": name, "type": kind, "secret": "hook", "refs": ["main", "release-*", "tags/v*"]});
    let source = json!({"git": {"url": format!("{WEB}/cgi-bin/git/private/app.git"), "secret": "basic"}});
    let made = json!({
        "apiVersion": "build.dhow.io/v1alpha1", "kind": "Build", "metadata": {"name": "hooked", "namespace": "shop"},
        "spec": {"source": source, "timeout": "1m", "triggers": {"webhooks": [
            hook("github", "GitHub"), hook("gitlab", "GitLab"), hook("gitea", "Gitea"),
        ]}},
    });
    host.apply(&made.to_string())?;

    // In the words of each, cut down to what is not about people and pictures.
    let github = |reference: &str, after: &str| {
        json!({"ref": reference, "before": zeros, "after": after, "created": false, "deleted": after == zeros, "forced": false,
            "repository": {"full_name": "shop/app"}, "pusher": {"name": "ada"},
            "head_commit": if after == zeros { Value::Null } else { json!({"id": commit, "message": "App"}) }})
        .to_string()
    };
    let gitlab = |event: &str, reference: &str, after: &str, checkout: Value| {
        json!({"object_kind": event, "event_name": event, "before": zeros, "after": after, "ref": reference,
            "checkout_sha": checkout, "user_name": "Ada", "project": {"path_with_namespace": "shop/app"},
            "commits": [{"id": commit, "message": "App\n", "title": "App"}], "total_commits_count": 1})
        .to_string()
    };
    let from_github = |body: &str, secret: &str| -> Result<Vec<String>> {
        Ok(vec![
            "X-GitHub-Event: push".to_owned(),
            "X-GitHub-Delivery: 72d3162e-cc78-11e3-81ab-4c9367dc0958".to_owned(),
            format!("X-Hub-Signature-256: sha256={}", signature(body, secret)?),
        ])
    };
    let from_gitlab = |event: &str, secret: &str| {
        vec![
            format!("X-Gitlab-Event: {event}"),
            format!("X-Gitlab-Token: {secret}"),
            "User-Agent: GitLab/17.0".to_owned(),
        ]
    };
    let from_gitea = |body: &str, secret: &str, signed_by: &str| -> Result<Vec<String>> {
        let signature = signature(body, secret)?;
        let signed = match signed_by {
            "hub" => format!("X-Hub-Signature-256: sha256={signature}"),
            name => format!("X-{name}-Signature: {signature}"),
        };
        Ok(vec!["X-Gitea-Event: push".to_owned(), "X-Gogs-Event: push".to_owned(), signed])
    };
    let runs = |answer: (String, Value), what: &str| -> Result<()> {
        ensure!(answer.0 == "201", "{what}: {answer:?}");
        let name = answer.1["buildRun"].as_str().context("no run")?.to_owned();
        eventually(SOON, || {
            let run = host.get(&["get", "buildrun", &name, "-n", "shop"])?;
            let status = &run["status"];
            ensure!(status["phase"] == "Succeeded" && status["commit"] == commit.as_str(), "{what}: {status}");
            Ok(())
        })
    };
    let nothing = |answer: (String, Value), why: &str| -> Result<()> {
        ensure!(answer.0 == "200" && answer.1["message"].as_str().is_some_and(|said| said.contains(why)), "{answer:?}");
        Ok(())
    };

    let body = github("refs/heads/main", &commit);
    runs(tell(host, "github", &body, &from_github(&body, SECRET)?)?, "GitHub, a branch")?;
    let body = github("refs/tags/v1", &tag);
    runs(tell(host, "github", &body, &from_github(&body, SECRET)?)?, "GitHub, a tag with a message")?;
    let body = github("refs/heads/release-1", &zeros);
    nothing(tell(host, "github", &body, &from_github(&body, SECRET)?)?, "was deleted")?;
    let body = github("refs/heads/feature", &commit);
    nothing(tell(host, "github", &body, &from_github(&body, SECRET)?)?, "not one that counts")?;
    ensure!(tell(host, "github", &body, &from_github(&body, "guess")?)?.0 == "403", "a wrong secret is taken");
    ensure!(tell(host, "github", &body, &["X-GitHub-Event: push".to_owned()])?.0 == "403", "no secret is taken");

    let body = gitlab("push", "refs/heads/main", &commit, json!(commit));
    runs(tell(host, "gitlab", &body, &from_gitlab("Push Hook", SECRET))?, "GitLab, a branch")?;
    let body = gitlab("tag_push", "refs/tags/v1", &tag, json!(commit));
    runs(tell(host, "gitlab", &body, &from_gitlab("Tag Push Hook", SECRET))?, "GitLab, a tag")?;
    let body = gitlab("tag_push", "refs/tags/v1", &zeros, Value::Null);
    nothing(tell(host, "gitlab", &body, &from_gitlab("Tag Push Hook", SECRET))?, "was deleted")?;
    let body = gitlab("tag_push", "refs/tags/nightly", &tag, json!(commit));
    nothing(tell(host, "gitlab", &body, &from_gitlab("Tag Push Hook", SECRET))?, "not one that counts")?;
    nothing(tell(host, "gitlab", "{}", &from_gitlab("Issue Hook", SECRET))?, "no push")?;
    ensure!(tell(host, "gitlab", &body, &from_gitlab("Push Hook", "guess"))?.0 == "403", "a wrong secret is taken");

    for (number, signed_by) in ["Gitea", "Forgejo", "Gogs", "hub"].into_iter().enumerate() {
        let mut body: Value = serde_json::from_str(&github("refs/heads/main", &commit))?;
        body["compare_url"] = json!(format!("https://gitea.example/{number}"));
        let body = body.to_string();
        runs(tell(host, "gitea", &body, &from_gitea(&body, SECRET, signed_by)?)?, signed_by)?;
        ensure!(tell(host, "gitea", &body, &from_gitea(&body, "guess", signed_by)?)?.0 == "403", "{signed_by}");
    }
    // One kind's proof is none of another kind's.
    let body = github("refs/heads/main", &commit);
    ensure!(tell(host, "gitlab", &body, &from_github(&body, SECRET)?)?.0 == "403", "another kind's proof is taken");
    Ok(())
}

/// Pushes an image that other images are made from.
fn push_base(host: &Host, folder: &Path, name: &str, text: &str) -> Result<()> {
    fs::write(folder.join("of-base"), format!("FROM {REGISTRY}/shop/busybox:1\nRUN echo {text} > /version\n"))?;
    let mut push = host.dhow_command(&["build", "--quiet", "--push", "-t", name, "-f", "of-base", "site"]);
    push.args(["--build-arg", "SOURCE_DATE_EPOCH=1"]);
    run(push.current_dir(folder)).map(drop)
}

fn images_that_changed_run_builds_again(host: &Host, folder: &Path) -> Result<()> {
    let (own, polled) = (format!("{REGISTRY}/shop/base:1"), format!("{OTHER}/team/base:1"));
    push_base(host, folder, &own, "one")?;
    push_base(host, folder, &polled, "one")?;
    let base = format!("{INSIDE}/shop/base:1");
    let build = |name: &str, dockerfile: String, images: Value| {
        let made = json!({
            "apiVersion": "build.dhow.io/v1alpha1", "kind": "Build", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"source": {"inline": dockerfile}, "timeout": "1m",
                "triggers": {"onChange": true, "images": images}},
        });
        host.apply(&made.to_string())
    };
    build("follows", format!("FROM {base}\nRUN cp /version /seen\n"), json!({"bases": true, "interval": "1h"}))?;
    let names = json!({"names": [format!("{REGISTRY}/shop/base:1")], "interval": "1h"});
    build("named", format!("FROM {INSIDE}/shop/busybox:1\nRUN true\n"), names)?;
    build("indifferent", format!("FROM {base}\nRUN true\n"), json!({"names": [], "interval": "1h"}))?;
    build("polls", format!("FROM {polled}\nRUN true\n"), json!({"bases": true, "interval": "10s"}))?;
    all_succeed(host, &["follows", "named", "indifferent", "polls"])?;
    let seen = |name: &str| -> Result<String> {
        let build = host.get(&["get", "build", name, "-n", "shop"])?;
        Ok(build["status"]["images"][0]["digest"].as_str().context("nothing seen yet")?.to_owned())
    };
    let first = eventually(SOON, || seen("follows"))?;
    ensure!(eventually(SOON, || seen("named"))? == first, "two names of one image differ");
    push_base(host, folder, &own, "two")?;
    push_base(host, folder, &polled, "two")?;
    let runs = |name: &str| -> Result<Vec<Value>> {
        let field = format!("spec.build={name}");
        let runs = host.get(&["get", "buildruns", "-n", "shop", "--field-selector", &field])?;
        Ok(runs["items"].as_array().cloned().unwrap_or_default())
    };
    for name in ["follows", "named", "polls"] {
        eventually(SOON, || {
            let runs = runs(name)?;
            let again = runs.iter().find(|run| run["spec"]["cause"]["type"] == "Image").context("no run yet")?;
            let (status, image) = (&again["status"], again["spec"]["cause"]["image"].as_str().unwrap_or_default());
            ensure!(status["phase"] == "Succeeded" && runs.len() == 2, "{status}");
            ensure!(image.contains("/base:1@sha256:") && !image.ends_with(&first), "{image}");
            if name == "follows" {
                let digest = status["bases"][0]["digest"].as_str().context("no base")?;
                ensure!(image.ends_with(digest) && status["bases"][0]["name"] == base.as_str(), "{status}");
            }
            Ok(())
        })?;
    }
    // The same image again is nothing new.
    push_base(host, folder, &own, "two")?;
    let build = host.get(&["get", "build", "follows", "-n", "shop"])?;
    ensure!(build["status"]["images"][0]["digest"] != first.as_str(), "{build}");
    for (name, count) in [("follows", 2), ("named", 2), ("polls", 2), ("indifferent", 1)] {
        ensure!(runs(name)?.len() == count, "{name} ran again");
    }
    Ok(())
}
