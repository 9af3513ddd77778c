//! The outcome of the comparison, as a table and as lists of differences.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::facts::{Operations, Resources, Served, Wanted};

/// There, of so many.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    there: usize,
    all: usize,
}

impl Count {
    fn add(&mut self, there: bool) {
        self.all += 1;
        self.there += usize::from(there);
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.all {
            0 => f.write_str("–"),
            all => write!(f, "{}/{all}", self.there),
        }
    }
}

/// One line of the table.
#[derive(Default)]
struct Row {
    resources: Count,
    subresources: Count,
    verbs: Count,
    operations: Count,
    types: Count,
    fields: Count,
    facts: Count,
}

impl Row {
    fn cells(&self) -> [Count; 7] {
        [self.resources, self.subresources, self.verbs, self.operations, self.types, self.fields, self.facts]
    }
}

#[derive(Default)]
pub struct Report {
    rows: BTreeMap<String, Row>,
    absent: Vec<String>,
    different: Vec<String>,
    newer: Vec<String>,
}

impl Report {
    pub fn new(wanted: &Wanted, served: &Served) -> Self {
        let mut report = Self::default();
        report.resources(&wanted.resources, served);
        report.operations(&wanted.operations, served);
        report.types(wanted, served);
        report.only_here(wanted, served);
        report
    }

    /// What upstream has and the server has not.
    pub fn absent(&self) -> &[String] {
        &self.absent
    }

    fn row(&mut self, group_version: &str) -> &mut Row {
        self.rows.entry(group_version.to_owned()).or_default()
    }

    fn resources(&mut self, wanted: &Resources, served: &Served) {
        for ((group_version, name), reference) in wanted {
            let key = (group_version.clone(), name.clone());
            for (form, known) in [("discovery", &served.legacy), ("aggregated discovery", &served.aggregated)] {
                let ours = known.get(&key);
                if form == "discovery" {
                    let row = self.row(group_version);
                    let count = if name.contains('/') { &mut row.subresources } else { &mut row.resources };
                    count.add(ours.is_some());
                    for verb in &reference.verbs {
                        row.verbs.add(ours.is_some_and(|ours| ours.verbs.contains(verb)));
                    }
                }
                let Some(ours) = ours else {
                    self.absent.push(format!("{group_version} {name} in {form}"));
                    continue;
                };
                for verb in reference.verbs.difference(&ours.verbs) {
                    self.absent.push(format!("{group_version} {name} in {form}: verb {verb}"));
                }
                for verb in ours.verbs.difference(&reference.verbs) {
                    self.different.push(format!("{group_version} {name} in {form}: also has verb {verb}"));
                }
                if ours.kind != reference.kind {
                    let (ours, upstream) = (&ours.kind, &reference.kind);
                    self.different
                        .push(format!("{group_version} {name} in {form}: is a {ours}, upstream's a {upstream}"));
                }
                if ours.namespaced != reference.namespaced {
                    let scope = if ours.namespaced { "namespaced" } else { "of the cluster" };
                    self.different.push(format!("{group_version} {name} in {form}: is {scope}"));
                }
            }
        }
    }

    fn operations(&mut self, wanted: &Operations, served: &Served) {
        for ((path, method), parameters) in wanted {
            let group_version = group_version_of(path);
            for (form, known) in [("OpenAPI v3", &served.v3_operations), ("OpenAPI v2", &served.v2_operations)] {
                let ours = known.get(&(path.clone(), method.clone()));
                if form == "OpenAPI v3" {
                    self.row(&group_version).operations.add(ours.is_some());
                }
                let Some(ours) = ours else {
                    self.absent.push(format!("{} {path} in {form}", method.to_uppercase()));
                    continue;
                };
                let missing: Vec<&str> = parameters.difference(ours).map(String::as_str).collect();
                if !missing.is_empty() {
                    let missing = missing.join(", ");
                    self.absent.push(format!("{} {path} in {form}: parameters {missing}", method.to_uppercase()));
                }
            }
        }
    }

