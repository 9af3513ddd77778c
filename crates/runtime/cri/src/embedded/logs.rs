//! Log files that were put aside: all but the latest are compressed, as the kubelet has it.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use dhow_oci::shim::log::rotated;
use flate2::Compression;
use flate2::write::GzEncoder;

/// Compresses what was put aside for the log at `path` and is not compressed yet; the latest stays as it is, for those
/// who are reading it.
pub fn compress(path: &Path) {
    let old = rotated(path);
    let Some((_, old)) = old.split_last() else { return };
    for file in old.iter().filter(|file| file.extension().is_none_or(|extension| extension != "gz")) {
        // Removed meanwhile, or the disk is full: the next turn sees what is left.
        if let Err(error) = compress_one(file)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(file = %file.display(), %error, "cannot compress an old log");
        }
    }
}

fn compress_one(path: &Path) -> io::Result<()> {
    let with = |suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
    let (fresh, done) = (with(".tmp"), with(".gz"));
    let mut source = BufReader::new(File::open(path)?);
    let mut encoder = GzEncoder::new(File::create(&fresh)?, Compression::default());
    io::copy(&mut source, &mut encoder)?;
    encoder.finish()?;
    fs::rename(&fresh, &done)?;
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_latest_stays_plain() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        for (name, text) in
            [("", "now"), (".20260101-000000", "oldest"), (".20260102-000000", "old"), (".20260103-000000", "latest")]
        {
            fs::write(folder.path().join(format!("0.log{name}")), text).unwrap();
        }
        compress(&path);
        let mut names: Vec<String> =
            fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        assert_eq!(names, ["0.log", "0.log.20260101-000000.gz", "0.log.20260102-000000.gz", "0.log.20260103-000000"]);
        let file = File::open(folder.path().join(&names[1])).unwrap();
        assert_eq!(io::read_to_string(flate2::read::GzDecoder::new(file)).unwrap(), "oldest");
    }
}
