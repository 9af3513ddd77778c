//! The memory of this process.
#![allow(unsafe_code)]

use std::fs;
use std::io;

use rustix::mm::{Advice, madvise};

/// Takes the program's code out of this process's memory. It stays in the kernel's cache of files, and what is used again
/// is mapped again as it is touched, which takes about a microsecond for 64 KiB.
///
/// The kernel maps the neighbours of every page that is touched, so soon after a start nearly the whole binary counts as
/// resident, while an idle process runs through a small part of it.
///
/// # Errors
/// `/proc` is not there, or is not as `proc_pid_maps(5)` says.
pub fn unmap_code() -> io::Result<()> {
    advise_code(Advice::LinuxDontNeed)
}

fn advise_code(advice: Advice) -> io::Result<()> {
    let program = fs::read_link("/proc/self/exe")?;
    for mapping in fs::read_to_string("/proc/self/maps")?.lines() {
        let fields: Vec<&str> = mapping.split_ascii_whitespace().collect();
        // A program that was replaced has `(deleted)` behind its path in both places.
        let [range, "r-xp", _, _, _, path @ ..] = fields.as_slice() else { continue };
        if path.join(" ") != program.to_string_lossy() {
            continue;
        }
        let address = |text: &str| usize::from_str_radix(text, 16).map_err(io::Error::other);
        let (begin, end) = range.split_once('-').ok_or_else(|| io::Error::other(format!("mapping {mapping:?}")))?;
        let (begin, end) = (address(begin)?, address(end)?);
        let start = std::ptr::with_exposed_provenance_mut(begin);
        // SAFETY: the mapping is one of a file and cannot be written to, so its pages are the file's, and the kernel brings
        // the same ones back when they are touched.
        unsafe { madvise(start, end - begin, advice) }?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kilobytes of this program's code that are mapped.
    fn mapped() -> u64 {
        let program = fs::read_link("/proc/self/exe").unwrap().display().to_string();
        let all = fs::read_to_string("/proc/self/smaps").unwrap();
        let code = all.split_once(" r-xp ").map_or("", |(_, rest)| rest);
        assert!(code.lines().next().unwrap().ends_with(&program), "{code}");
        let line = code.lines().find(|line| line.starts_with("Rss:")).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn code_is_there_again_when_it_is_used() {
        advise_code(Advice::LinuxPopulateRead).unwrap();
        let before = mapped();
        unmap_code().unwrap();
        let after = mapped();
        assert!(after < before, "{before} KiB became {after} KiB");
        assert_eq!(std::hint::black_box("still here").to_uppercase(), "STILL HERE");
    }
}
