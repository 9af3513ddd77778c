//! Logs of runs: what `dhow build --progress=plain` prints, each line with its time in front, in a file per run.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::sync::{mpsc, watch};

use crate::copy::At;
use crate::error::Result;
use crate::event::Event;

/// Largest log; what comes after that is not kept.
const MOST: u64 = 16 << 20;
/// Longest line, in bytes; what is longer is cut into several.
const LINE: usize = 16 << 10;
/// A few pieces are sent at once.
const PIECE: usize = 64 << 10;

/// Writes the log of one run, until it is dropped.
pub struct Writer {
    state: Mutex<State>,
    ended: Option<Box<dyn FnOnce() + Send + Sync>>,
}

struct State {
    file: File,
    bytes: u64,
    told: watch::Sender<u64>,
    /// By number: when it began, and what came of a line so far.
    steps: BTreeMap<usize, (Instant, String)>,
}

impl Writer {
    pub fn new(path: &Path, told: watch::Sender<u64>, ended: Box<dyn FnOnce() + Send + Sync>) -> Result<Self> {
        let file = File::create(path).at("make a log")?;
        let state = State { file, bytes: 0, told, steps: BTreeMap::new() };
        Ok(Writer { state: Mutex::new(state), ended: Some(ended) })
    }

    /// Writes down what happened.
    pub fn tell(&self, event: &Event) {
        let state = &mut *self.state.lock();
        match event {
            Event::Started { step, name } => {
                state.steps.insert(*step, (Instant::now(), String::new()));
                state.line(&format!("#{step} {}", name.lines().next().unwrap_or_default()));
            }
            Event::Output { step, text, .. } => state.output(*step, text),
            Event::Cached { step } => state.end(*step, "CACHED"),
            Event::Done { step, seconds } => state.end(*step, &format!("DONE {seconds:.1}s")),
            Event::Failed { step, error } => state.end(*step, &format!("ERROR: {error}")),
            Event::Warning { text } => state.line(&format!("WARNING: {text}")),
            Event::Built { id, .. } => state.line(&format!("built {id}")),
            Event::Pushed { name, digest } => state.line(&format!("pushed {name}@{digest}")),
            Event::Error { message, .. } => state.line(message),
            Event::Source { .. }
            | Event::Base { .. }
            | Event::Cache { .. }
            | Event::Unauthorized { .. }
            | Event::Archive => {}
        }
        state.told.send_replace(state.bytes);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(ended) = self.ended.take() {
            ended();
        }
    }
}

impl State {
    fn line(&mut self, text: &str) {
        for text in text.lines() {
            if self.bytes > MOST {
                return;
            }
            // What a bar of the program's own overwrote.
            let text = text.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
            let mut line = format!("{:.3} {text}\n", jiff::Timestamp::now());
            if self.bytes + line.len() as u64 > MOST {
                line = format!(
                    "{:.3} the log is longer than {MOST} bytes; the rest is not kept\n",
                    jiff::Timestamp::now()
                );
                self.bytes = MOST;
            }
            match self.file.write_all(line.as_bytes()) {
                Ok(()) => self.bytes += line.len() as u64,
                Err(error) => {
                    tracing::warn!(%error, "write the log of a build");
                    self.bytes = MOST + 1;
                }
            }
        }
    }

    fn output(&mut self, step: usize, text: &str) {
        let Some((begun, open)) = self.steps.get_mut(&step) else { return };
        open.push_str(text);
        let seconds = begun.elapsed().as_secs_f64();
        let mut lines = Vec::new();
        loop {
            let end = match open.find('\n') {
                Some(end) => end + 1,
                None if open.len() > LINE => open.floor_char_boundary(LINE),
                None => break,
            };
            let line: String = open.drain(..end).collect();
            lines.push(line.trim_end_matches('\n').to_owned());
        }
        for line in lines {
            let line = line.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
            self.line(&format!("#{step} {seconds:.3} {line}"));
        }
    }

    fn end(&mut self, step: usize, how: &str) {
        if self.steps.get(&step).is_some_and(|(_, open)| !open.is_empty()) {
            self.output(step, "\n");
        }
        // One that was made before ends, too.
        if self.steps.remove(&step).is_some() {
            self.line(&format!("#{step} {how}"));
        }
    }
}

/// What a reader wants of a log, by the names that pods' logs have for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    pub follow: bool,
    pub timestamps: bool,
    pub tail: Option<usize>,
}

