//! Questions to extenders, each on its own: decisions about other pods and their writes go on meanwhile.

use std::sync::Arc;

use dhow_client::{Informer, Key};
use k8s_openapi::api::core::v1::Pod;

use crate::extenders::Extenders;
use crate::{Engine, Outcome, PodKey};

pub(super) struct Asker {
    extenders: Arc<Extenders>,
    engine: Arc<Engine>,
    pods: Informer<Pod>,
}

impl Asker {
    pub fn new(extenders: Arc<Extenders>, engine: Arc<Engine>, pods: Informer<Pod>) -> Self {
        Self { extenders, engine, pods }
    }

    /// Asks what is to be asked; gives back what is to be written.
    pub fn ask(&self, key: &PodKey, pod: &Arc<Pod>, outcome: Outcome) -> Option<Outcome> {
        if !matches!(outcome, Outcome::Ask { .. } | Outcome::AskRoom { .. }) {
            return Some(outcome);
        }
        let (extenders, engine, pods) = (Arc::clone(&self.extenders), Arc::clone(&self.engine), self.pods.clone());
        let (key, pod) = (key.clone(), Arc::clone(pod));
        tokio::spawn(async move {
            let answer = match outcome {
                Outcome::Ask { nodes } => extenders.place(&pod, nodes).await,
                Outcome::AskRoom { why, rooms } => {
                    let find = |key: &PodKey| pods.get(&Key::new(Some(&key.0), &key.1));
                    extenders.make_room(&pod, why, rooms, find).await
                }
                _ => return,
            };
            engine.answered(&key, &pod, answer);
        });
        None
    }

    /// Whether the write is an extender's.
    pub fn binds(&self, pod: &Pod, outcome: &Outcome) -> bool {
        matches!(outcome, Outcome::Bind { .. }) && self.extenders.binds(pod)
    }
}
