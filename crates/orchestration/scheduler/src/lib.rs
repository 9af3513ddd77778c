//! Places pods on nodes: a pure decision over a snapshot, and a thin loop around it.
