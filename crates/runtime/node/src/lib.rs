//! The node agent (kubelet): pod workers as ordered hooks, probes, volumes, streaming.
