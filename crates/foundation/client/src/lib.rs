//! Typed client, informers, work queues and the one reconcile driver: the only road to state.

mod client;
mod controller;
mod error;
mod events;
mod extension;
mod http_transport;
mod informer;
mod key;
mod kinds;
mod kubeconfig;
pub mod leader;
mod owner;
mod queue;
mod replaceable;
mod served;
mod servers;
pub mod snapshots;
mod tls_connector;
mod transport;
mod watch;

pub use client::{Client, DeleteParams, ListParams, ObjectList, Patch, selector_text, status_error};
pub use controller::{Outcome, Reconcile, run_controller};
pub use error::Error;
pub use events::{EventRecorder, EventType, reference};
pub use extension::Extension;
pub use http_transport::{Auth, HttpsConfig};
pub use informer::{Change, Informer};
pub use key::{Key, Object};
pub use owner::{controller_of, controller_reference, is_controlled_by};
pub use queue::Queue;
pub use replaceable::Replace;
pub use served::{CustomResourceDefinition, while_served};
pub use servers::Servers;
pub use tls_connector::TlsConnection;
pub use transport::{Body, Transport, full};

// What `object!` and `kind!` refer to.
#[doc(hidden)]
pub use {k8s_openapi, serde_json};
