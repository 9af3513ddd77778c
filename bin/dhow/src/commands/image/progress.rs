//! A transfer as people see it: a bar per layer on a terminal, a line per finished layer elsewhere.
#![allow(clippy::print_stderr)]

use std::collections::HashMap;
use std::io::IsTerminal;

use dhow_image::{Digest, Progress};
use indicatif::{BinaryBytes, MultiProgress, ProgressBar, ProgressStyle};

/// A bar for one stream of bytes on standard error; shown on a terminal only.
pub fn bytes(length: Option<u64>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = length.map_or_else(ProgressBar::no_length, ProgressBar::new);
    let template = match length {
        Some(_) => "{bar:30} {bytes}/{total_bytes} {bytes_per_sec}",
        None => "{spinner} {bytes} {bytes_per_sec}",
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

pub struct Shown {
    /// `None` when nobody looks.
    bars: Option<MultiProgress>,
    blobs: HashMap<Digest, ProgressBar>,
}

impl Shown {
    pub fn new(terminal: bool) -> Self {
        Self { bars: terminal.then(MultiProgress::new), blobs: HashMap::new() }
    }

    pub fn show(&mut self, step: Progress) {
        match step {
            Progress::Resolved { digest, layers, bytes } => {
                self.say(&format!("{digest}: {layers} layers, {}", BinaryBytes(bytes)));
            }
            Progress::Downloading { blob, done, total } | Progress::Uploading { blob, done, total } => {
                if let Some(bar) = self.bar(&blob) {
                    bar.set_length(total);
                    bar.set_position(done);
                }
            }
            Progress::Present { blob, .. } => self.finish(&blob, "already there"),
            Progress::Downloaded { blob, bytes } => self.finish(&blob, &format!("downloaded {}", BinaryBytes(bytes))),
            Progress::Unpacked { blob } => self.finish(&blob, "unpacked"),
            Progress::Uploaded { blob, bytes } => self.finish(&blob, &format!("uploaded {}", BinaryBytes(bytes))),
            Progress::Mounted { blob, .. } => self.finish(&blob, "mounted from another repository"),
            Progress::Done { .. } => {}
        }
    }

    /// Makes room for what is said after it.
    pub fn clear(&self) {
        if let Some(bars) = &self.bars {
            let _ = bars.clear();
        }
    }

    fn finish(&mut self, blob: &Digest, what: &str) {
        match self.bar(blob) {
            Some(bar) => {
                bar.set_position(bar.length().unwrap_or(0));
                bar.set_message(what.to_owned());
            }
            None => self.say(&format!("{}: {what}", short(blob))),
        }
    }

    fn say(&self, line: &str) {
        match &self.bars {
            Some(bars) => drop(bars.println(line)),
            None => eprintln!("{line}"),
        }
    }

    fn bar(&mut self, blob: &Digest) -> Option<&ProgressBar> {
        let bars = self.bars.as_ref()?;
        Some(self.blobs.entry(blob.clone()).or_insert_with(|| {
            let bar = ProgressBar::new(0).with_prefix(short(blob).to_owned());
            let bar = match ProgressStyle::with_template("{prefix} {bar:30} {bytes:>12}/{total_bytes:12} {msg}") {
                Ok(style) => bar.with_style(style),
                Err(_) => bar,
            };
            bars.add(bar)
        }))
    }
}

fn short(digest: &Digest) -> &str {
    &digest.hex()[..12]
}
