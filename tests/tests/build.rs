//! `dhow build` on a running cloud: what it builds is what buildah builds, pods run it at once, and steps are found again.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use dhow_e2e::{Host, eventually, run, workspace};
use serde_json::Value;

/// The reference knows no here-documents and no `--link`, `--parents` and `--exclude`.
const BOTH: &str = r#"
ARG BASE=debian-base
FROM docker.io/dhow/${BASE}:latest AS build
ARG GREETING=hello
WORKDIR /src
COPY src/ ./
RUN --mount=type=cache,target=/cache --mount=type=secret,id=key \
    cat main.txt extra/*.txt > all.txt && echo "$GREETING" >> all.txt && \
    mkdir -p out && mv all.txt out/ && ln -s all.txt out/link && chmod 4711 out/all.txt && \
    touch -d @1000000 out/all.txt && cp /run/secrets/key /cache/

FROM busybox AS unused
RUN /bin/false

FROM docker.io/dhow/debian-base:latest
ENV A=1 B="two words" PATH=/opt/bin:$PATH
LABEL org.example.a=b "org.example.c"="d e"
COPY --from=build --chown=games:1000 /src/out/ /opt/out/
COPY --chmod=640 src/main.txt /etc/main.conf
COPY src/*.txt src/extra /flat/
ADD archive.tar.gz /unpacked
RUN rm -r /usr/share/doc /etc/debian_version && mkdir /etc/opt/new && ln /etc/main.conf /etc/opt/new/hard && \
    mv /opt/out/all.txt /opt/out/moved && echo $B > /etc/issue
WORKDIR /data/in
USER games
EXPOSE 8080 53/udp
VOLUME /data
STOPSIGNAL SIGINT
ENTRYPOINT ["/bin/cat"]
CMD ["/opt/out/moved"]
"#;

const OWN: &str = r#"# syntax=docker/dockerfile:1
FROM docker.io/dhow/debian-base:latest AS a
RUN <<EOF
set -e
echo one > /one
test "$(cat /proc/1/comm)" != dhow
EOF
RUN --network=none <<S
#!/bin/sh
ls /sys/class/net > /nets
S
FROM scratch AS b
COPY --from=a --parents /./one /etc/./passwd /p/
COPY --link --exclude=*.md --exclude=!keep.md src /s
COPY <<f /s/f
v=${V:-unset}
f
FROM docker.io/dhow/debian-base:latest
COPY --from=b / /r/
COPY --from=a /nets /
RUN --mount=from=b,source=/s,target=/m --mount=target=/c,rw sh -c 'cat /m/f > /got; echo x > /c/new; test -s /c/src/main.txt'
CMD cat /got
"#;

fn write_context(folder: &Path) {
    std::fs::create_dir_all(folder.join("src/extra")).unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    for (name, text) in [
        ("Dockerfile", BOTH),
        ("own.Dockerfile", OWN),
        ("src/main.txt", "main\n"),
        ("src/extra/a.txt", "a\n"),
        ("src/extra/secret.txt", "not this\n"),
        ("src/read.md", "m\n"),
        ("src/keep.md", "k\n"),
        (".dockerignore", "**/secret.txt\n"),
        ("key", "k3y"),
    ] {
        write(name, text);
    }
    let script =
        "mkdir -p t/d && echo in > t/d/f && ln -s f t/d/l && tar -C t -czf archive.tar.gz --owner=7 --group=8 .";
    run(Command::new("sh").args(["-euc", script]).current_dir(folder)).unwrap();
}

