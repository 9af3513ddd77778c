//! Names by which the parts agree on local volumes: directories that the built-in provisioner has nodes make.
//!
//! A volume's life needs no call between parts. A node says in its own object where its volumes lie and how much they may
//! take; the provisioner makes a PersistentVolume for one node, with a finalizer; the node makes the directory when a pod
//! first mounts it, and after the volume's deletion empties it and takes the finalizer away. A volume that is to begin with
//! the bytes of another, or of a snapshot, has a second finalizer until its node has copied them.

use std::fmt;

/// The provisioner that storage classes name.
pub const PROVISIONER: &str = "dhow.io/local";

/// The storage class that every cluster starts with.
pub const CLASS: &str = "local";

/// Finalizer of a volume whose directory may still be there.
pub const FINALIZER: &str = "dhow.io/local-volume";

/// Label of a volume: the node that holds it.
pub const NODE_LABEL: &str = "dhow.io/node";

/// Annotation of a node: the folder of its volumes.
pub const PATH: &str = "dhow.io/local-volumes-path";

/// Annotation of a node: a quantity, what its volumes may be promised in sum.
pub const CAPACITY: &str = "dhow.io/local-volumes-capacity";

/// Finalizer of a volume that is yet to be filled: no claim is bound to it before its node takes this away.
pub const FILLING: &str = "dhow.io/local-volume-filling";

/// Annotation of a volume: the [`Source`] that it is filled from.
pub const FILLED_FROM: &str = "dhow.io/filled-from";

/// Annotation of a claim that is to be filled: the node that holds what from. The scheduler goes by it.
pub const SOURCE_NODE: &str = "dhow.io/source-node";

/// What a new volume is filled from, by its name. It lies on the volume's node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Volume(String),
    Snapshot(String),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Volume(name) => write!(f, "volume/{name}"),
            Self::Snapshot(name) => write!(f, "snapshot/{name}"),
        }
    }
}

impl Source {
    /// Reads what [`Display`](fmt::Display) writes.
    pub fn parse(text: &str) -> Option<Self> {
        match text.split_once('/')? {
            ("volume", name) => Some(Self::Volume(name.to_owned())),
            ("snapshot", name) => Some(Self::Snapshot(name.to_owned())),
            _ => None,
        }
    }
}

/// The handle of a snapshot: whoever has it knows where the snapshot lies.
pub fn snapshot_handle(node: &str, name: &str) -> String {
    format!("{node}/{name}")
}

/// The node and the name in a snapshot's handle.
pub fn parse_snapshot_handle(handle: &str) -> Option<(&str, &str)> {
    handle.split_once('/').filter(|(node, name)| !node.is_empty() && !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_and_handles_are_read_as_written() {
        for source in [Source::Volume("pvc-1".into()), Source::Snapshot("s".into())] {
            assert_eq!(Source::parse(&source.to_string()), Some(source));
        }
        assert_eq!(Source::parse("disk/x"), None);
        assert_eq!(parse_snapshot_handle(&snapshot_handle("n1", "s")), Some(("n1", "s")));
        assert_eq!(parse_snapshot_handle("s"), None);
    }
}
