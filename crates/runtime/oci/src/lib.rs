//! A low-level OCI runtime and the shim that holds a pod's containers. Synchronous; unsafe lives here.
