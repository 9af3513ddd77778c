//! [`Access`] by the API: tokens are the API's, roles are those of projects, and whatever the cluster's own roles allow on
//! `projects/images` of the group `registry.dhow.io` (`get` pulls, `create` pushes, `delete` deletes) is allowed here.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use dhow_client::{Client, Key};
use dhow_image::{Auth, CLUSTER_AUDIENCE, Reference};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::kinds::{Project, RobotAccount, SecretReference, robot_of, robot_user};
use super::{Kinds, secrets};
use crate::access::{AUTHENTICATED, Access, Actions, Credentials, User};
use crate::projects::{is_secret, project_of};
use crate::{Code, Error, Result, Rules, Upstream};

/// What the cluster's roles said is believed for so long.
const BELIEVED: Duration = Duration::from_secs(10);
/// What is remembered of it at most.
const REMEMBERED: usize = 4096;

/// Knows nobody and no project until [`super::run`] tells it.
pub struct ApiAccess {
    client: Client,
    /// What references call the registry itself.
    hosts: Vec<String>,
    kinds: watch::Sender<Option<Kinds>>,
    decided: Mutex<HashMap<(User, String), (Instant, Actions)>>,
}

impl ApiAccess {
    /// `client` may review tokens and access, and read Secrets; `hosts` are what references call the registry.
    pub fn new(client: Client, hosts: Vec<String>) -> Arc<Self> {
        Arc::new(Self { client, hosts, kinds: watch::Sender::default(), decided: Mutex::default() })
    }

    pub(super) fn know(&self, kinds: Option<Kinds>) {
        self.kinds.send_replace(kinds);
    }

    fn kinds(&self) -> Result<Kinds> {
        self.kinds.borrow().clone().ok_or_else(|| {
            Error::new(Code::Unknown, "the registry does not know its projects yet; try again in a moment")
                .with_status(http::StatusCode::SERVICE_UNAVAILABLE)
        })
    }

    fn project(&self, repository: &str) -> Result<Option<Arc<Project>>> {
        Ok(self.kinds()?.projects.get(&Key::new(None, project_of(repository))))
    }

    fn robot(&self, login: &str, secret: &str) -> Result<Option<User>> {
        let robots = self.kinds()?.robots;
        let found = robot_of(login).and_then(|(namespace, name)| robots.get(&Key::new(Some(namespace), name)));
        let hash = found.as_ref().and_then(|robot| hash_of(robot));
        if !is_secret(secret, hash.as_ref()) {
            return Ok(None);
        }
        let robot = found.filter(|robot| is_let_in(robot, SystemTime::now()));
        Ok(robot.map(|robot| {
            let (namespace, name) = (robot.metadata.namespace.as_deref(), robot.metadata.name.as_deref());
            User {
                name: robot_user(namespace.unwrap_or_default(), name.unwrap_or_default()),
                groups: vec!["system:robots".to_owned(), AUTHENTICATED.to_owned()],
            }
        }))
    }

    /// Whose token this is.
    async fn review(&self, token: &str) -> Result<Option<User>> {
        // Tokens for the registry alone, then those for the API.
        for audiences in [Some(vec![CLUSTER_AUDIENCE.to_owned()]), None] {
            let review = TokenReview {
                spec: TokenReviewSpec { audiences, token: Some(token.to_owned()) },
                ..TokenReview::default()
            };
            let answer = self.client.create(&review).await.map_err(asking("whose token it is"))?;
            let status = answer.status.filter(|status| status.authenticated == Some(true));
            if let Some(user) = status.and_then(|status| status.user) {
                return Ok(Some(User {
                    name: user.username.unwrap_or_default(),
                    groups: user.groups.unwrap_or_default(),
                }));
            }
        }
        Ok(None)
    }

    /// What the cluster's roles let a user do with a project's images.
    async fn by_roles(&self, user: &User, project: &str) -> Result<Actions> {
        let key = (user.clone(), project.to_owned());
        if let Some((at, actions)) = self.decided.lock().get(&key)
            && at.elapsed() < BELIEVED
        {
            return Ok(*actions);
        }
        let (pull, push, delete) = tokio::try_join!(
            self.is_allowed(user, project, "get"),
            self.is_allowed(user, project, "create"),
            self.is_allowed(user, project, "delete"),
        )?;
        let actions = Actions { pull: pull || push, push, delete };
        let mut decided = self.decided.lock();
        if decided.len() >= REMEMBERED {
            decided.retain(|_, (at, _)| at.elapsed() < BELIEVED);
        }
        if decided.len() < REMEMBERED {
            decided.insert(key, (Instant::now(), actions));
        }
        Ok(actions)
    }

