//! What goes into each image.

use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

/// One layer: how it is made, given the layers below it.
#[derive(Clone, Serialize)]
pub struct Layer {
    pub name: &'static str,
    pub make: Make,
    /// Files put in place first: path, mode, contents.
    pub files: Vec<(&'static str, u32, String)>,
}

#[derive(Clone, Serialize)]
pub enum Make {
    /// A bootstrapped Debian root.
    Bootstrap,
    /// Packages installed and a script run, both inside the root.
    Install { packages: &'static [&'static str], script: &'static str },
    /// The static busybox with a link for each applet, taken from its package; nothing else.
    Busybox,
    /// The files alone.
    Files,
}

pub struct Image {
    /// Name of the archive, without `.tar`.
    pub file: &'static str,
    pub reference: &'static str,
    pub layers: Vec<Layer>,
    /// The `config` object of the image configuration.
    pub config: Value,
}

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

pub fn images(root: &Path) -> Result<Vec<Image>> {
    let app_path = root.join("examples/demo/app/app.py");
    let app = std::fs::read_to_string(&app_path).with_context(|| format!("read {}", app_path.display()))?;
    let base = Layer { name: "debian-base", make: Make::Bootstrap, files: Vec::new() };
    let install = |name, packages, script| Layer { name, make: Make::Install { packages, script }, files: Vec::new() };
    let with_files = |mut layer: Layer, files: &[(&'static str, u32, &str)]| {
        layer.files = files.iter().map(|(path, mode, text)| (*path, *mode, (*text).to_owned())).collect();
        layer
    };

    let busybox = with_files(
        Layer { name: "busybox", make: Make::Busybox, files: Vec::new() },
        &[
            ("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n"),
            ("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n"),
            ("etc/nsswitch.conf", 0o644, "hosts: files dns\n"),
        ],
    );
    let nginx = with_files(
        install(
            "nginx",
            &["nginx-light"],
            "rm -rf /etc/nginx/sites-enabled /etc/nginx/sites-available /etc/nginx/modules-enabled
             rm -f /var/log/nginx/*
             ln -sf /dev/stdout /var/log/nginx/access.log
             ln -sf /dev/stderr /var/log/nginx/error.log",
        ),
        &[
            ("etc/nginx/nginx.conf", 0o644, include_str!("files/nginx.conf")),
            ("etc/nginx/conf.d/default.conf", 0o644, include_str!("files/nginx-default.conf")),
        ],
    );
    let mariadb = with_files(
        install(
            "mariadb",
            &["mariadb-server"],
            "rm -rf /var/lib/mysql /usr/bin/mariadb-test* /usr/share/mysql/mysql-test
             rm -f /usr/bin/aria_* /usr/bin/myisam* /usr/bin/mariadb-embedded
             mkdir -p /var/lib/mysql /run/mysqld /docker-entrypoint-initdb.d
             chown mysql:mysql /var/lib/mysql /run/mysqld
             chmod 1777 /run/mysqld
             sed -i 's/^bind-address/#bind-address/' /etc/mysql/mariadb.conf.d/50-server.cnf",
        ),
        &[
            ("usr/local/bin/docker-entrypoint.sh", 0o755, include_str!("files/mariadb-entrypoint.sh")),
            ("etc/mysql/mariadb.conf.d/90-container.cnf", 0o644, include_str!("files/mariadb.cnf")),
        ],
    );
    let redis = install("redis", &["redis-server"], "mkdir -p /data && chown redis:redis /data");
    let python = install("python", &["python3", "python3-pymysql"], "ln -sf python3 /usr/bin/python");
    let demo =
        with_files(Layer { name: "demo-app", make: Make::Files, files: Vec::new() }, &[("app/app.py", 0o755, &app)]);
    let demo_config = |version: &str| {
        json!({
            "User": "65534:65534",
            "Env": [PATH, "PYTHONUNBUFFERED=1", "PYTHONDONTWRITEBYTECODE=1", format!("APP_VERSION={version}")],
            "WorkingDir": "/app",
            "Entrypoint": ["python3", "/app/app.py"],
            "ExposedPorts": {"8080/tcp": {}},
            "StopSignal": "SIGTERM",
        })
    };

    Ok(vec![
        Image {
            file: "busybox",
            reference: "docker.io/library/busybox:latest",
            layers: vec![busybox],
            config: json!({"Env": [PATH], "Cmd": ["sh"]}),
        },
        Image {
            file: "debian-base",
            reference: "docker.io/dhow/debian-base:latest",
            layers: vec![base.clone()],
            config: json!({"Env": [PATH], "Cmd": ["bash"]}),
        },
        Image {
            file: "nginx",
            reference: "docker.io/library/nginx:latest",
            layers: vec![base.clone(), nginx],
            config: json!({
                "Env": [PATH],
                "Cmd": ["nginx", "-g", "daemon off;"],
                "ExposedPorts": {"80/tcp": {}},
                "StopSignal": "SIGQUIT",
            }),
        },
        Image {
            file: "mariadb",
            reference: "docker.io/library/mariadb:latest",
            layers: vec![base.clone(), mariadb],
            config: json!({
                "Env": [PATH, "LANG=C.UTF-8"],
                "Entrypoint": ["docker-entrypoint.sh"],
                "Cmd": ["mariadbd"],
                "ExposedPorts": {"3306/tcp": {}},
                "Volumes": {"/var/lib/mysql": {}},
                "StopSignal": "SIGTERM",
            }),
        },
        Image {
            file: "redis",
            reference: "docker.io/library/redis:latest",
            layers: vec![base.clone(), redis],
            config: json!({
                "User": "redis",
                "Env": [PATH],
                "WorkingDir": "/data",
                "Cmd": ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/data"],
                "ExposedPorts": {"6379/tcp": {}},
                "Volumes": {"/data": {}},
            }),
        },
        Image {
            file: "python",
            reference: "docker.io/library/python:latest",
            layers: vec![base.clone(), python.clone()],
            config: json!({"Env": [PATH, "LANG=C.UTF-8"], "Cmd": ["python3"]}),
        },
        Image {
            file: "demo-app-v1",
            reference: "docker.io/dhow/demo-app:v1",
            layers: vec![base.clone(), python.clone(), demo.clone()],
            config: demo_config("v1"),
        },
        Image {
            file: "demo-app-v2",
            reference: "docker.io/dhow/demo-app:v2",
            layers: vec![base, python, demo],
            config: demo_config("v2"),
        },
    ])
}
