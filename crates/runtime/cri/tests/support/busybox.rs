//! An image of the machine's static busybox, as a docker-archive.

use std::io::Result;
use std::process::Command;

pub const NAME: &str = "docker.io/library/busybox:test";

pub fn archive() -> Result<Vec<u8>> {
    let layer = layer()?;
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","config":{{"Cmd":["/bin/sh"],"Env":["PATH=/bin"]}},"rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}}}}"#,
        if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        sha256(&layer)
    );
    let manifest = format!(r#"[{{"Config":"config.json","RepoTags":["{NAME}"],"Layers":["layer.tar"]}}]"#);
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in
        [("layer.tar", layer.as_slice()), ("config.json", config.as_bytes()), ("manifest.json", manifest.as_bytes())]
    {
        add(&mut archive, name, 0o644, bytes)?;
    }
    archive.into_inner()
}

fn layer() -> Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    add(&mut layer, "bin/busybox", 0o755, &std::fs::read("/bin/busybox")?)?;
    let applets = Command::new("/bin/busybox").arg("--list").output()?;
    for applet in String::from_utf8_lossy(&applets.stdout).lines().filter(|applet| *applet != "busybox") {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox")?;
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
    add(&mut layer, "etc/passwd", 0o644, passwd.as_bytes())?;
    add(&mut layer, "etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o1777);
    header.set_size(0);
    layer.append_data(&mut header, "tmp", std::io::empty())?;
    layer.into_inner()
}

fn add(archive: &mut tar::Builder<Vec<u8>>, name: &str, mode: u32, bytes: &[u8]) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    archive.append_data(&mut header, name, bytes)
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
