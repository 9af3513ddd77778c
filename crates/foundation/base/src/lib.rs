//! Configuration, logging, TLS and PKI, metrics and the service graph; knows nothing of containers.
