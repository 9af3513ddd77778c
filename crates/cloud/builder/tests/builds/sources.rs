//! Repositories, files and archives by address, packed in any way.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::bench::{Bench, Served, eventually, free_port, sh};

struct Web {
    git: String,
    http: String,
    folder: PathBuf,
    commit: String,
    _served: (Served, Served),
}

/// A repository with a tag, a branch and a folder, an address for files, and archives packed as others pack them.
async fn serve(folder: &Path) -> Web {
    let commit = sh(
        folder,
        r#"
        mkdir web repo t && cd repo
        export HOME="$PWD" GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
        git init -q -b main && mkdir sub && echo old > file && echo inner > sub/in
        printf 'FROM scratch\nCOPY in /of-sub\n' > sub/Dockerfile && printf 'FROM scratch\nCOPY file /of-top\n' > Dockerfile
        git add . && git commit -qm one && git tag v1
        git checkout -q -b other && echo new > file && git commit -qam two && git checkout -q main
        cd .. && git clone -q --bare repo web/app.git && git -C web/app.git update-server-info
        echo packed > t/member && cp repo/Dockerfile repo/file t/
        for kind in gz:gzip bz2:bzip2 xz:xz zst:zstd; do tar -C t -c . | ${kind#*:} -c > "web/ctx.tar.${kind%:*}"; done
        mkdir u && echo f > u/file && echo h > u/hidden && echo hidden > u/.dockerignore && printf 'FROM scratch\nCOPY . /all/\n' > u/Dockerfile
        tar -C u -cf web/ignoring.tar .
        printf 'FROM scratch\nCOPY <<E /only\nx\nE\n' > web/alone
        git -C web/app.git rev-parse v1
        "#,
    );
    let web = folder.join("web");
    let ports = [free_port(), free_port()].map(|port| port.to_string());
    let mut git = Command::new("git");
    git.args(["daemon", "--export-all", "--reuseaddr", "--listen=127.0.0.1"]).arg(format!("--port={}", ports[0]));
    git.arg(format!("--base-path={}", web.display())).arg(&web);
    let mut http = Command::new("python3");
    http.args(["-m", "http.server", "--bind", "127.0.0.1", &ports[1]]).current_dir(&web);
    let served = (Served::start(&mut git), Served::start(&mut http));
    for port in &ports {
        eventually(|| std::net::TcpStream::connect(format!("127.0.0.1:{port}")).is_ok()).await;
    }
    let [git, http] = [format!("git://127.0.0.1:{}/app.git", ports[0]), format!("http://127.0.0.1:{}", ports[1])];
    Web { git, http, folder: web, commit, _served: served }
}

pub async fn are_taken() {
    let bench = Bench::new(&[]).await;
    let web = serve(bench.folder.path()).await;
    let (git, http, commit) = (&web.git, &web.http, &web.commit);
    let sum = sh(&web.folder, "sha256sum alone | cut -d' ' -f1");
    let packed = |kind: &str| std::fs::read(web.folder.join(format!("ctx.tar.{kind}"))).unwrap();
    let lines = [
        "FROM scratch".to_owned(),
        format!("ADD {git} /main/"),
        format!("ADD --keep-git-dir=true {git}#other /other/"),
        format!("ADD --checksum={commit} {git}#v1:sub /sub/"),
        format!("ADD {git}#{commit} /by-commit/"),
        // A server of plain files has neither parts of the history nor commits by their numbers.
        format!("ADD {http}/app.git#{commit} /plain/"),
        format!("ADD --checksum=sha256:{sum} {http}/alone /alone"),
        format!("ADD --unpack=true {http}/ctx.tar.zst /zst"),
        format!("ADD {http}/ctx.tar.gz /kept/"),
        "ADD a.tar.bz2 /bz2".to_owned(),
        "ADD a.tar.xz /xz".to_owned(),
        "ADD --unpack=false a.tar.xz /packed/".to_owned(),
        "ADD looks.bz2 /looks/".to_owned(),
        "COPY --from=named in /named".to_owned(),
    ];
    let (bz2, xz) = (packed("bz2"), packed("xz"));
    let files: [(&str, &[u8]); 3] = [("a.tar.bz2", &bz2), ("a.tar.xz", &xz), ("looks.bz2", b"BZh9 is how it begins\n")];
    let named = json!({"contexts": {"named": {"address": format!("{git}#v1:sub")}}});
    let (_, seen) = bench.build(&lines.join("\n"), named, &files).await;
    for (path, text) in [
        ("main/file", "old\n"),
        ("other/file", "new\n"),
        ("sub/in", "inner\n"),
        ("by-commit/file", "old\n"),
        ("plain/file", "old\n"),
        ("zst/member", "packed\n"),
        ("bz2/member", "packed\n"),
        ("xz/member", "packed\n"),
        ("looks/looks.bz2", "BZh9 is how it begins\n"),
        ("named", "inner\n"),
    ] {
        assert_eq!(seen.get(path).map(String::as_str), Some(text), "{path} of {:?}", seen.keys());
    }
    assert!(
        seen.contains_key("other/.git/HEAD") && !seen.contains_key("main/.git/HEAD") && !seen.contains_key("sub/file")
    );
    assert!(seen.contains_key("kept/ctx.tar.gz") && seen.contains_key("packed/a.tar.xz"));
    assert!(seen["alone"].starts_with("FROM scratch"));

    for (line, why) in [
        (format!("ADD --checksum=sha256:{} {http}/alone /", "0".repeat(64)), "digest mismatch"),
        (format!("ADD --checksum=deadbeef {git} /"), "expected checksum to match deadbeef"),
        (format!("ADD {git}#nowhere /"), "nowhere"),
        (format!("ADD {git}#v1:none /"), "the repository has no folder \"none\""),
        (format!("ADD {http}/nothing /"), "404"),
        ("ADD git://127.0.0.1:1/x.git /".to_owned(), "unable to connect"),
        ("ADD --checksum=sha256:0 a.tar.xz /".to_owned(), "checksum can't be specified for local sources"),
    ] {
        let said = bench.refused(&format!("FROM scratch\n{line}"), json!({}), &files).await;
        assert!(said.contains(why), "{line}: {said}");
    }
}

pub async fn contexts_are_fetched() {
    let bench = Bench::new(&[]).await;
    let web = serve(bench.folder.path()).await;
    let (git, http) = (&web.git, &web.http);
    let at = |address: &str| json!({"contexts": {"": {"address": address}}, "dockerfile": ""});
    for (address, path, text) in [
        (git.clone(), "of-top", "old\n"),
        (format!("{git}#other"), "of-top", "new\n"),
        (format!("{git}#v1:sub"), "of-sub", "inner\n"),
        (format!("{http}/ctx.tar.xz"), "of-top", "old\n"),
        (format!("{http}/alone"), "only", "x\n"),
    ] {
        let mut more = at(&address);
        // The build's own context is where that says, and nowhere else.
        more["contexts"][""] = json!({"address": address});
        let (said, seen) = bench.build("", more, &[]).await;
        assert_eq!(seen.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect::<Vec<_>>(), [(path, text)]);
        assert!(said.text().contains("load remote build context"));
    }
    // What it says is to be left out is.
    let (_, seen) = bench.build("", at(&format!("{http}/ignoring.tar")), &[]).await;
    assert!(seen.contains_key("all/file") && !seen.contains_key("all/hidden"), "{seen:?}");
    let mut more = at(git);
    more["file"] = json!("sub/none");
    let said = bench.refused("", more, &[]).await;
    assert!(said.contains("failed to read sub/none: the context has no such file"), "{said}");
    let said = bench.refused("", at(&format!("{http}/ctx.tar.gz/none")), &[]).await;
    assert!(said.contains("404"), "{said}");
    let said = bench.refused("", at("ftp://127.0.0.1/x"), &[]).await;
    assert!(said.contains("no address of a context"), "{said}");
}
