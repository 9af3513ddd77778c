//! Kubernetes API facts: kinds, schemas, list semantics, defaults, validation, conversion, printing. No IO.
