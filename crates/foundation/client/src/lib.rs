//! Typed client, informers, work queues and the one reconcile driver: the only road to state.
