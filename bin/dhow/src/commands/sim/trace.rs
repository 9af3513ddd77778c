//! Traces of clusters: when each pod came, what it asked for, and how long it ran.
//!
//! Our own are CSV whose first line names the columns (also those of Alibaba's GPU traces), or JSON lines. Columns of others
//! are mapped by position, as `docs/scheduling.md` says. Sizes that a trace gives as a share of a machine become that share
//! of the simulated node.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use super::entry::{Entry, Size};
use crate::cli::TraceFormat;

pub fn read(file: &Path, format: TraceFormat, node: &Size) -> Result<Vec<Entry>> {
    let open = File::open(file).with_context(|| format!("read {}", file.display()))?;
    parse(BufReader::new(open), format, node).with_context(|| format!("read the trace {}", file.display()))
}

fn parse(mut text: impl BufRead, format: TraceFormat, node: &Size) -> Result<Vec<Entry>> {
    let format = match format {
        TraceFormat::Auto if text.fill_buf()?.trim_ascii_start().starts_with(b"{") => TraceFormat::Jsonl,
        TraceFormat::Auto => TraceFormat::Csv,
        other => other,
    };
    let mut reader = Reader { node, entries: Vec::new(), columns: None, events: HashMap::new() };
    for (number, line) in text.lines().enumerate() {
        let line = line.with_context(|| format!("line {}", number + 1))?;
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let read = match format {
            TraceFormat::Jsonl => reader.json(line),
            TraceFormat::Alibaba2018Batch => reader.batch_task(&fields(line)),
            TraceFormat::Alibaba2018Containers => reader.container(&fields(line)),
            TraceFormat::Google2011 => reader.task_event(&fields(line)),
            TraceFormat::Auto | TraceFormat::Csv => reader.csv(&fields(line)),
        };
        read.with_context(|| format!("line {}: {line:?}", number + 1))?;
    }
    reader.finish()
}

fn fields(line: &str) -> Vec<&str> {
    line.split(',').map(|field| field.trim().trim_matches('"')).collect()
}

struct Reader<'a> {
    node: &'a Size,
    entries: Vec<Entry>,
    /// Of a CSV file: where each column is.
    columns: Option<HashMap<String, usize>>,
    /// Of a trace of events: the pods that have not ended, by job and task.
    events: HashMap<String, usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    name: String,
    #[serde(default)]
    cpu: String,
    #[serde(default)]
    memory: String,
    #[serde(default)]
    gpus: u32,
    #[serde(default)]
    create: f64,
    delete: Option<f64>,
    #[serde(default)]
    priority: i32,
}

/// A name that the API takes.
fn named(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = name.chars().map(plain).take(200).collect();
    name.trim_matches('-').to_owned()
}

/// Past the 32nd bit, no machine has so much.
fn amount(number: f64) -> Result<u64> {
    if !(0.0..=1e18).contains(&number) {
        bail!("{number} is no amount");
    }
    Ok(number.round() as u64)
}

