//! containerd's `certs.d`: a folder per registry with a `hosts.toml`, or, as docker has it, bare certificates.
//! <https://github.com/containerd/containerd/blob/main/docs/hosts.md>

use std::path::{Path, PathBuf};

use dhow_base::connect::TlsOptions;
use toml::{Table, Value};

use super::config::Endpoint;
use crate::{Error, Reference, Result};

/// What a folder says about one registry.
pub struct HostsFile {
    path: PathBuf,
    table: Table,
}

/// Looks for the registry's folder, then for `_default`.
pub fn read(root: &Path, registry: &str) -> Result<Option<HostsFile>> {
    let mut names = Vec::new();
    if let Some((host, port)) = registry.rsplit_once(':') {
        names.push(format!("{host}_{port}_"));
    }
    names.extend([registry.to_owned(), "_default".to_owned()]);
    let Some(folder) = names.iter().map(|name| root.join(name)).find(|folder| folder.is_dir()) else {
        return Ok(None);
    };
    let path = folder.join("hosts.toml");
    let table = match std::fs::read_to_string(&path) {
        Ok(text) => text.parse().map_err(|e| bad(&path, format!("{e}")))?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => certificates(&folder)?,
        Err(e) => return Err(bad(&path, e.to_string())),
    };
    Ok(Some(HostsFile { path, table }))
}

