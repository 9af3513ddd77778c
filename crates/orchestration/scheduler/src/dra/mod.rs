//! Dynamic resource allocation: which devices pods' claims get, by structured parameters.
//!
//! - [`known`]: claims, classes and slices as one decision sees them, and which devices are in use.
//! - [`pools`]: the devices that a node can reach.
//! - [`requests`]: what claims ask for.
//! - [`allocate`]: the search for devices that fulfil all of it; [`capacity`] counts what they share.
//! - [`result`]: what a claim's status then says.
//! - [`needs`]: all of a pod's claims together.

mod allocate;
mod capacity;
mod known;
mod needs;
mod pools;
mod requests;
mod result;
#[cfg(test)]
mod tests;

pub(crate) use known::Devices;
pub use needs::Reservation;
pub(crate) use needs::{ELSEWHERE, Needs, keys};