impl Reader<'_> {
    fn json(&mut self, line: &str) -> Result<()> {
        let line: Line = serde_json::from_str(line)?;
        let text = |text: &str| if text.is_empty() { "0".to_owned() } else { text.to_owned() };
        let size = Size::read(&text(&line.cpu), &text(&line.memory), line.gpus)?;
        self.push(&line.name, size, line.create, line.delete, line.priority)
    }

    fn csv(&mut self, fields: &[&str]) -> Result<()> {
        let Some(columns) = &self.columns else {
            let columns: HashMap<String, usize> =
                fields.iter().enumerate().map(|(i, f)| ((*f).to_owned(), i)).collect();
            if let Some(missing) = ["name", "cpu_milli", "memory_mib"].iter().find(|name| !columns.contains_key(**name))
            {
                bail!("the first line names no column {missing:?}; other traces need --trace-format");
            }
            self.columns = Some(columns);
            return Ok(());
        };
        let text = |name: &str| columns.get(name).and_then(|at| fields.get(*at)).copied().filter(|f| !f.is_empty());
        let number = |name: &str| -> Result<Option<f64>> {
            let Some(text) = text(name) else { return Ok(None) };
            text.parse().map(Some).with_context(|| format!("{name} is no number"))
        };
        let needed = |name: &str| number(name)?.with_context(|| format!("there is no {name}"));
        let size = Size {
            cpu: amount(needed("cpu_milli")?)?,
            memory: amount(needed("memory_mib")? * f64::from(1 << 20))?,
            gpus: u32::try_from(amount(number("num_gpu")?.unwrap_or(0.0))?)?,
        };
        let name = text("name").context("there is no name")?.to_owned();
        let (comes, goes) = (number("creation_time")?.unwrap_or(0.0), number("deletion_time")?);
        let priority = number("priority")?.unwrap_or(0.0) as i32;
        self.push(&name, size, comes, goes, priority)
    }

    /// task, instances, job, type, status, start, end, CPU in hundredths of a core, memory in hundredths of a machine.
    fn batch_task(&mut self, fields: &[&str]) -> Result<()> {
        let number = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
        let text = |at: usize| fields.get(at).copied().unwrap_or_default();
        let (Some(instances), Some(start)) = (number(1), number(5)) else {
            bail!("no number of instances or no start")
        };
        // Tasks that were never started have nothing to ask for.
        let (Some(cpu), Some(memory)) = (number(7), number(8)) else { return Ok(()) };
        let size = Size { cpu: amount(cpu * 10.0)?, memory: self.share(memory / 100.0)?, gpus: 0 };
        let goes = number(6).filter(|end| *end > start);
        for instance in 0..amount(instances)?.min(1_000_000) {
            let name = format!("{}-{}-{instance}", text(2), text(0));
            self.push(&name, size, start, goes, 0)?;
        }
        Ok(())
    }

    /// container, machine, time, deploy unit, status, requested CPU in hundredths, its limit, memory in hundredths of a machine.
    fn container(&mut self, fields: &[&str]) -> Result<()> {
        let number = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
        let (Some(name), Some(time)) = (fields.first(), number(2)) else { bail!("no container or no time") };
        // One line for each time that its state was noted: the first is when it came.
        if self.events.contains_key(*name) {
            return Ok(());
        }
        let size = Size {
            cpu: amount(number(5).unwrap_or(0.0) * 10.0)?,
            memory: self.share(number(7).unwrap_or(0.0) / 100.0)?,
            gpus: 0,
        };
        self.events.insert((*name).to_owned(), self.entries.len());
        self.push(name, size, time, None, 0)
    }

    /// microseconds, missing, job, task, machine, event, user, class, priority, CPU and memory as shares of a machine, ...
    fn task_event(&mut self, fields: &[&str]) -> Result<()> {
        let number = |at: usize| fields.get(at).and_then(|text| text.parse::<f64>().ok());
        let text = |at: usize| fields.get(at).copied().unwrap_or_default();
        let (Some(time), Some(event)) = (number(0), number(5)) else { bail!("no time or no event") };
        let (seconds, key) = (time / 1e6, format!("{}-{}", text(2), text(3)));
        match event as u8 {
            // Submitted, perhaps again after it was evicted.
            0 => {
                let priority = number(8).unwrap_or(0.0) as i32;
                let share = |at: usize| number(at).unwrap_or(0.0);
                let cpu = amount(share(9) * self.node.cpu as f64)?;
                let size = Size { cpu, memory: self.share(share(10))?, gpus: 0 };
                let name = format!("{key}-{}", self.entries.len());
                self.events.insert(key, self.entries.len());
                self.push(&name, size, seconds, None, priority)
            }
            // Evicted, failed, finished, killed, lost.
            2..=6 => {
                if let Some(entry) = self.events.remove(&key).and_then(|at| self.entries.get_mut(at)) {
                    entry.runs = Some((seconds - entry.comes).max(0.0));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn share(&self, share: f64) -> Result<u64> {
        amount(share * self.node.memory as f64)
    }

    fn push(&mut self, name: &str, size: Size, comes: f64, goes: Option<f64>, priority: i32) -> Result<()> {
        let name = named(name);
        if name.is_empty() {
            bail!("no name");
        }
        if !comes.is_finite() || goes.is_some_and(|goes| !goes.is_finite()) {
            bail!("times have to be finite");
        }
        let mut entry = Entry::new(name, size);
        entry.comes = comes;
        entry.runs = goes.map(|goes| (goes - comes).max(0.0));
        entry.priority = priority;
        self.entries.push(entry);
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Entry>> {
        if self.entries.is_empty() {
            bail!("there are no pods in it");
        }
        self.entries.sort_by(|a, b| a.comes.total_cmp(&b.comes));
        let start = self.entries[0].comes;
        let mut seen = HashSet::new();
        for (number, entry) in self.entries.iter_mut().enumerate() {
            entry.comes -= start;
            // A name may come again once its pod is gone.
            if !seen.insert(entry.name.clone()) {
                entry.name = format!("{}-again-{number}", entry.name).into();
            }
        }
        Ok(self.entries)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const NODE: Size = Size { cpu: 10_000, memory: 1000, gpus: 0 };

    fn read(text: &str, format: TraceFormat) -> Result<Vec<Entry>> {
        parse(text.as_bytes(), format, &NODE)
    }

    #[test]
    fn columns_by_name_ordered_by_time() {
        let text = "name,cpu_milli,memory_mib,num_gpu,qos,creation_time,deletion_time\n\
                    openb_pod_0002,500,1024,1,LS,110,200\n\nopenb-pod-0001,6000,12288,0,BE,100,\n";
        let entries = read(text, TraceFormat::Auto).unwrap();
        let names: Vec<&str> = entries.iter().map(|entry| &*entry.name).collect();
        assert_eq!(names, ["openb-pod-0001", "openb-pod-0002"]);
        assert_eq!(entries[1].size, Size { cpu: 500, memory: 1 << 30, gpus: 1 });
        assert_eq!((entries[1].comes, entries[1].runs, entries[0].runs), (10.0, Some(90.0), None));
        let error = format!("{:#}", read("name,cpu_milli\n", TraceFormat::Auto).unwrap_err());
        assert!(error.contains("memory_mib"), "{error}");
        let error = format!("{:#}", read("name,cpu_milli,memory_mib\na,x,1\n", TraceFormat::Auto).unwrap_err());
        assert!(error.contains("line 2") && error.contains("cpu_milli"), "{error}");
        let error = format!("{:#}", read("name,cpu_milli,memory_mib\na,-1,1\n", TraceFormat::Auto).unwrap_err());
        assert!(error.contains("no amount"), "{error}");
    }

    #[test]
    fn json_lines() {
        let text = "{\"name\":\"a\",\"cpu\":\"250m\",\"memory\":\"1Ki\",\"create\":5,\"delete\":8,\"priority\":7}\n{\"name\":\"A\",\"create\":6}\n";
        let entries = read(text, TraceFormat::Auto).unwrap();
        assert_eq!((entries[0].size, entries[0].runs), (Size { cpu: 250, memory: 1024, gpus: 0 }, Some(3.0)));
        assert_eq!((&*entries[1].name, entries[1].comes, entries[0].priority), ("a-again-1", 1.0, 7));
        assert!(read("{\"name\":\"a\",\"cpus\":\"1\"}", TraceFormat::Auto).is_err(), "a typo is told");
    }

    #[test]
    fn alibaba_2018() {
        // As in batch_task.csv: CPU in hundredths of a core, memory in hundredths of a machine.
        let text = "task_LTg0,2,j_2,1,Terminated,300,360,100.00,0.50\nM1,1,j_3,1,Waiting,400,0,,\n";
        let entries = read(text, TraceFormat::Alibaba2018Batch).unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!((entries[0].size, entries[0].runs), (Size { cpu: 1000, memory: 5, gpus: 0 }, Some(60.0)));
        assert_eq!(&*entries[1].name, "j-2-task-ltg0-1");
        let text = "c_1,m_2556,0,app_5052,started,400,400,1.56\nc_1,m_2556,287942,app_5052,started,400,400,1.56\n";
        let entries = read(text, TraceFormat::Alibaba2018Containers).unwrap();
        assert_eq!((entries.len(), entries[0].size), (1, Size { cpu: 4000, memory: 16, gpus: 0 }));
    }

    #[test]
    fn google_2011() {
        let text = "0,2,3418309,0,4155527081,0,user,3,9,0.125,0.07446,0.0004244,0\n\
                    1000000,,3418309,0,4155527081,1,user,3,9,0.125,0.07446,0.0004244,0\n\
                    5000000,,3418309,0,4155527081,4,user,3,9,0.125,0.07446,0.0004244,0\n\
                    6000000,,3418309,0,,0,user,3,9,0.125,0.07446,0.0004244,0\n";
        let entries = read(text, TraceFormat::Google2011).unwrap();
        assert_eq!((entries[0].size, entries[0].runs), (Size { cpu: 1250, memory: 74, gpus: 0 }, Some(5.0)));
        assert_eq!((entries[1].comes, entries[1].runs, entries[1].priority), (6.0, None, 9));
    }
}