/// Docker's layout in the words of the other: `*.crt` are authorities, `X.cert` with `X.key` a client's certificate.
fn certificates(folder: &Path) -> Result<Table> {
    let entries = std::fs::read_dir(folder).map_err(|e| bad(folder, e.to_string()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    let with = |extension: &str| -> Vec<&PathBuf> {
        files.iter().filter(|file| file.extension().is_some_and(|e| e == extension)).collect()
    };
    let text = |path: &Path| Value::String(path.display().to_string());
    let mut table = Table::new();
    table.insert("ca".to_owned(), Value::Array(with("crt").into_iter().map(|file| text(file)).collect()));
    let pairs = with("cert").into_iter().map(|file| Value::Array(vec![text(file), text(&file.with_extension("key"))]));
    table.insert("client".to_owned(), Value::Array(pairs.collect()));
    Ok(table)
}

/// The hosts in the file's order, and the registry itself last.
pub fn endpoints(file: &HostsFile, reference: &Reference, into: &mut Vec<Endpoint>) -> Result<()> {
    let (path, table) = (&file.path, &file.table);
    if let Some(hosts) = table.get("host") {
        let hosts = hosts.as_table().ok_or_else(|| bad(path, "host is not a table".to_owned()))?;
        for (address, settings) in hosts {
            let settings = settings.as_table().ok_or_else(|| bad(path, format!("host {address} is not a table")))?;
            let mut endpoint = endpoint(path, address, settings, reference)?;
            endpoint.namespace = Some(reference.registry.clone());
            into.push(endpoint);
        }
    }
    let server = match table.get("server") {
        Some(server) => server.as_str().ok_or_else(|| bad(path, "server is not a string".to_owned()))?,
        None if reference.registry == "docker.io" => "registry-1.docker.io",
        None => &reference.registry,
    };
    let mut own = endpoint(path, server, table, reference)?;
    own.registry.clone_from(&reference.registry);
    into.push(own);
    Ok(())
}

fn endpoint(path: &Path, address: &str, settings: &Table, reference: &Reference) -> Result<Endpoint> {
    let flag = |key: &str| match settings.get(key) {
        None => Ok(false),
        Some(value) => value.as_bool().ok_or_else(|| bad(path, format!("{key} is not true or false"))),
    };
    let mut endpoint = Endpoint::at(address, flag("override_path")?, reference.repository.clone())
        .map_err(|e| bad(path, e.to_string()))?;
    if let Some(capabilities) = settings.get("capabilities") {
        let names = strings(path, "capabilities", capabilities)?;
        let has = |name: &str| names.iter().any(|n| n == name);
        (endpoint.pull, endpoint.resolve, endpoint.push) = (has("pull"), has("resolve"), has("push"));
    }
    let folder = path.parent().unwrap_or(Path::new("/"));
    let file = |name: &str| folder.join(name);
    endpoint.tls = TlsOptions {
        ca_files: match settings.get("ca") {
            Some(ca) => strings(path, "ca", ca)?.iter().map(|name| file(name)).collect(),
            None => Vec::new(),
        },
        ca_pem: Vec::new(),
        client: settings.get("client").map(|client| client_pair(path, client)).transpose()?.flatten(),
        skip_verify: flag("skip_verify")?,
    };
    if let Some(headers) = settings.get("header") {
        let headers = headers.as_table().ok_or_else(|| bad(path, "header is not a table".to_owned()))?;
        for (name, values) in headers {
            for value in strings(path, "header", values)? {
                endpoint.headers.push((name.clone(), value));
            }
        }
    }
    Ok(endpoint)
}

/// One file that holds both, a list of such files, or a list of pairs; the first of a list is used.
fn client_pair(path: &Path, value: &Value) -> Result<Option<(PathBuf, PathBuf)>> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let first = match value {
        Value::Array(list) => match list.first() {
            Some(first) => first,
            None => return Ok(None),
        },
        single => single,
    };
    let names = strings(path, "client", first)?;
    let pair = match names.as_slice() {
        [both] => (folder.join(both), folder.join(both)),
        [certificate, key] if key.is_empty() => (folder.join(certificate), folder.join(certificate)),
        [certificate, key] => (folder.join(certificate), folder.join(key)),
        _ => return Err(bad(path, "client is a file or a pair of certificate and key".to_owned())),
    };
    Ok(Some(pair))
}

fn strings(path: &Path, key: &str, value: &Value) -> Result<Vec<String>> {
    let text = |value: &Value| value.as_str().map(str::to_owned).ok_or_else(|| bad(path, format!("{key} is not text")));
    match value {
        Value::Array(list) => list.iter().map(text).collect(),
        single => Ok(vec![text(single)?]),
    }
}

fn bad(path: &Path, message: String) -> Error {
    Error::Config(format!("{}: {message}", path.display()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_containerd_documents() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("reg.io_5000_");
        std::fs::create_dir(&folder).unwrap();
        let text = r#"
            server = "https://origin.io"
            ca = "root.pem"
            [host."https://zeta.io"]
            capabilities = ["pull"]
            skip_verify = true
            client = [["a.cert", "a.key"]]
            [host."https://zeta.io".header]
            X-Team = ["blue", "green"]
            [host."http://alpha.io/prefix"]
            override_path = true
        "#;
        std::fs::write(folder.join("hosts.toml"), text).unwrap();
        let file = read(root.path(), "reg.io:5000").unwrap().unwrap();
        let mut found = Vec::new();
        endpoints(&file, &Reference::parse("reg.io:5000/x").unwrap(), &mut found).unwrap();
        let bases: Vec<&str> = found.iter().map(|e| e.base.as_str()).collect();
        assert_eq!(bases, ["https://zeta.io/v2", "http://alpha.io/prefix", "https://origin.io/v2"]);
        assert!(found[0].pull && !found[0].resolve && !found[0].push && found[0].tls.skip_verify);
        assert_eq!(found[0].headers.len(), 2);
        assert_eq!(found[0].tls.client, Some((folder.join("a.cert"), folder.join("a.key"))));
        assert_eq!(found[2].tls.ca_files, [folder.join("root.pem")]);
        assert!(read(root.path(), "reg.io").unwrap().is_none());
        std::fs::create_dir(root.path().join("_default")).unwrap();
        std::fs::write(root.path().join("_default/own.crt"), "").unwrap();
        let file = read(root.path(), "reg.io").unwrap().unwrap();
        let mut found = Vec::new();
        endpoints(&file, &Reference::parse("reg.io/x").unwrap(), &mut found).unwrap();
        assert_eq!(found[0].tls.ca_files, [root.path().join("_default/own.crt")]);
    }
}
