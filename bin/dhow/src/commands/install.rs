//! `dhow install`: puts the binary in place and hands the daemon to systemd; `--remove` takes both away again.
#![allow(clippy::print_stderr, clippy::print_stdout)]

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::cli::InstallArgs;
use crate::daemon::Role;
use crate::join::Join;
use crate::place::Place;
use crate::{pidfile, preflight};

pub fn run(args: &InstallArgs) -> Result<()> {
    let place = Place::resolve(&args.place)?;
    if args.remove {
        preflight::root("dhow install")?;
        return remove(args);
    }
    let role = match () {
        () if args.server => Role::Server,
        () if Join::read(&place)?.is_some() => Role::Node,
        () => Role::All,
    };
    let unit = unit(&place, role, &args.binary)?;
    if args.print {
        print!("{unit}");
        return Ok(());
    }
    preflight::root("dhow install")?;
    place_binary(&args.binary)?;
    write_whole(&args.unit, unit.as_bytes(), 0o644)?;
    eprintln!("{} runs {}.", args.unit.display(), args.binary.display());
    if !Path::new("/run/systemd/system").is_dir() {
        eprintln!("systemd does not run here, so nothing was started.");
        return Ok(());
    }
    systemctl(&["daemon-reload"])?;
    let name = unit_name(&args.unit)?;
    systemctl(&["enable", name])?;
    if args.no_start {
        return Ok(());
    }
    // Containers outlive the daemon, so this is also how a new version comes to run.
    if let Some(pid) = pidfile::holder(&place.pid_file())
        && !is_active(name)
    {
        eprintln!("The daemon that runs (pid {}) is stopped; its containers go on.", pid.as_raw_nonzero());
        pidfile::stop(&place.pid_file())?;
    }
    systemctl(&["restart", name])?;
    eprintln!("{name} is ready; `systemctl status {name}` and `dhow status` show it.");
    Ok(())
}

fn remove(args: &InstallArgs) -> Result<()> {
    let name = unit_name(&args.unit)?;
    if Path::new("/run/systemd/system").is_dir() && args.unit.exists() {
        systemctl(&["disable", "--now", name])?;
    }
    for file in [&args.unit, &args.binary, &previous(&args.binary)] {
        match fs::remove_file(file) {
            Ok(()) => eprintln!("{} is removed.", file.display()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("remove {}", file.display())),
        }
    }
    if Path::new("/run/systemd/system").is_dir() {
        systemctl(&["daemon-reload"])?;
    }
    eprintln!("Containers and data are untouched; `dhow down --purge` removes those.");
    Ok(())
}

/// The unit as systemd.service(5) and systemd.exec(5) have it. Killing only the daemon's process leaves containers alone,
/// and delegation keeps systemd out of their control groups.
fn unit(place: &Place, role: Role, binary: &Path) -> Result<String> {
    let mut command = vec![quoted(binary.as_os_str())?, role.command().to_owned()];
    for argument in place.as_args() {
        command.push(quoted(&argument)?);
    }
    let command = command.join(" ");
    Ok(format!(
        "[Unit]\n\
         Description=Dhow container cloud\n\
         Wants=network-online.target\n\
         After=network-online.target time-sync.target\n\
         \n\
         [Service]\n\
         Type=notify\n\
         NotifyAccess=main\n\
         ExecStart={command}\n\
         Restart=on-failure\n\
         RestartSec=1\n\
         KillMode=process\n\
         Delegate=yes\n\
         TasksMax=infinity\n\
         LimitNOFILE=1048576\n\
         LimitNPROC=infinity\n\
         LimitCORE=infinity\n\
         OOMScoreAdjust=-900\n\
         TimeoutStartSec=120\n\
         \n\
         [Install]\n\
         WantedBy=multi-user.target\n"
    ))
}

/// One word of a command line, as systemd.service(5) reads it.
fn quoted(word: &OsStr) -> Result<String> {
    let text = word.to_str().with_context(|| format!("{} is not UTF-8", word.display()))?;
    ensure!(!text.contains(['\n', '\r']), "{text:?} has a line break, which a unit cannot hold");
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    let plain = !text.is_empty() && !escaped.contains([' ', '\t', '"', '\'', ';']);
    Ok(if plain { escaped } else { format!("\"{escaped}\"") })
}

fn unit_name(unit: &Path) -> Result<&str> {
    unit.file_name().and_then(OsStr::to_str).with_context(|| format!("{} is no name of a unit", unit.display()))
}

