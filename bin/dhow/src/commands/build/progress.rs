//! A build as people see it: a line per step that moves on a terminal, all output with numbers elsewhere.
#![allow(clippy::print_stderr)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dhow_builder::Event;
use indicatif::{BinaryBytes, MultiProgress, ProgressBar, ProgressStyle};

use crate::cli::ProgressKind;

/// Lines shown again of a step that failed.
const TAIL: usize = 40;
/// Of our own steps; the node counts from one.
const OWN: usize = 0;

pub struct Shown {
    kind: ProgressKind,
    bars: MultiProgress,
    steps: BTreeMap<usize, Step>,
    /// Of the step that failed first.
    failed: Option<(String, VecDeque<String>)>,
    sent: Arc<AtomicU64>,
}

struct Step {
    name: String,
    started: Instant,
    /// What came of a line so far.
    open: String,
    tail: VecDeque<String>,
    bar: Option<ProgressBar>,
    ended: bool,
}

impl Shown {
    pub fn new(kind: ProgressKind) -> Self {
        Shown { kind, bars: MultiProgress::new(), steps: BTreeMap::new(), failed: None, sent: Arc::default() }
    }

    /// Counts what is sent.
    pub fn sent(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.sent)
    }

    /// A step of our own.
    pub fn begin(&mut self, name: &str) -> usize {
        self.start(OWN, name.to_owned());
        OWN
    }

    pub fn end(&mut self, step: usize) {
        let sent = BinaryBytes(self.sent.load(Ordering::Relaxed));
        if self.kind == ProgressKind::Plain {
            eprintln!("#{step} transferring context: {sent}");
        }
        let seconds = self.steps.get(&step).map_or(0.0, |step| step.started.elapsed().as_secs_f64());
        self.show(Event::Done { step, seconds });
    }

    fn start(&mut self, number: usize, name: String) {
        let shown = name.lines().next().unwrap_or_default().to_owned();
        let mut bar = None;
        match self.kind {
            ProgressKind::Plain => eprintln!("#{number} {shown}"),
            ProgressKind::Tty => {
                let new = self.bars.add(ProgressBar::new_spinner());
                if let Ok(style) = ProgressStyle::with_template("{spinner} => {prefix} {elapsed} {wide_msg:.dim}") {
                    new.set_style(style);
                }
                new.set_prefix(shown.clone());
                new.enable_steady_tick(Duration::from_millis(120));
                bar = Some(new);
            }
            ProgressKind::Quiet | ProgressKind::Auto => {}
        }
        let (open, tail) = (String::new(), VecDeque::new());
        let step = Step { name: shown, started: Instant::now(), open, tail, bar, ended: false };
        self.steps.insert(number, step);
    }

    pub fn show(&mut self, event: Event) {
        match event {
            Event::Started { step, name } => self.start(step, name),
            Event::Output { step, text, .. } => self.output(step, &text),
            Event::Cached { step } => self.finish(step, "CACHED", " => CACHED"),
            Event::Done { step, seconds } => {
                self.finish(step, &format!("DONE {seconds:.1}s"), &format!("{seconds:.1}s"));
            }
            Event::Failed { step, error } => {
                let shown = format!("ERROR: {error}");
                self.finish(step, &shown, "ERROR");
                if let Some(step) = self.steps.get_mut(&step)
                    && self.failed.is_none()
                {
                    self.failed = Some((step.name.clone(), std::mem::take(&mut step.tail)));
                }
            }
            Event::Warning { text } => self.say(&format!("WARNING: {text}")),
            Event::Pushed { name, digest } => self.say(&format!("pushed {name}@{digest}")),
            Event::Built { .. }
            | Event::Cache { .. }
            | Event::Source { .. }
            | Event::Base { .. }
            | Event::Unauthorized { .. }
            | Event::Archive
            | Event::Error { .. } => {}
        }
    }

    pub fn built(&self, id: &str, names: &[String]) {
        self.say(&format!("built {}", if names.is_empty() { id.to_owned() } else { names.join(", ") }));
    }

    /// Says something that is no step's.
    pub fn say(&self, text: &str) {
        match self.kind {
            ProgressKind::Quiet => {}
            // Above the lines that move.
            ProgressKind::Tty => drop(self.bars.println(text)),
            _ => eprintln!("{text}"),
        }
    }

    fn output(&mut self, number: usize, text: &str) {
        let Some(step) = self.steps.get_mut(&number) else { return };
        step.open.push_str(text);
        while let Some(end) = step.open.find('\n') {
            let line: String = step.open.drain(..=end).collect();
            let line = line.trim_end_matches(['\n', '\r']);
            // What a bar of the program's own overwrote.
            let line = line.rsplit('\r').next().unwrap_or_default().to_owned();
            if self.kind == ProgressKind::Plain {
                eprintln!("#{number} {:.3} {line}", step.started.elapsed().as_secs_f64());
            }
            if let Some(bar) = &step.bar {
                bar.set_message(line.clone());
            }
            step.tail.push_back(line);
            if step.tail.len() > TAIL {
                step.tail.pop_front();
            }
        }
    }

    fn finish(&mut self, number: usize, plain: &str, tty: &str) {
        self.end_line(number);
        let Some(step) = self.steps.get_mut(&number) else { return };
        // One that was made before ends, too.
        if std::mem::replace(&mut step.ended, true) {
            return;
        }
        match self.kind {
            ProgressKind::Plain => eprintln!("#{number} {plain}\n"),
            ProgressKind::Tty => {
                if let Some(bar) = step.bar.take() {
                    bar.finish_and_clear();
                }
                let text = match tty.strip_prefix(" => ") {
                    Some(state) => format!(" => {state} {}", step.name),
                    None => format!(" => {} {tty}", step.name),
                };
                let _ = self.bars.println(text);
            }
            ProgressKind::Quiet | ProgressKind::Auto => {}
        }
    }

    fn end_line(&mut self, number: usize) {
        if self.steps.get(&number).is_some_and(|step| !step.open.is_empty()) {
            self.output(number, "\n");
        }
    }

    /// What the step that failed wrote last, for whoever did not see it.
    pub fn explain(&self) {
        let Some((name, tail)) = &self.failed else { return };
        if self.kind == ProgressKind::Plain || tail.is_empty() {
            return;
        }
        let _ = self.bars.clear();
        eprintln!("------\n > {name}:");
        for line in tail {
            eprintln!("{line}");
        }
        eprintln!("------");
    }

    /// Makes room for what is said after it.
    pub fn clear(&self) {
        let _ = self.bars.clear();
    }
}