/// Every file of an archive with all that counts about it, but the times of what was made just now.
fn listing(archive: &Path) -> Vec<String> {
    let script = r"
import hashlib, sys, tarfile
# What a runtime mounts over leaves traces in the reference.
runtimes = {'etc/hosts', 'etc/resolv.conf', 'run/.containerenv', 'run/secrets', 'cache', 'proc', 'sys', 'dev', 'run'}
tar = tarfile.open(sys.argv[1])
for m in tar:
    name = m.name.strip('/').removeprefix('./')
    if name in runtimes or name in ('', '.'):
        continue
    file = tar.extractfile(m) if m.isfile() or m.islnk() else None
    data = hashlib.sha256(file.read()).hexdigest()[:12] if file else ''
    kind = 'f' if m.isfile() or m.islnk() else 'd' if m.isdir() else 'l' if m.issym() else 'o'
    time = int(m.mtime) if m.isfile() and m.mtime < 1700000000 else ''
    print(name, kind, oct(m.mode & 0o7777) if kind != 'l' else '', m.uid, m.gid, m.linkname if kind == 'l' else data, time)
";
    let text = run(Command::new("python3").args(["-c", script]).arg(archive)).unwrap();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn settings(config: &Value) -> Value {
    let mut config = config["config"].clone();
    // The reference notes which version of itself it was.
    if let Some(labels) = config["Labels"].as_object_mut() {
        labels.remove("io.buildah.version");
    }
    // Where a variable that was there before stands differs.
    if let Some(env) = config["Env"].as_array_mut() {
        env.sort_by_key(ToString::to_string);
    }
    config
}

#[test]
fn images_are_built_as_by_others_and_run_at_once() {
    let host = Host::new().unwrap();
    let folder = host.folder().join("context");
    write_context(&folder);
    host.dhow(&["up"]).unwrap();
    let images = workspace().join("target/images");
    let archive = |name: &str| images.join(name).to_str().unwrap().to_owned();
    host.import(&["debian-base", "busybox"]).unwrap();
    let build = |args: &[&str]| {
        host.dhow_command(&["build", "--progress", "plain"]).args(args).current_dir(&folder).output().unwrap()
    };
    let built = |args: &[&str]| {
        let output = build(args);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    };

    // The same by both.
    let own = host.folder().join("own.tar");
    let to = format!("type=tar,dest={}", own.display());
    let said = built(&["--secret", "id=key,src=key", "-t", "app:1", "."]);
    assert!(!said.contains("/bin/false"), "a stage that nothing needs is not built: {said}");
    let again = built(&["--secret", "id=key,src=key", "-t", "app:1", "-o", &to, "."]);
    assert_eq!(again.matches("CACHED").count(), 9, "{again}");
    let theirs = host.folder().join("theirs.tar");
    let script = format!(
        "b() {{ buildah --root {0}/bh --runroot {0}/bhrun --storage-driver overlay \"$@\"; }}
         b pull -q oci-archive:{1} >/dev/null; b pull -q oci-archive:{2} >/dev/null
         b bud -q --isolation chroot --pull-never --secret id=key,src=key -t app:1 . >/dev/null
         c=$(b from --pull-never localhost/app:1); tar -C \"$(b mount \"$c\")\" -cf {3} .
         b inspect --type image localhost/app:1",
        host.folder().display(),
        archive("debian-base.tar"),
        archive("busybox.tar"),
        theirs.display()
    );
    // What it mounts goes with a mount namespace of its own.
    let mut reference = Command::new("unshare");
    reference.args(["--mount", "sh", "-euc", &script]).current_dir(&folder);
    let inspected = run(&mut reference).unwrap();
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    let (ours, want) = (listing(&own), listing(&theirs));
    let missing: Vec<_> = want.iter().filter(|line| !ours.contains(line)).collect();
    let more: Vec<_> = ours.iter().filter(|line| !want.contains(line)).collect();
    assert!(missing.is_empty() && more.is_empty(), "missing: {missing:#?}\nmore: {more:#?}");
    let inspect = host.dhow(&["image", "inspect", "app:1"]).unwrap();
    let inspect: Value = serde_json::from_str(&inspect).unwrap();
    let (ours, want) = (settings(&inspect["config"]), settings(&inspected["OCIv1"]));
    for key in ["User", "Env", "Entrypoint", "Cmd", "WorkingDir", "Labels", "ExposedPorts", "Volumes", "StopSignal"] {
        assert_eq!(ours[key], want[key], "{key}");
    }

    let said = built(&["-f", "own.Dockerfile", "-t", "own:1", "."]);
    assert!(said.contains("built own:1"), "{said}");
    host.kubectl(&[
        "run",
        "own",
        "--image=own:1",
        "--image-pull-policy=Never",
        "--restart=Never",
        "--command",
        "--",
        "sh",
        "-c",
        "cat /got /nets; ls -R /r",
    ])
    .unwrap();
    host.kubectl(&["wait", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=30s", "pod/own"]).unwrap();
    let log = host.kubectl(&["logs", "own"]).unwrap();
    assert!(log.starts_with("v=unset\nlo\n/r:"), "{log}");
    for name in ["one", "passwd", "keep.md", "main.txt"] {
        assert!(log.contains(name), "{name}: {log}");
    }
    assert!(!log.contains("read.md") && !log.contains("secret.txt"), "{log}");

    // A change in the context makes what depends on it anew, a time does not.
    run(Command::new("touch").arg(folder.join("src/main.txt"))).unwrap();
    let again = built(&["-f", "own.Dockerfile", "."]);
    assert_eq!(again.matches("CACHED").count(), 8, "{again}");

    // Reproducible: two builds without a cache are the same image.
    let id = |file: &str| {
        let path = host.folder().join(file);
        let args = [
            "--no-cache",
            "--secret",
            "id=key,src=key",
            "--build-arg",
            "SOURCE_DATE_EPOCH=1500000000",
            "-q",
            "--iidfile",
        ];
        built(&[&args[..], &[path.to_str().unwrap(), "."]].concat());
        std::fs::read_to_string(path).unwrap()
    };
    assert_eq!(id("first"), id("second"));

    // A Compose project's image is built first, and another image makes other pods.
    let compose =
        "services: {app: {build: {context: ., dockerfile: own.Dockerfile, args: {V: x}}, command: sleep 1000}}";
    std::fs::write(folder.join("compose.yaml"), compose).unwrap();
    let deploy = || {
        run(host.dhow_command(&["deploy", "--project", "shop", "compose.yaml"]).current_dir(&folder)).unwrap();
        let deployment = host.get(&["get", "deployment", "app", "-n", "shop"]).unwrap();
        let template = &deployment["spec"]["template"];
        assert_eq!(template["spec"]["containers"][0]["image"], "shop-app");
        template["metadata"]["annotations"]["dhow.io/image-id"].as_str().unwrap().to_owned()
    };
    let first = deploy();
    // What did not change is the same image, and its pods go on.
    assert_eq!(first, deploy());
    std::fs::write(folder.join("src/main.txt"), "other\n").unwrap();
    assert_ne!(first, deploy());

    // What is wrong is said with its place, and the exit code tells.
    std::fs::write(folder.join("bad"), "FROM docker.io/dhow/debian-base\nRUN echo before; exit 7\n").unwrap();
    let failed = build(&["-f", "bad", "."]);
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(said.contains("before\n") && said.contains("bad:2") && said.contains("exit code: 7"), "{said}");
    std::fs::write(folder.join("bad"), "FROM scratch\nCOYP a b\n").unwrap();
    let said = String::from_utf8_lossy(&build(&["-f", "bad", "."]).stderr).into_owned();
    assert!(said.contains("bad:2:1: unknown instruction: COYP (did you mean COPY?)"), "{said}");
    std::fs::write(folder.join("bad"), "FROM scratch\nCOPY nothing /\n").unwrap();
    let said = String::from_utf8_lossy(&build(&["-f", "bad", "."]).stderr).into_owned();
    assert!(said.contains("\"/nothing\": not found") && said.contains("> 2 | COPY nothing /"), "{said}");

    // A build that nobody waits for any more is stopped.
    std::fs::write(folder.join("bad"), "FROM docker.io/dhow/debian-base\nRUN sleep 1000\n").unwrap();
    let mut abandoned = host.dhow_command(&["build", "--quiet", "-f", "bad", "."]);
    let mut abandoned = abandoned.current_dir(&folder).stderr(Stdio::null()).spawn().unwrap();
    let steps = |wanted: usize| {
        let there = std::fs::read_dir(host.data_dir().join("builds/sandboxes"))?.count();
        anyhow::ensure!(there == wanted, "{there} steps run");
        Ok(())
    };
    eventually(Duration::from_secs(20), || steps(1)).unwrap();
    abandoned.kill().unwrap();
    abandoned.wait().unwrap();
    eventually(Duration::from_secs(20), || steps(0)).unwrap();

    // Nothing is left of steps, contexts and layers that were being made.
    eventually(Duration::from_secs(20), || {
        for name in ["builds/sandboxes", "builds/contexts", "images/work"] {
            let left = std::fs::read_dir(host.data_dir().join(name))?.count();
            anyhow::ensure!(left == 0, "{left} left in {name}");
        }
        Ok(())
    })
    .unwrap();
    host.dhow(&["down", "--purge"]).unwrap();
    host.ensure_purged().unwrap();
}

#[test]
fn only_what_changed_is_sent() {
    let host = Host::new().unwrap();
    let folder = host.folder().join("context");
    let write = |name: &str, text: &[u8]| {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("Dockerfile", b"FROM scratch\nCOPY . /\n");
    write("stop", b"FROM docker.io/dhow/debian-base\nRUN --mount=target=/c cat /c/sub/a && echo && sleep 1000\n");
    write("big", &[7; 4 << 20]);
    write("sub/a", b"one");
    write("sub/gone", b"gone");
    host.dhow(&["up"]).unwrap();
    host.import(&["debian-base"]).unwrap();
    // The result's files with their texts, and whether the large one was sent.
    let build = || -> (Vec<String>, bool) {
        let to = host.folder().join("result.tar");
        let output = format!("type=tar,dest={}", to.display());
        let args = ["build", "--progress", "plain", "-o", &output, "."];
        let done = host.dhow_command(&args).current_dir(&folder).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{said}");
        let sent = said.lines().find(|line| line.contains("transferring context:")).unwrap();
        let script = r"
import sys, tarfile
tar = tarfile.open(sys.argv[1])
for m in tar:
    if m.name.startswith('sub/'):
        print(m.name, m.linkname, tar.extractfile(m).read().decode() if m.isfile() else '')
";
        let listed = run(Command::new("python3").args(["-c", script]).arg(&to)).unwrap();
        (listed.lines().map(|line| line.trim().to_owned()).collect(), sent.contains("MiB"))
    };
    assert_eq!(build(), (vec!["sub/a  one".to_owned(), "sub/gone  gone".to_owned()], true));
    assert_eq!(build(), (vec!["sub/a  one".to_owned(), "sub/gone  gone".to_owned()], false));

    // Another text of the same length under the same time is another text.
    let change =
        "touch -r sub/a time && printf two > sub/a && touch -r time sub/a && rm time sub/gone && ln -s a sub/l";
    run(Command::new("sh").args(["-euc", change]).current_dir(&folder)).unwrap();
    assert_eq!(build(), (vec!["sub/a  two".to_owned(), "sub/l a".to_owned()], false));

    // A build that reads the folder is not disturbed by one that brings changes.
    let mut reading = host.dhow_command(&["build", "--progress", "plain", "-f", "stop", "."]);
    let mut reading = reading.current_dir(&folder).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = std::io::BufReader::new(reading.stderr.take().unwrap());
    let mut line = String::new();
    while !line.ends_with(" two\n") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut said, &mut line).unwrap() > 0, "the build ended");
    }
    write("sub/a", b"three");
    assert_eq!(build(), (vec!["sub/a  three".to_owned(), "sub/l a".to_owned()], true));
    reading.kill().unwrap();
    reading.wait().unwrap();

    // A node that starts anew knows nothing of it.
    host.dhow(&["down"]).unwrap();
    host.dhow(&["up"]).unwrap();
    assert_eq!(build(), (vec!["sub/a  three".to_owned(), "sub/l a".to_owned()], true));
    assert_eq!(build(), (vec!["sub/a  three".to_owned(), "sub/l a".to_owned()], false));
    host.dhow(&["down", "--purge"]).unwrap();
    host.ensure_purged().unwrap();
}
