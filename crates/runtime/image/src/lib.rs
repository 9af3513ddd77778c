//! Content store, layer snapshots, pull, import and export of images.
