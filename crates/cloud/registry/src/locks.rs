//! One at a time per name, in this process.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

#[derive(Default)]
pub struct Locks(Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>);

pub struct Held {
    all: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
    name: String,
    guard: Option<OwnedMutexGuard<()>>,
}

impl Locks {
    pub async fn exclusive(&self, name: &str) -> Held {
        let lock = self.0.lock().entry(name.to_owned()).or_default().clone();
        // Made before waiting, so that who gives up tidies as well.
        let mut held = Held { all: self.0.clone(), name: name.to_owned(), guard: None };
        held.guard = Some(lock.lock_owned().await);
        held
    }

    pub fn busy(&self, name: &str) -> bool {
        self.0.lock().contains_key(name)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.guard = None;
        let mut all = self.all.lock();
        // Only the map has it: nobody holds it and nobody waits.
        if all.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            all.remove(&self.name);
        }
    }
}
