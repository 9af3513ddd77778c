//! Dynamic resource allocation: which devices pods' claims get, by structured parameters.
//!
//! - [`known`]: claims, classes and slices as one decision sees them, and which devices are in use.
//! - [`pools`]: the devices that a node can reach.
//! - [`requests`]: what claims ask for.
//! - [`allocate`]: the search for devices that fulfil all of it; [`capacity`] counts what they share.
//! - [`result`]: what a claim's status then says.
//! - [`binding`]: what has to be done to devices before their pod is bound.
//! - [`needs`]: all of a pod's claims together.

mod allocate;
mod binding;
mod capacity;
mod known;
mod needs;
mod pools;
mod requests;
mod result;
#[cfg(test)]
mod tests;

pub(crate) use binding::{Progress, is_conditional, progress};
pub(crate) use known::Devices;
pub use known::ruled;
pub use needs::Reservation;
pub(crate) use needs::{ELSEWHERE, Needs, keys};
pub use requests::tolerates;
