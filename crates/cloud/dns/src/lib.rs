//! Cluster DNS, answered straight from the watch.
