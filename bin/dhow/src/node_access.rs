//! How the parts of a node reach the API: inside the process on a server, over HTTPS on a machine that joined.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use dhow_apiserver::{ApiServer, UserInfo};
use dhow_client::Client;

/// The group of all nodes.
pub const NODES: &str = "system:nodes";

/// Gives each part a client as the user that it is.
#[derive(Clone)]
pub enum NodeAccess {
    Here(Arc<ApiServer>),
    Joined(Arc<Joined>),
}

/// Clients over HTTPS, each with a certificate of its own.
pub struct Joined {
    pub node: Client,
    /// By user; see [`dhow_api::node_parts`].
    pub parts: BTreeMap<String, Client>,
}

impl NodeAccess {
    /// As whom the node's agent calls the API.
    pub fn node(&self, name: &str) -> Client {
        match self {
            Self::Here(server) => server.client(UserInfo::new(&node_user(name), &[NODES])),
            Self::Joined(joined) => joined.node.clone(),
        }
    }

    /// As one of the node's parts.
    pub fn client(&self, user: &str) -> Result<Client> {
        match self {
            Self::Here(server) => Ok(server.client(UserInfo::new(user, &[]))),
            Self::Joined(joined) => {
                joined.parts.get(user).cloned().with_context(|| format!("{user} is no part of a node that joined"))
            }
        }
    }
}

pub fn node_user(name: &str) -> String {
    format!("system:node:{name}")
}