/// Where the binary that an upgrade replaced is kept.
fn previous(binary: &Path) -> PathBuf {
    let mut name = binary.as_os_str().to_owned();
    name.push(".previous");
    name.into()
}

/// Copies this program to where the unit expects it. What was there stays beside it, to go back to.
fn place_binary(target: &Path) -> Result<()> {
    let own = std::env::current_exe().context("find this program")?;
    if fs::canonicalize(target).is_ok_and(|there| there == own) {
        return Ok(());
    }
    let bytes = fs::read(&own).with_context(|| format!("read {}", own.display()))?;
    match fs::read(target) {
        Ok(old) if old == bytes => return Ok(()),
        Ok(_) => {
            let kept = previous(target);
            fs::rename(target, &kept).with_context(|| format!("keep the former program as {}", kept.display()))?;
            eprintln!("The former version is kept as {}; run its `install` to go back.", kept.display());
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(|| format!("read {}", target.display())),
    }
    write_whole(target, &bytes, 0o755)
}

/// The file appears once it is whole and on disk.
fn write_whole(target: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let folder = target.parent().with_context(|| format!("{} is not in a folder", target.display()))?;
    if !folder.is_dir() {
        bail!("{} is not a folder", folder.display());
    }
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(|| format!("write to {}", folder.display()))?;
    file.write_all(bytes).with_context(|| format!("write {}", target.display()))?;
    file.as_file().set_permissions(fs::Permissions::from_mode(mode)).context("set the file's mode")?;
    file.as_file().sync_all().with_context(|| format!("write {}", target.display()))?;
    file.persist(target).with_context(|| format!("write {}", target.display()))?;
    Ok(())
}

fn is_active(unit: &str) -> bool {
    Command::new("systemctl").args(["is-active", "--quiet", unit]).status().is_ok_and(|status| status.success())
}

fn systemctl(args: &[&str]) -> Result<()> {
    let status = Command::new("systemctl").args(args).status().context("run systemctl")?;
    ensure!(status.success(), "systemctl {} failed; `journalctl -u dhow -n 50` says why", args.join(" "));
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::place::tests::place;

    #[test]
    fn the_unit_starts_the_same_place_and_leaves_containers_alone() {
        let folder = tempfile::tempdir().unwrap();
        let mut place = place(folder.path());
        place.data_dir = "/srv/my cloud/50%".into();
        let unit = unit(&place, Role::All, Path::new("/usr/local/bin/dhow")).unwrap();
        assert!(unit.contains("ExecStart=/usr/local/bin/dhow serve --config "), "{unit}");
        assert!(unit.contains(" --data-dir \"/srv/my cloud/50%%\" "), "{unit}");
        for line in ["Type=notify", "KillMode=process", "Delegate=yes", "WantedBy=multi-user.target"] {
            assert!(unit.lines().any(|found| found == line), "{line}");
        }
        // systemd's own reader has no complaint about it.
        let file = folder.path().join("dhow.service");
        fs::write(&file, unit.replace("/usr/local/bin/dhow", "/bin/true")).unwrap();
        let verify = Command::new("systemd-analyze").arg("verify").arg("--man=no").arg(&file).output();
        let verify = verify.expect("systemd-analyze, of the package systemd");
        let said = String::from_utf8_lossy(&verify.stderr);
        assert!(!said.contains("dhow.service:"), "{said}");
    }

    #[test]
    fn words_are_quoted_as_systemd_reads_them() {
        for (word, wanted) in
            [("a", "a"), ("a b", "\"a b\""), ("", "\"\""), ("1%", "1%%"), ("$x", "$$x"), ("a\"b", "\"a\\\"b\"")]
        {
            assert_eq!(quoted(OsStr::new(word)).unwrap(), wanted);
        }
        assert!(quoted(OsStr::new("a\nb")).is_err());
    }

    #[test]
    fn the_binary_that_is_replaced_stays_beside_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("dhow");
        fs::write(&target, "old").unwrap();
        place_binary(&target).unwrap();
        assert_eq!(fs::read(previous(&target)).unwrap(), b"old");
        assert_eq!(fs::read(&target).unwrap(), fs::read(std::env::current_exe().unwrap()).unwrap());
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o755);
        // Once more changes nothing, above all not what is kept.
        place_binary(&target).unwrap();
        assert_eq!(fs::read(previous(&target)).unwrap(), b"old");
    }
}
