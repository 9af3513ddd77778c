//! Traces of clusters: one pod a line, with when it came and when it ended.
//!
//! The columns are found by the names in the first line: `name`, `cpu_milli`, `memory_mib`, `num_gpu`, `creation_time` and
//! `deletion_time` (seconds), as in the traces that Alibaba published; only the first three have to be there.

use std::path::Path;

use anyhow::{Context, Result, bail};

#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub name: String,
    pub cpu: String,
    pub memory: String,
    pub gpus: u32,
    /// Seconds from the trace's start.
    pub comes: f64,
    pub goes: Option<f64>,
}

impl Entry {
    pub fn plain(number: usize, cpu: &str, memory: &str) -> Self {
        let name = format!("sim-{number}");
        Self { name, cpu: cpu.to_owned(), memory: memory.to_owned(), gpus: 0, comes: 0.0, goes: None }
    }
}

pub fn read(file: &Path) -> Result<Vec<Entry>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    parse(&text).with_context(|| format!("read the trace {}", file.display()))
}

fn parse(text: &str) -> Result<Vec<Entry>> {
    let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let Some((_, head)) = lines.next() else { bail!("it is empty") };
    let columns: Vec<&str> = head.split(',').map(str::trim).collect();
    let column = |name: &str| columns.iter().position(|column| *column == name);
    let needed = |name: &str| column(name).with_context(|| format!("the first line names no column {name:?}"));
    let (name, cpu, memory) = (needed("name")?, needed("cpu_milli")?, needed("memory_mib")?);
    let (gpus, comes, goes) = (column("num_gpu"), column("creation_time"), column("deletion_time"));
    let mut entries = Vec::new();
    for (number, line) in lines {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let at = |column: usize| fields.get(column).copied().unwrap_or_default();
        let bad = |what: &str| format!("line {}: {what}: {line:?}", number + 1);
        let count = |column: usize, what: &str| at(column).parse::<f64>().with_context(|| bad(what));
        let seconds = |column: Option<usize>| column.and_then(|column| at(column).parse::<f64>().ok());
        if at(name).is_empty() {
            bail!(bad("no name"));
        }
        entries.push(Entry {
            name: at(name).to_lowercase().replace('_', "-"),
            cpu: format!("{}m", count(cpu, "cpu_milli is no number")? as u64),
            memory: format!("{}Mi", count(memory, "memory_mib is no number")? as u64),
            gpus: seconds(gpus).unwrap_or(0.0) as u32,
            comes: seconds(comes).unwrap_or(0.0),
            goes: seconds(goes),
        });
    }
    entries.sort_by(|a, b| a.comes.total_cmp(&b.comes));
    let start = entries.first().map_or(0.0, |entry| entry.comes);
    for entry in &mut entries {
        entry.comes -= start;
        entry.goes = entry.goes.map(|goes| (goes - start).max(entry.comes));
    }
    Ok(entries)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn reads_columns_by_name_and_orders_by_time() {
        let text = "name,cpu_milli,memory_mib,num_gpu,qos,creation_time,deletion_time\n\
                    openb_pod_0002,500,1024,1,LS,110,200\n\nopenb-pod-0001,6000,12288,0,BE,100,\n";
        let entries = parse(text).unwrap();
        let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        assert_eq!(names, ["openb-pod-0001", "openb-pod-0002"]);
        assert_eq!((entries[1].cpu.as_str(), entries[1].memory.as_str(), entries[1].gpus), ("500m", "1024Mi", 1));
        assert_eq!((entries[1].comes, entries[1].goes, entries[0].goes), (10.0, Some(100.0), None));
        let error = format!("{:#}", parse("name,cpu_milli\n").unwrap_err());
        assert!(error.contains("memory_mib"), "{error}");
        let error = format!("{:#}", parse("name,cpu_milli,memory_mib\na,x,1\n").unwrap_err());
        assert!(error.contains("line 2"), "{error}");
    }
}
