//! One simulated pod, small enough that a million of them fit in memory.

use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use dhow_api::quantity::Quantity;

/// CPU in thousandths, memory in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Size {
    pub cpu: u64,
    pub memory: u64,
    pub gpus: u32,
}

impl Size {
    pub fn read(cpu: &str, memory: &str, gpus: u32) -> Result<Self> {
        let read = |text: &str| Quantity::from_str(text).with_context(|| format!("{text:?} is no quantity"));
        let (cpu, memory) = (read(cpu)?.millis(), read(memory)?.units());
        ensure!(cpu >= 0 && memory >= 0, "quantities cannot be negative");
        Ok(Self { cpu: cpu.unsigned_abs(), memory: memory.unsigned_abs(), gpus })
    }

    pub fn add(&mut self, other: &Self) {
        self.cpu += other.cpu;
        self.memory += other.memory;
        self.gpus += other.gpus;
    }

    pub fn subtract(&mut self, other: &Self) {
        self.cpu = self.cpu.saturating_sub(other.cpu);
        self.memory = self.memory.saturating_sub(other.memory);
        self.gpus = self.gpus.saturating_sub(other.gpus);
    }
}

/// What a pod asks for besides its size.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    #[default]
    Plain,
    NodeAffinity,
    Affinity,
    AntiAffinity,
    Spread,
    PreferredSpread,
    /// The node of this number only.
    Node(u32),
    /// The claim of this number.
    Claim(u32),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    pub name: Box<str>,
    pub size: Size,
    pub kind: Kind,
    pub priority: i32,
    /// Seconds from the start.
    pub comes: f64,
    /// Seconds that it runs, from when it has a node; for ever without.
    pub runs: Option<f64>,
}

impl Entry {
    pub fn new(name: impl Into<Box<str>>, size: Size) -> Self {
        Self { name: name.into(), size, kind: Kind::Plain, priority: 0, comes: 0.0, runs: None }
    }
}
