//! [`Access`] by a table: projects with a visibility and members, robot accounts with secrets.
//!
//! The first part of a repository's name is its project. A project that is not in the table takes nothing from anyone.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use serde::{Deserialize, Serialize};

use crate::access::{Access, Actions, Credentials, User};
use crate::{Result, Rules};

/// Who may pull without being a member.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Visibility {
    #[default]
    Private,
    /// Everyone who says who they are.
    Shared,
    Public,
}

impl Visibility {
    pub(crate) fn actions(self, user: Option<&User>) -> Actions {
        match self {
            Visibility::Public => Actions::PULL,
            Visibility::Shared if user.is_some() => Actions::PULL,
            Visibility::Shared | Visibility::Private => Actions::NONE,
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Pulls.
    #[default]
    Guest,
    /// Pulls and pushes.
    Developer,
    /// Deletes as well.
    Maintainer,
}

impl Role {
    pub(crate) fn actions(self) -> Actions {
        match self {
            Role::Guest => Actions::PULL,
            Role::Developer => Actions::PUSH,
            Role::Maintainer => Actions::ALL,
        }
    }
}

#[derive(Debug, Clone, Default)]
pub struct Project {
    pub visibility: Visibility,
    /// By user, robots included.
    pub members: BTreeMap<String, Role>,
    pub rules: Arc<Rules>,
}

#[derive(Default)]
struct Table {
    projects: BTreeMap<String, Project>,
    /// Hashes of robots' secrets.
    robots: BTreeMap<String, [u8; 32]>,
}

/// Can be changed while it is in use.
#[derive(Default)]
pub struct Projects(RwLock<Table>);

/// What is kept of a robot's secret. Secrets are long and random, so one round of hashing keeps them.
pub fn hash_secret(secret: &str) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, secret.as_bytes()).as_ref());
    hash
}

/// Whether this is the secret of the hash: the same work without one, and the same time for every wrong secret.
pub(crate) fn is_secret(offered: &str, hash: Option<&[u8; 32]>) -> bool {
    let known = hash.copied().unwrap_or([0; 32]);
    let same = known.iter().zip(hash_secret(offered)).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0;
    same && hash.is_some()
}

impl Projects {
    pub fn set(&self, name: &str, project: Project) {
        self.0.write().projects.insert(name.to_owned(), project);
    }

    pub fn set_robot(&self, name: &str, secret: [u8; 32]) {
        self.0.write().robots.insert(name.to_owned(), secret);
    }

    pub fn remove_robot(&self, name: &str) {
        self.0.write().robots.remove(name);
    }
}

pub(crate) fn project_of(repository: &str) -> &str {
    repository.split('/').next().unwrap_or(repository)
}

#[async_trait::async_trait]
impl Access for Projects {
    async fn authenticate(&self, credentials: Credentials<'_>) -> Result<Option<User>> {
        let Credentials::Password { user, password } = credentials else { return Ok(None) };
        let table = self.0.read();
        Ok(is_secret(password, table.robots.get(user)).then(|| User { name: user.to_owned(), ..User::default() }))
    }

    async fn actions(&self, user: Option<&User>, repository: &str) -> Result<Actions> {
        let table = self.0.read();
        let Some(project) = table.projects.get(project_of(repository)) else { return Ok(Actions::NONE) };
        let visible = project.visibility.actions(user);
        let role = user.and_then(|user| project.members.get(&user.name));
        Ok(role.map_or(visible, |role| role.actions().or(visible)))
    }

    async fn rules(&self, repository: &str) -> Result<Arc<Rules>> {
        Ok(self.0.read().projects.get(project_of(repository)).map(|project| project.rules.clone()).unwrap_or_default())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    async fn may(table: &Projects, user: Option<&str>, repository: &str) -> Vec<&'static str> {
        let user = user.map(|name| User { name: name.to_owned(), ..User::default() });
        table.actions(user.as_ref(), repository).await.unwrap().words()
    }

    #[tokio::test]
    async fn visibility_and_roles_decide() {
        let table = Projects::default();
        let members = BTreeMap::from([("dev".to_owned(), Role::Developer), ("boss".to_owned(), Role::Maintainer)]);
        for (name, visibility) in
            [("open", Visibility::Public), ("ours", Visibility::Shared), ("mine", Visibility::Private)]
        {
            table.set(name, Project { visibility, members: members.clone(), ..Project::default() });
        }
        assert_eq!(may(&table, None, "open/app").await, ["pull"]);
        assert!(may(&table, None, "ours/app").await.is_empty());
        assert_eq!(may(&table, Some("guest"), "ours/app").await, ["pull"]);
        assert!(may(&table, Some("guest"), "mine/app").await.is_empty());
        assert_eq!(may(&table, Some("dev"), "mine/deep/app").await, ["pull", "push"]);
        assert_eq!(may(&table, Some("boss"), "mine").await, ["pull", "push", "delete"]);
        assert!(may(&table, Some("boss"), "minefield/app").await.is_empty());
    }

    #[tokio::test]
    async fn robots_need_their_secret() {
        let table = Projects::default();
        table.set_robot("ci", hash_secret("long and random"));
        let ask = async |user, password| {
            let found = table.authenticate(Credentials::Password { user, password }).await.unwrap();
            found.map(|user| user.name)
        };
        assert_eq!(ask("ci", "long and random").await.as_deref(), Some("ci"));
        assert_eq!(ask("ci", "wrong").await, None);
        assert_eq!(ask("other", "long and random").await, None);
        table.remove_robot("ci");
        assert_eq!(ask("ci", "long and random").await, None);
    }
}
