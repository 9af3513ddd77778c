//! Controllers that keep desired state, one file each.