impl Shown {
    pub fn parse(query: &str) -> Self {
        let mut shown = Shown::default();
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            match name {
                "follow" => shown.follow = value == "true",
                "timestamps" => shown.timestamps = value == "true",
                "tailLines" => shown.tail = value.parse().ok(),
                _ => {}
            }
        }
        shown
    }
}

/// Sends a log, and what is added to it, to the end of the run or for as long as somebody reads.
pub async fn copy(
    file: tokio::fs::File,
    shown: Shown,
    mut growing: Option<watch::Receiver<u64>>,
    to: mpsc::Sender<std::io::Result<Bytes>>,
) {
    let mut lines = BufReader::with_capacity(PIECE, file);
    let mut skipped = shown.tail.is_none();
    let (mut kept, mut piece) = (std::collections::VecDeque::new(), Vec::new());
    loop {
        // Before reading: what is written after that is told again.
        let alive = match &mut growing {
            Some(growing) => {
                growing.borrow_and_update();
                growing.has_changed().is_ok()
            }
            None => false,
        };
        loop {
            let mut line = Vec::new();
            match lines.read_until(b'\n', &mut line).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => return drop(to.send(Err(error)).await),
            }
            if !shown.timestamps
                && let Some(at) = line.iter().position(|byte| *byte == b' ')
            {
                line.drain(..=at);
            }
            match shown.tail.filter(|_| !skipped) {
                Some(most) => {
                    kept.push_back(line);
                    if kept.len() > most {
                        kept.pop_front();
                    }
                }
                None => piece.extend(line),
            }
            if piece.len() >= PIECE && to.send(Ok(Bytes::from(std::mem::take(&mut piece)))).await.is_err() {
                return;
            }
        }
        skipped = true;
        piece.extend(kept.drain(..).flatten());
        if !piece.is_empty() && to.send(Ok(Bytes::from(std::mem::take(&mut piece)))).await.is_err() {
            return;
        }
        if !alive {
            return;
        }
        if let Some(growing) = &mut growing {
            tokio::select! {
                // At its end there may be something left to read.
                _ = growing.changed() => {}
                () = to.closed() => return,
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    async fn read(path: &Path, query: &str, growing: Option<watch::Receiver<u64>>) -> String {
        let (to, mut pieces) = mpsc::channel(8);
        let file = tokio::fs::File::open(path).await.unwrap();
        tokio::spawn(copy(file, Shown::parse(query), growing, to));
        let mut all = Vec::new();
        while let Some(piece) = pieces.recv().await {
            all.extend(piece.unwrap());
        }
        String::from_utf8(all).unwrap()
    }

    #[tokio::test]
    async fn logs_are_read_while_they_grow() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let (told, growing) = watch::channel(0);
        let writer = Writer::new(&path, told, Box::new(|| {})).unwrap();
        writer.tell(&Event::Started { step: 1, name: "RUN make\nmore".to_owned() });
        writer.tell(&Event::Output { step: 1, stderr: false, text: "10%\r100%\nha".to_owned() });
        let reading = tokio::spawn({
            let path = path.clone();
            async move { read(&path, "follow=true", Some(growing)).await }
        });
        tokio::task::yield_now().await;
        writer.tell(&Event::Output { step: 1, stderr: true, text: "lf".to_owned() });
        writer.tell(&Event::Done { step: 1, seconds: 0.25 });
        drop(writer);
        let text = reading.await.unwrap();
        let words: Vec<&str> = text.lines().map(|line| line.rsplit(' ').next().unwrap()).collect();
        assert_eq!(words, ["make", "100%", "half", "0.2s"], "{text}");
        let last = read(&path, "tailLines=1&timestamps=true", None).await;
        let (time, rest) = last.split_once(' ').unwrap();
        assert!(time.parse::<jiff::Timestamp>().is_ok() && rest.starts_with("#1 DONE"), "{last}");
    }

    #[tokio::test]
    async fn a_log_ends_somewhere() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let writer = Writer::new(&path, watch::channel(0).0, Box::new(|| {})).unwrap();
        writer.tell(&Event::Started { step: 1, name: "RUN yes".to_owned() });
        let text = "y".repeat(1 << 20);
        for _ in 0..20 {
            writer.tell(&Event::Output { step: 1, stderr: false, text: text.clone() });
        }
        assert!(std::fs::metadata(&path).unwrap().len() < MOST + 200);
        assert!(read(&path, "tailLines=1", None).await.contains("is not kept"));
    }
}
