//! Who makes and removes machines, as the autoscaler sees them.

use dhow_client::Error;
use k8s_openapi::api::core::v1::Node;

use super::config::Options;

/// Machines that are alike, and how many of them there may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bounds {
    pub id: String,
    pub min: i32,
    pub max: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstanceState {
    Unknown,
    Running,
    Creating,
    Deleting,
}

/// A machine of a group. Its id is the provider id of the node that it becomes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    pub id: String,
    pub state: InstanceState,
    /// Why it will never be a node: a code, and words for people.
    pub error: Option<(String, String)>,
}

/// A provider of nodes. All numbers are its own; nothing here is remembered between calls.
#[async_trait::async_trait]
pub trait NodeProvider: Send + Sync + 'static {
    /// Called before each look, so that it may look itself.
    async fn refresh(&self) -> Result<(), Error>;

    async fn groups(&self) -> Result<Vec<Bounds>, Error>;

    /// The group that a node without a provider id belongs to.
    async fn group_of(&self, node: &Node) -> Result<Option<String>, Error>;

    /// How many machines a group is to have.
    async fn target(&self, group: &str) -> Result<i32, Error>;

    async fn instances(&self, group: &str) -> Result<Vec<Instance>, Error>;

    /// A node as the group makes them, when it is new; `None` if the provider does not say.
    async fn template(&self, group: &str) -> Result<Option<Node>, Error>;

    /// What the group wants otherwise than all; `None` for nothing.
    async fn options(&self, group: &str, all: Options) -> Result<Option<Options>, Error>;

    async fn increase(&self, group: &str, by: i32) -> Result<(), Error>;

    /// Removes machines, and lowers the group's target with them.
    async fn delete(&self, group: &str, machines: &[Node]) -> Result<(), Error>;

    /// Takes back a wish for machines that are not there yet.
    async fn decrease(&self, group: &str, by: i32) -> Result<(), Error>;
}
