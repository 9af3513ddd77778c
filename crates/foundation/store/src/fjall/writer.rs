//! The one thread that writes: decides a group of jobs, makes it durable, publishes it, answers.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::disk::Disk;
use crate::core::{Batch, Command, Effect, Hub, Keyspace, decide};
use crate::{Error, Revision, TxnResponse};

/// Jobs decided before one sync; what arrives meanwhile makes the next group.
const GROUP: usize = 1024;

type Answer = Result<TxnResponse, Error>;

pub(super) struct Job {
    pub work: Work,
    pub reply: oneshot::Sender<Answer>,
}

pub(super) enum Work {
    /// A command, and whether it may be acknowledged before it is on disk.
    Write(Command, bool),
    Compact(Revision),
}

pub(super) struct Writer {
    disk: Disk,
    hub: Arc<Hub>,
    /// Ahead of what is published while a group is in the making.
    keyspace: Keyspace,
    /// Why nothing is written any more. Half a batch may be in the journal, and what follows it would be lost.
    broken: Option<String>,
}

/// A group in the making.
#[derive(Default)]
struct Group {
    batches: Vec<Arc<Batch>>,
    effects: Vec<Effect>,
    answers: Vec<(oneshot::Sender<Answer>, Answer)>,
    sync: bool,
}

impl Writer {
    pub fn new(disk: Disk, keyspace: Keyspace, hub: Arc<Hub>) -> Self {
        Self { disk, hub, keyspace, broken: None }
    }

    /// Ends when every sender is gone and the queue is empty.
    pub fn run(mut self, mut jobs: mpsc::Receiver<Job>) {
        while let Some(job) = jobs.blocking_recv() {
            let mut group = Group::default();
            let mut next = Some(job);
            while let Some(Job { work, reply }) = next.take() {
                match work {
                    Work::Write(command, relaxed) => self.decide(&mut group, command, relaxed, reply),
                    Work::Compact(revision) => {
                        // History grows when a group is published, so this is a border between groups.
                        self.commit(std::mem::take(&mut group));
                        let revision_now = self.keyspace.revision();
                        let done = self.compact(revision);
                        let answer =
                            done.map(|()| TxnResponse { revision: revision_now, succeeded: true, results: vec![] });
                        let _ = reply.send(answer);
                    }
                }
                if group.answers.len() < GROUP {
                    next = jobs.try_recv().ok();
                }
            }
            self.commit(group);
            if self.broken.is_none()
                && let Some(revision) = self.hub.excess()
                && let Err(error) = self.compact(revision)
            {
                tracing::error!(%error, revision, "compact history");
            }
        }
        self.disk.close(self.broken.is_none().then(|| self.hub.revision()));
    }

    fn decide(&mut self, group: &mut Group, command: Command, relaxed: bool, reply: oneshot::Sender<Answer>) {
        let answer = decide(&mut self.keyspace, &self.hub, &group.batches, command).map(|(response, effect)| {
            if !effect.is_empty() {
                group.sync |= !relaxed;
                group.batches.extend(effect.batch.iter().cloned());
                group.effects.push(effect);
            }
            response
        });
        // Even a refusal waits: it may rest on a write of this group that is not durable yet.
        group.answers.push((reply, answer));
    }

    fn commit(&mut self, group: Group) {
        let written = match &self.broken {
            _ if group.effects.is_empty() => Ok(()),
            Some(reason) => Err(refused(reason)),
            None => self.disk.write(&group.effects, group.sync),
        };
        match written {
            Ok(()) => {
                if !group.effects.is_empty() {
                    self.hub.publish(&self.keyspace, &group.batches);
                }
                for (reply, answer) in group.answers {
                    // The caller may have gone away.
                    let _ = reply.send(answer);
                }
            }
            Err(error) => {
                self.keyspace = self.hub.keyspace();
                let reason = self.stop(&error);
                for (reply, _) in group.answers {
                    let _ = reply.send(Err(refused(&reason)));
                }
            }
        }
    }

    /// Remembers the first failure.
    fn stop(&mut self, error: &Error) -> String {
        if self.broken.is_none() {
            let cause = std::error::Error::source(error).map(|source| format!(": {source}")).unwrap_or_default();
            let reason = format!("{error}{cause}");
            tracing::error!(reason, "write to the store; nothing more is accepted until a restart");
            self.broken = Some(reason);
        }
        self.broken.clone().unwrap_or_default()
    }

    fn compact(&mut self, revision: Revision) -> Result<(), Error> {
        let garbage = self.hub.plan_compaction(revision)?;
        if let Some(reason) = &self.broken {
            return Err(refused(reason));
        }
        if let Err(error) = self.disk.compact(revision, &garbage) {
            return Err(refused(&self.stop(&error)));
        }
        self.hub.compact(revision);
        Ok(())
    }
}

fn refused(reason: &str) -> Error {
    Error::Backend {
        context: "write to the store: a write failed, and none is accepted until the store is opened again".to_owned(),
        source: reason.into(),
    }
}