    /// Whether references to this host mean this registry.
    pub(super) fn is_own(&self, host: &str) -> bool {
        self.hosts.iter().any(|own| own == host)
    }

    /// What a Secret has for another registry.
    pub(super) async fn credentials_for(&self, secret: &SecretReference, registry: &str) -> Result<Auth> {
        let reference = Reference::parse(&format!("{registry}/any"));
        let reference = reference.map_err(|error| Error::new(Code::NameInvalid, error.to_string()))?;
        self.credentials(secret, &reference).await
    }

    /// What a Secret has for another registry's repository.
    async fn credentials(&self, secret: &SecretReference, reference: &Reference) -> Result<Auth> {
        let unusable = |why: String| Error::new(Code::Unknown, why).with_status(http::StatusCode::BAD_GATEWAY);
        let SecretReference { namespace, name } = secret;
        let auth = secrets::credentials(&self.client, namespace, name, &reference.name()).await.map_err(unusable)?;
        let nothing = || format!("the Secret {namespace}/{name}: it has nothing for {}", reference.registry);
        auth.ok_or_else(|| unusable(nothing()))
    }

    async fn is_allowed(&self, user: &User, project: &str, verb: &str) -> Result<bool> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                groups: Some(user.groups.clone()),
                resource_attributes: Some(ResourceAttributes {
                    group: Some("registry.dhow.io".to_owned()),
                    resource: Some("projects".to_owned()),
                    subresource: Some("images".to_owned()),
                    name: Some(project.to_owned()),
                    verb: Some(verb.to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let answer = self.client.create(&review).await.map_err(asking("what a user may"))?;
        Ok(answer.status.is_some_and(|status| status.allowed && status.denied != Some(true)))
    }
}

fn asking(what: &'static str) -> impl FnOnce(dhow_client::Error) -> Error {
    move |error| Error::Internal(format!("ask the API {what}: {error}"))
}

fn hash_of(robot: &RobotAccount) -> Option<[u8; 32]> {
    let text = robot.status.as_ref()?.secret_hash.as_ref().filter(|text| text.len() == 64 && text.is_ascii())?;
    let mut hash = [0; 32];
    for (index, byte) in hash.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(hash)
}

fn is_let_in(robot: &RobotAccount, now: SystemTime) -> bool {
    let ended = robot.spec.expires.as_ref().is_some_and(|expires| SystemTime::from(expires.0) <= now);
    !robot.spec.disabled && !ended && robot.metadata.deletion_timestamp.is_none()
}

/// What a project itself gives a user. Pods pull from the project that is named like their namespace.
fn by_project(project: &Project, user: Option<&User>) -> Actions {
    let visible = project.spec.visibility.actions(user);
    let Some(user) = user else { return visible };
    let neighbours = format!("system:serviceaccounts:{}", project.metadata.name.as_deref().unwrap_or_default());
    let own = if user.groups.contains(&neighbours) { Actions::PULL } else { Actions::NONE };
    let members = project.spec.members.iter().filter(|member| member.is(user));
    members.fold(visible.or(own), |actions, member| actions.or(member.role.actions()))
}

#[async_trait::async_trait]
impl Access for ApiAccess {
    async fn authenticate(&self, credentials: Credentials<'_>) -> Result<Option<User>> {
        match credentials {
            Credentials::Password { user, password } if robot_of(user).is_some() => self.robot(user, password),
            // Whoever holds a token is the one it names, whatever name is typed.
            Credentials::Password { password: token, .. } | Credentials::Token(token) => self.review(token).await,
        }
    }

    async fn actions(&self, user: Option<&User>, repository: &str) -> Result<Actions> {
        let project = self.project(repository)?;
        let given = project.map_or(Actions::NONE, |project| by_project(&project, user));
        match user {
            Some(user) if given != Actions::ALL => Ok(given.or(self.by_roles(user, project_of(repository)).await?)),
            _ => Ok(given),
        }
    }

    async fn rules(&self, repository: &str) -> Result<Arc<Rules>> {
        // What was in a project that is no longer there stays until someone decides about it.
        let Some(project) = self.project(repository)? else { return Ok(Arc::default()) };
        match project.spec.rules() {
            Ok(rules) => Ok(Arc::new(rules)),
            Err(why) => {
                Err(Error::new(Code::Denied, format!("the Project {} is not usable: {why}", project_of(repository))))
            }
        }
    }

    async fn ready(&self) {
        // Fails only when the sender is gone, which is ours.
        let _ = self.kinds.subscribe().wait_for(Option::is_some).await;
    }

    async fn upstream(&self, repository: &str) -> Result<Option<Upstream>> {
        let Some(project) = self.project(repository)? else { return Ok(None) };
        let Some((spec, (_, below))) = project.spec.upstream.as_ref().zip(repository.split_once('/')) else {
            return Ok(None);
        };
        let (reference, check_after) = spec.origin(below).map_err(|why| {
            Error::new(Code::Denied, format!("the Project {} is not usable: {why}", project_of(repository)))
        })?;
        if self.hosts.contains(&reference.registry) {
            let message = format!("the Project {} would be a cache of this registry", project_of(repository));
            return Err(Error::new(Code::Denied, message));
        }
        let auth = match &spec.credentials {
            Some(secret) => self.credentials(secret, &reference).await?,
            None => Auth::Anonymous,
        };
        Ok(Some(Upstream { reference, auth, check_after }))
    }

    async fn admits(&self, repository: &str) -> Result<()> {
        let project = project_of(repository);
        if let Some(found) = self.project(repository)? {
            if let Some(upstream) = &found.spec.upstream {
                let message = format!("{project} is a cache of {}; nothing is pushed into it", upstream.registry);
                return Err(Error::new(Code::Denied, message));
            }
            return Ok(());
        }
        let message = format!(
            "there is no Project {project:?}, the first part of the image's name: create it \
             (kind Project, apiVersion registry.dhow.io/v1alpha1)"
        );
        Err(Error::new(Code::NameUnknown, message))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn user(name: &str, groups: &[&str]) -> User {
        User { name: name.to_owned(), groups: groups.iter().map(|&group| group.to_owned()).collect() }
    }

    #[test]
    fn members_neighbours_and_strangers() {
        let project = |visibility: &str| {
            serde_json::from_value::<Project>(json!({
                "metadata": {"name": "team"},
                "spec": {"visibility": visibility, "members": [
                    {"kind": "User", "name": "ada", "role": "Maintainer"},
                    {"kind": "Group", "name": "devs", "role": "Developer"},
                ]},
            }))
            .unwrap()
        };
        let private = project("Private");
        let pod = user("system:serviceaccount:team:default", &["system:serviceaccounts:team"]);
        let stranger = user("system:serviceaccount:other:default", &["system:serviceaccounts:other"]);
        assert_eq!(by_project(&private, Some(&user("ada", &[]))), Actions::ALL);
        assert_eq!(by_project(&private, Some(&user("bob", &["devs"]))), Actions::PUSH);
        assert_eq!(by_project(&private, Some(&pod)), Actions::PULL);
        assert_eq!(by_project(&private, Some(&stranger)), Actions::NONE);
        assert_eq!(by_project(&private, None), Actions::NONE);
        assert_eq!(by_project(&project("Shared"), Some(&stranger)), Actions::PULL);
        assert_eq!(by_project(&project("Shared"), None), Actions::NONE);
        assert_eq!(by_project(&project("Public"), None), Actions::PULL);
    }

    #[test]
    fn robots_end() {
        let robot = |spec| serde_json::from_value::<RobotAccount>(json!({ "spec": spec })).unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        assert!(is_let_in(&robot(json!({})), now));
        assert!(is_let_in(&robot(json!({"expires": "2001-09-09T01:46:41Z"})), now));
        assert!(!is_let_in(&robot(json!({"expires": "2001-09-09T01:46:40Z"})), now));
        assert!(!is_let_in(&robot(json!({"disabled": true})), now));
        let hashed = |hash: &str| RobotAccount {
            status: serde_json::from_value(json!({ "secretHash": hash })).unwrap(),
            ..RobotAccount::default()
        };
        assert_eq!(hash_of(&hashed(&"0f".repeat(32))), Some([15; 32]));
        assert_eq!(hash_of(&hashed("0f")), None);
        assert_eq!(hash_of(&RobotAccount::default()), None);
    }
}
