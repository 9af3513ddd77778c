//! The program of a sandbox' container in runtimes that need one: it waits for signals and lets the kernel bury its children.
//!
//! It must run in an image without anything else in it, on machines without a compiler and without a registry, so it is
//! written down here: a static ELF file of some 180 bytes for each of the two machines we build for.

use crate::Error;

/// The image that holds it.
pub const NAME: &str = "dhow.local/pause:1";
/// Where in the image.
pub const PROGRAM: &str = "/pause";

/// Where the file is mapped.
const BASE: u64 = 0x40_0000;
const ELF_HEADER: u16 = 64;
const PROGRAM_HEADER: u16 = 56;

/// `sigaction(SIGCHLD, &{SIG_IGN}, NULL, 8)`, then `pause` for ever. The action follows the code.
fn code() -> (u16, Vec<u8>) {
    /// `struct sigaction` of the kernel: handler 1 is to ignore; no flags, restorer or mask.
    const ACTION: [u8; 32] = {
        let mut action = [0; 32];
        action[0] = 1;
        action
    };
    let (machine, mut code) = if cfg!(target_arch = "aarch64") {
        let words: [u32; 13] = [
            0xd280_10c8, // mov x8, 134       rt_sigaction
            0xd280_0220, // mov x0, 17        SIGCHLD
            0x1000_0161, // adr x1, action
            0xd280_0002, // mov x2, 0
            0xd280_0103, // mov x3, 8
            0xd400_0001, // svc 0
            0xd280_0928, // mov x8, 73        ppoll of nothing
            0xd280_0000, // mov x0, 0
            0xd280_0001, // mov x1, 0
            0xd280_0002, // mov x2, 0
            0xd280_0003, // mov x3, 0
            0xd400_0001, // svc 0
            0x17ff_fffa, // b back to `mov x8, 73`
        ];
        (183, words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>())
    } else {
        let code: [&[u8]; 9] = [
            &[0xb8, 13, 0, 0, 0],             // mov eax, 13      rt_sigaction
            &[0xbf, 17, 0, 0, 0],             // mov edi, 17      SIGCHLD
            &[0x48, 0x8d, 0x35, 19, 0, 0, 0], // lea rsi, [rip+19] action
            &[0x31, 0xd2],                    // xor edx, edx
            &[0x41, 0xba, 8, 0, 0, 0],        // mov r10d, 8
            &[0x0f, 0x05],                    // syscall
            &[0xb8, 34, 0, 0, 0],             // mov eax, 34      pause
            &[0x0f, 0x05],                    // syscall
            &[0xeb, 0xf7],                    // jmp back to `mov eax, 34`
        ];
        (62, code.concat())
    };
    code.extend_from_slice(&ACTION);
    (machine, code)
}

/// The executable file: one segment that is headers, code and data.
fn executable() -> Vec<u8> {
    let (machine, code) = code();
    let start = u64::from(ELF_HEADER + PROGRAM_HEADER);
    let size = start + code.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let half = |file: &mut Vec<u8>, value: u16| file.extend_from_slice(&value.to_le_bytes());
    let word = |file: &mut Vec<u8>, value: u32| file.extend_from_slice(&value.to_le_bytes());
    let long = |file: &mut Vec<u8>, value: u64| file.extend_from_slice(&value.to_le_bytes());
    half(&mut file, 2); // an executable
    half(&mut file, machine);
    word(&mut file, 1);
    long(&mut file, BASE + start); // entry point
    long(&mut file, ELF_HEADER.into()); // program headers
    long(&mut file, 0); // no sections
    word(&mut file, 0);
    for value in [ELF_HEADER, PROGRAM_HEADER, 1, 0, 0, 0] {
        half(&mut file, value);
    }
    word(&mut file, 1); // to be loaded
    word(&mut file, 5); // readable and executable
    long(&mut file, 0);
    long(&mut file, BASE);
    long(&mut file, BASE);
    long(&mut file, size);
    long(&mut file, size);
    long(&mut file, 0x1000);
    file.extend_from_slice(&code);
    file
}

/// The image, as a docker-archive.
pub fn archive() -> Result<Vec<u8>, Error> {
    build().map_err(|error| Error::internal("build the pause image", error))
}

fn build() -> std::io::Result<Vec<u8>> {
    use sha2::Digest as _;
    let layer = tarball(&[(PROGRAM.trim_start_matches('/'), 0o755, &executable())])?;
    let digest: String = sha2::Sha256::digest(&layer).iter().map(|byte| format!("{byte:02x}")).collect();
    let config = serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Entrypoint": [PROGRAM]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]);
    tarball(&[
        ("layer.tar", 0o644, &layer),
        ("config.json", 0o644, config.to_string().as_bytes()),
        ("manifest.json", 0o644, manifest.to_string().as_bytes()),
    ])
}

fn tarball(files: &[(&str, u32, &[u8])]) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, mode, bytes) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(*mode);
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, name, *bytes)?;
    }
    archive.into_inner()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn it_runs_until_killed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pause");
        std::fs::write(&path, executable()).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut child = Command::new(&path).spawn().unwrap();
        let begin = std::time::Instant::now();
        // It is waiting once it ignores the ends of children and sleeps.
        let waits = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
            let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:\t")).unwrap();
            // SIGCHLD is the 17th; whoever started us may ignore others.
            status.contains("State:\tS") && u64::from_str_radix(ignored, 16).unwrap() & (1 << 16) != 0
        };
        while !waits() {
            assert!(begin.elapsed() < std::time::Duration::from_secs(10), "it never came to rest");
            std::thread::yield_now();
        }
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
