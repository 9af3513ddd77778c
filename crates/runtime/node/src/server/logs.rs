//! Container logs: CRI log files read, filtered and followed.

use std::fs::Metadata;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use dhow_base::directory::DirectoryWatch;
use dhow_cri::Runtime;
use dhow_cri::runtime::{ContainerState, RuntimeEventKind};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use http::{HeaderValue, Response, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use tokio::sync::mpsc;

use super::Answer;
use super::socket::{self, Receiver, Sender};

const BLOCK: usize = 64 * 1024;
/// The WebSocket subprotocol whose messages are pieces of the log.
pub const SOCKET: &str = "binary.k8s.io";

/// Pieces of a log, until its end or an error.
pub type Lines = mpsc::Receiver<std::io::Result<Bytes>>;

/// The log as an answer's body.
pub fn answer(lines: Lines) -> Answer {
    let frames = futures::stream::unfold(lines, async |mut lines| Some((lines.recv().await?, lines)));
    let mut answer = Response::new(StreamBody::new(frames.map_ok(Frame::data)).boxed_unsync());
    let kind = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, kind);
    answer
}

/// The log in a WebSocket, until its end or the client's.
pub async fn serve(mut lines: Lines, to: Sender, mut from: Receiver) {
    let out = async {
        while let Some(Ok(piece)) = lines.recv().await {
            if !to.send_raw(piece).await {
                return;
            }
        }
    };
    tokio::select! {
        () = out => {}
        () = async { while socket::next_raw(&mut from).await.is_some() {} } => {}
    }
    to.close().await;
}

/// What of a log is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    pub follow: bool,
    pub previous: bool,
    pub timestamps: bool,
    pub tail: Option<u64>,
    pub since: Option<Timestamp>,
    pub limit: Option<u64>,
}

impl LogOptions {
    /// Reads the API's query parameters; the error is for the client.
    pub fn parse(query: &[(String, String)], now: Timestamp) -> Result<Self, String> {
        let mut options = Self::default();
        for (name, value) in query {
            let number =
                || value.parse::<u64>().map_err(|_| format!("{name}: {value:?} is not a number of zero or more"));
            let flag = || matches!(value.as_str(), "true" | "1" | "");
            match name.as_str() {
                "follow" => options.follow = flag(),
                "previous" => options.previous = flag(),
                "timestamps" => options.timestamps = flag(),
                "tailLines" => options.tail = Some(number()?),
                "limitBytes" => options.limit = Some(number()?),
                "sinceTime" => {
                    options.since = Some(value.parse().map_err(|_| format!("sinceTime: {value:?} is not a time"))?);
                }
                "sinceSeconds" => {
                    let seconds = i64::try_from(number()?).unwrap_or(i64::MAX);
                    let since = now.checked_sub(jiff::SignedDuration::from_secs(seconds));
                    options.since = Some(since.unwrap_or(Timestamp::MIN));
                }
                _ => {}
            }
        }
        Ok(options)
    }
}

/// One line of the file: `<time> <stream> <tags> <text>`.
struct Entry<'a> {
    time: &'a [u8],
    partial: bool,
    text: &'a [u8],
}

fn parse(line: &[u8]) -> Option<Entry<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let (time, stream, tags) = (parts.next()?, parts.next()?, parts.next()?);
    if !matches!(stream, b"stdout" | b"stderr") {
        return None;
    }
    let partial = tags.split(|b| *b == b':').next() == Some(b"P");
    Some(Entry { time, partial, text: parts.next().unwrap_or_default() })
}

/// Where the last `count` whole lines start, found from the end backwards.
fn tail_offset(file: &mut std::fs::File, count: u64) -> std::io::Result<u64> {
    let len = file.metadata()?.len();
    let mut seen = 0;
    // Bytes of the file from `start` on that belong to a line whose beginning was not found yet.
    let (mut start, mut rest) = (len, Vec::new());
    let mut last = true;
    while start > 0 {
        let step = start.min(BLOCK as u64);
        start -= step;
        let mut block = vec![0; usize::try_from(step).unwrap_or(BLOCK)];
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block)?;
        block.append(&mut rest);
        let mut end = block.len();
        while end > 0 {
            let newline = block[..end - 1].iter().rposition(|b| *b == b'\n');
            if newline.is_none() && start > 0 {
                break;
            }
            let begin = newline.map_or(0, |at| at + 1);
            // A line counts at its last part, or where the file ends in the middle of it.
            let whole = parse(&block[begin..end]).is_none_or(|entry| !entry.partial);
            if whole || last {
                if seen == count {
                    return Ok(start + end as u64);
                }
                seen += 1;
            }
            last = false;
            end = begin;
        }
        block.truncate(end);
        rest = block;
    }
    Ok(0)
}

/// The end of a log as text: at most this many lines and bytes. A log that cannot be read has none.
pub fn tail(path: &Path, lines: usize, bytes: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let start = tail_offset(&mut file, lines as u64)?;
        // Every line begins with its time and stream: what is wanted of a long tail is at its end.
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.max(len.saturating_sub(BLOCK as u64))))?;
        let mut data = Vec::new();
        file.read_to_end(&mut data)?;
        Ok(Filter::new(LogOptions::default()).push(&data))
    };
    let text = read().unwrap_or_default();
    let excess = text.len().saturating_sub(usize::try_from(bytes).unwrap_or(usize::MAX));
    String::from_utf8_lossy(&text[excess..]).into_owned()
}

