//! The Kubernetes API server: one request pipeline over a `Kv` store.
