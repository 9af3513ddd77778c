//! The service proxy: Services and EndpointSlices in, small nftables transactions out.
//!
//! [`plan`] is a pure function from one service to the [`Tables`] it needs; the book keeps them all and knows
//! whose each address is. A change is planned for the services it touches alone, and the difference to what
//! the book held before becomes one transaction; the first one is the difference to what the kernel holds.
//!
//! Most services have a cluster address and a handful of endpoints, nothing else: they are elements of two maps
//! that fixed rules balance over, so their changes cost the same however many services there are. The others have
//! chains and endpoint maps of their own, named after their content, that never change: a new set of endpoints is
//! a new chain, the verdict maps are pointed at it, and the old one goes, all at once. So the kernel's list of
//! names and elements says everything about what is there, and a restart reads it and carries on.

mod apply;
mod book;
mod health;
pub(crate) mod names;
mod plan;
mod run;
mod state;
mod topology;

pub use apply::Proxy;
pub(crate) use plan::service_of;
pub use plan::{PlanContext, Step, Tables, plan};
pub use run::run;