/// Turns the file's bytes into what the client reads.
struct Filter {
    options: LogOptions,
    left: u64,
    pending: Vec<u8>,
    at_line_start: bool,
}

impl Filter {
    fn new(options: LogOptions) -> Self {
        let left = options.limit.unwrap_or(u64::MAX);
        Self { options, left, pending: Vec::new(), at_line_start: true }
    }

    fn done(&self) -> bool {
        self.left == 0
    }

    /// An unfinished line is kept for the next call.
    fn push(&mut self, data: &[u8]) -> Vec<u8> {
        self.pending.extend_from_slice(data);
        let pending = std::mem::take(&mut self.pending);
        let mut out = Vec::new();
        let mut rest = pending.as_slice();
        while let Some(at) = rest.iter().position(|b| *b == b'\n') {
            self.line(&rest[..at], &mut out);
            rest = &rest[at + 1..];
        }
        self.pending = rest.to_vec();
        if out.len() as u64 > self.left {
            out.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        }
        self.left -= out.len() as u64;
        out
    }

    fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(entry) = parse(line) else { return };
        if let Some(since) = self.options.since {
            let time = std::str::from_utf8(entry.time).ok().and_then(|t| t.parse::<Timestamp>().ok());
            if time.is_none_or(|time| time < since) {
                return;
            }
        }
        if self.options.timestamps && self.at_line_start {
            out.extend_from_slice(entry.time);
            out.push(b' ');
        }
        out.extend_from_slice(entry.text);
        if !entry.partial {
            out.push(b'\n');
        }
        self.at_line_start = !entry.partial;
    }
}

/// A log on its way to a client.
pub struct LogStream {
    pub runtime: Arc<dyn Runtime>,
    pub container: String,
    pub path: PathBuf,
    pub options: LogOptions,
}

fn same(a: &Metadata, b: &Metadata) -> bool {
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

impl LogStream {
    /// Opens the file now, so that its absence is an answer, and sends the rest as it comes.
    pub fn start(self) -> std::io::Result<Lines> {
        // Events come first: what happens after this line is seen, what happened before is in the file.
        let events = self.options.follow.then(|| self.runtime.events());
        let directory = self.path.parent().unwrap_or(Path::new("/"));
        let watch = if self.options.follow { Some(DirectoryWatch::new(directory)?) } else { None };
        let mut file = std::fs::File::open(&self.path)?;
        let offset = match self.options.tail {
            Some(count) => tail_offset(&mut file, count)?,
            None => 0,
        };
        file.seek(SeekFrom::Start(offset))?;
        let (sender, receiver) = mpsc::channel(16);
        tokio::spawn(async move {
            if let Err(error) = self.send(file, watch.zip(events), &sender).await {
                let _ = sender.send(Err(error)).await;
            }
        });
        Ok(receiver)
    }

    async fn send(
        self,
        mut file: std::fs::File,
        follow: Option<(DirectoryWatch, BoxStream<'static, dhow_cri::runtime::RuntimeEvent>)>,
        to: &mpsc::Sender<std::io::Result<Bytes>>,
    ) -> std::io::Result<()> {
        let mut filter = Filter::new(self.options.clone());
        let Some((watch, mut events)) = follow else {
            drain(&mut file, &mut filter, to).await?;
            return Ok(());
        };
        let mut ended = !self.is_live().await;
        loop {
            if !drain(&mut file, &mut filter, to).await? {
                return Ok(());
            }
            // Rotation puts a new file in the place of this one, after its last line was written.
            if let Ok(next) = std::fs::File::open(&self.path)
                && !same(&next.metadata()?, &file.metadata()?)
            {
                if !drain(&mut file, &mut filter, to).await? {
                    return Ok(());
                }
                file = next;
                continue;
            }
            if ended {
                return Ok(());
            }
            tokio::select! {
                changed = watch.changed() => changed?,
                () = to.closed() => return Ok(()),
                event = events.next() => match event {
                    Some(event) => {
                        ended = event.container_id == self.container
                            && matches!(event.kind, RuntimeEventKind::Exited | RuntimeEventKind::Removed);
                    }
                    // The stream fell behind or closed: subscribe anew, then look.
                    None => {
                        events = self.runtime.events();
                        ended = !self.is_live().await;
                        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                    }
                },
            }
        }
    }

    async fn is_live(&self) -> bool {
        let status = self.runtime.container_status(&self.container).await;
        status.is_ok_and(|s| matches!(s.state, ContainerState::Running | ContainerState::Created))
    }
}

/// Sends up to the end of the file; `false` when the client has what it wants or is gone.
async fn drain(
    file: &mut std::fs::File,
    filter: &mut Filter,
    to: &mpsc::Sender<std::io::Result<Bytes>>,
) -> std::io::Result<bool> {
    let mut block = vec![0; BLOCK];
    loop {
        let count = file.read(&mut block)?;
        if count == 0 {
            return Ok(true);
        }
        let out = filter.push(&block[..count]);
        if !out.is_empty() && to.send(Ok(out.into())).await.is_err() || filter.done() {
            return Ok(false);
        }
    }
}

#[cfg(test)]
#[path = "logs_tests.rs"]
mod tests;
