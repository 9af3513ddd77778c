//! Unpacking against well-behaved and hostile layers.