    fn types(&mut self, wanted: &Wanted, served: &Served) {
        for (form, known) in [("OpenAPI v3", &served.v3), ("OpenAPI v2", &served.v2)] {
            for (name, fields) in &wanted.fields {
                let counted = form == "OpenAPI v3";
                let group_version = wanted.group_version(name);
                if counted {
                    self.row(group_version).types.add(known.contains_key(name));
                }
                let Some(ours) = known.get(name) else {
                    self.absent.push(format!("type {name} in {form}"));
                    continue;
                };
                for (field, facts) in fields {
                    let found = ours.get(field);
                    if counted && !field.is_empty() {
                        self.row(group_version).fields.add(found.is_some());
                    }
                    let shown = if field.is_empty() { name.clone() } else { format!("{name}.{field}") };
                    let Some(found) = found else {
                        self.absent.push(format!("field {shown} in {form}"));
                        continue;
                    };
                    for fact in facts {
                        if counted {
                            self.row(group_version).facts.add(found.contains(fact));
                        }
                        if !found.contains(fact) {
                            self.different.push(format!("{shown} in {form}: not `{fact}`"));
                        }
                    }
                }
            }
        }
    }

    fn only_here(&mut self, wanted: &Wanted, served: &Served) {
        for (group_version, name) in served.legacy.keys() {
            if !wanted.resources.contains_key(&(group_version.clone(), name.clone())) {
                self.newer.push(format!("resource {group_version} {name}"));
            }
        }
        for (name, fields) in &served.v3 {
            let Some(known) = wanted.fields.get(name) else { continue };
            for field in fields.keys().filter(|field| !known.contains_key(*field)) {
                self.newer.push(format!("field {name}.{field}"));
            }
        }
    }
}

/// `apps/v1` of `/apis/apps/v1/…`.
fn group_version_of(path: &str) -> String {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    if parts[0] == "api" { parts[1].to_owned() } else { parts[1..3].join("/") }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# API coverage\n")?;
        writeln!(
            f,
            "What this server serves next to upstream's own OpenAPI document of release 1.33: present, of all that is stable there."
        )?;
        writeln!(
            f,
            "The `reference` test of the API server writes this page from a running server's discovery (both forms) and"
        )?;
        writeln!(
            f,
            "OpenAPI documents (v2 and v3), and fails when anything is absent or the page is not true any more.\n"
        )?;
        writeln!(
            f,
            "Operations are paths with their methods and parameters. Facts are what readers act on: a field's type and format,"
        )?;
        writeln!(f, "whether it is required, and how lists and maps in it merge.\n")?;
        writeln!(f, "| group version | resources | subresources | verbs | operations | types | fields | facts |")?;
        writeln!(f, "|---|---|---|---|---|---|---|---|")?;
        let mut sum = [Count::default(); 7];
        for (group_version, row) in &self.rows {
            let cells = row.cells();
            let shown: Vec<String> = cells.iter().map(ToString::to_string).collect();
            for (sum, cell) in sum.iter_mut().zip(cells) {
                sum.there += cell.there;
                sum.all += cell.all;
            }
            writeln!(f, "| {group_version} | {} |", shown.join(" | "))?;
        }
        let shown: Vec<String> = sum.iter().map(ToString::to_string).collect();
        writeln!(f, "| all | {} |", shown.join(" | "))?;
        for (title, text, list) in [
            ("Absent", "Nothing.", &self.absent),
            ("Different", "Nothing.", &self.different),
            ("Only here", "Nothing.", &self.newer),
        ] {
            writeln!(f, "\n## {title}\n")?;
            if title == "Only here" && !list.is_empty() {
                writeln!(f, "Most of it came with releases 1.34 and 1.35.\n")?;
            }
            let grouped: BTreeSet<&String> = list.iter().collect();
            if grouped.is_empty() {
                writeln!(f, "{text}")?;
            }
            for line in grouped {
                writeln!(f, "- {line}")?;
            }
        }
        Ok(())
    }
}
