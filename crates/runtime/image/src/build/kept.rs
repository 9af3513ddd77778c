//! Layers that builds made, by what they were made from: a build that comes to the same step finds it done.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::content::{Content, write_whole};
use crate::error::At;
use crate::index::{Layer, chain_of, now};
use crate::{Digest, Error, Result};

/// Between two notes of the same step's use.
const NOTE_USE: u64 = 600;

/// All layers of the tree after one step, base first.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Step {
    layers: Vec<Layer>,
    used: u64,
    /// When it came to these layers first.
    #[serde(default)]
    made: u64,
}

/// The steps of one store; each is a file.
pub(crate) struct Kept {
    dir: PathBuf,
    steps: Mutex<HashMap<Digest, Step>>,
    /// When the builds under way began: what was used since stays.
    building: Mutex<Vec<u64>>,
}

impl Kept {
    /// Forgets steps whose content is not there.
    pub fn open(root: &Path, content: &Content) -> Result<Self> {
        let dir = root.join("steps");
        fs::create_dir_all(&dir).at("create", &dir)?;
        let mut steps = HashMap::new();
        for entry in fs::read_dir(&dir).at("list", &dir)? {
            let path = entry.at("list", &dir)?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let step = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Step>(&text).ok());
            match (Digest::parse(&format!("sha256:{name}")), step) {
                (Ok(key), Some(step)) if step.layers.iter().all(|layer| content.has(&layer.blob)) => {
                    steps.insert(key, step);
                }
                _ => fs::remove_file(&path).at("remove", &path)?,
            }
        }
        Ok(Kept { dir, steps: Mutex::new(steps), building: Mutex::default() })
    }

    pub fn get(&self, key: &Digest) -> Option<Vec<Layer>> {
        let mut steps = self.steps.lock();
        let step = steps.get_mut(key)?;
        let before = std::mem::replace(&mut step.used, now());
        if before + NOTE_USE < step.used {
            // Of no importance if it fails: the step goes a little earlier.
            let _ = self.write(key, step);
        }
        Some(step.layers.clone())
    }

    /// When a step came to its layers first, in seconds since 1970.
    pub fn made(&self, key: &Digest) -> Option<u64> {
        self.steps.lock().get(key).map(|step| step.made)
    }

    /// The caller has the layers leased and pinned until this returns.
    pub fn put(&self, key: &Digest, layers: &[Layer]) -> Result<()> {
        let (used, mut steps) = (now(), self.steps.lock());
        let known = steps.get(key).filter(|known| known.layers == layers);
        let step = Step { layers: layers.to_vec(), used, made: known.map_or(used, |known| known.made) };
        self.write(key, &step)?;
        steps.insert(key.clone(), step);
        Ok(())
    }

    fn write(&self, key: &Digest, step: &Step) -> Result<()> {
        let text = serde_json::to_vec(step)
            .map_err(|e| Error::Manifest { what: format!("step {key}"), message: e.to_string() })?;
        write_whole(&self.dir.join(key.hex()), &text)
    }

    /// Adds what has to stay.
    pub fn live(&self, blobs: &mut HashSet<Digest>, chains: &mut HashSet<Digest>) {
        for step in self.steps.lock().values() {
            chains.extend(chain_of(&step.layers));
            blobs.extend(step.layers.iter().map(|layer| layer.blob.clone()));
        }
    }

    /// Forgets steps, least recently used first, until the rest has at most so many bytes. The caller collects.
    pub fn trim(&self, limit: u64) -> Result<usize> {
        let oldest = self.building.lock().iter().min().copied().unwrap_or(u64::MAX);
        let mut steps = self.steps.lock();
        let mut order: Vec<(u64, Digest)> = steps.iter().map(|(key, step)| (step.used, key.clone())).collect();
        order.sort();
        let mut gone = 0;
        for (used, key) in order {
            let mut seen = HashSet::new();
            let layers = steps.values().filter_map(|step| step.layers.last());
            let total: u64 = layers.filter(|layer| seen.insert(&layer.blob)).map(|layer| layer.size).sum();
            if total <= limit || used >= oldest {
                break;
            }
            let path = self.dir.join(key.hex());
            fs::remove_file(&path).at("remove", &path)?;
            steps.remove(&key);
            gone += 1;
        }
        Ok(gone)
    }

    pub fn begin(&self) -> u64 {
        let started = now();
        self.building.lock().push(started);
        started
    }

    pub fn end(&self, started: u64) {
        let mut building = self.building.lock();
        if let Some(at) = building.iter().position(|other| *other == started) {
            building.swap_remove(at);
        }
    }
}
