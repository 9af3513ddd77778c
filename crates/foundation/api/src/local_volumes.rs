//! Names by which the parts agree on local volumes: directories that the built-in provisioner has nodes make.
//!
//! A volume's life needs no call between parts. A node says in its own object where its volumes lie and how much they may
//! take; the provisioner makes a PersistentVolume for one node, with a finalizer; the node makes the directory when a pod
//! first mounts it, and after the volume's deletion empties it and takes the finalizer away.

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
