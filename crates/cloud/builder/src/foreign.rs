//! Which programs this machine's kernel runs.

use std::fs;
use std::path::Path;

use dhow_image::Platform;

use crate::error::{Error, Result};

/// Where the kernel lists interpreters of programs it does not run itself.
const INTERPRETERS: &str = "/proc/sys/fs/binfmt_misc";

/// Whether steps of a stage for that platform can run here: the processor does, or an interpreter is registered.
pub fn can_run(platform: &Platform) -> Result<()> {
    let host = Platform::host();
    let sibling = matches!((host.architecture.as_str(), platform.architecture.as_str()), ("amd64", "386"));
    let same = platform.os == host.os && (sibling || platform.architecture == host.architecture);
    if same || platform.os == host.os && interpreted(Path::new(INTERPRETERS), &platform.architecture) {
        return Ok(());
    }
    Err(Error::Foreign { program: platform.to_string(), host: host.to_string() })
}

/// The number of a machine in its programs' headers.
fn machine(architecture: &str) -> Option<u16> {
    Some(match architecture {
        "386" => 3,
        "mips" | "mipsle" | "mips64" | "mips64le" => 8,
        "ppc64" | "ppc64le" => 21,
        "s390x" => 22,
        "arm" => 40,
        "amd64" => 62,
        "arm64" => 183,
        "riscv64" => 243,
        "loong64" => 258,
        _ => return None,
    })
}

fn interpreted(folder: &Path, architecture: &str) -> bool {
    let Some(machine) = machine(architecture) else { return false };
    let big = matches!(architecture, "mips" | "mips64" | "ppc64" | "s390x");
    let machine = if big { machine.to_be_bytes() } else { machine.to_le_bytes() };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_to_string(entry.path()).ok()).any(|text| takes(&text, machine))
}

/// Whether an interpreter that is on takes programs with this number in their header, by the bytes that it looks for.
fn takes(text: &str, machine: [u8; 2]) -> bool {
    let line = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    if text.lines().next() != Some("enabled") || line("offset").is_some_and(|offset| offset != "0") {
        return false;
    }
    let at = |key: &str, at: usize| {
        let digits = line(key)?.get(2 * at..2 * at + 2)?;
        u8::from_str_radix(digits, 16).ok()
    };
    let same = |index: usize, want: u8| {
        let mask = at("mask", index).unwrap_or(0xff);
        at("magic", index).is_some_and(|magic| magic & mask == want & mask && mask != 0)
    };
    b"\x7fELF".iter().enumerate().all(|(index, want)| same(index, *want))
        && same(18, machine[0])
        && same(19, machine[1])
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn interpreters_are_known_by_what_they_look_for() {
        let text = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: OCF\noffset 0\n\
                    magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("qemu-aarch64"), text).unwrap();
        std::fs::write(folder.path().join("status"), "enabled\n").unwrap();
        assert!(interpreted(folder.path(), "arm64") && !interpreted(folder.path(), "riscv64"));
        std::fs::write(folder.path().join("qemu-aarch64"), text.replace("enabled", "disabled")).unwrap();
        assert!(!interpreted(folder.path(), "arm64"));
        let java = "enabled\ninterpreter /usr/bin/jexec\nflags:\noffset 0\nmagic 504b0304\n";
        assert!(!takes(java, [183, 0]));
        assert!(can_run(&Platform::host()).is_ok());
        let error = can_run(&Platform::parse("plan9/amd64").unwrap()).unwrap_err();
        assert!(error.to_string().contains("binfmt_misc"), "{error}");
    }
}
