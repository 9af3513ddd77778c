//! Who may do what: the one question the registry asks the cloud.

use std::sync::Arc;

use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{Result, Rules, Upstream};

/// Who a request is from. Nobody in particular is `None` wherever a user is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct User {
    pub name: String,
    pub groups: Vec<String>,
}

impl User {
    /// Whom a client certificate names that TLS has verified: common name and organisations.
    pub(crate) fn of_certificate(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().find_map(|name| name.as_str().ok())?.to_owned();
        let groups = subject.iter_organization().filter_map(|group| group.as_str().ok()).map(str::to_owned);
        Some(Self { name, groups: groups.chain([AUTHENTICATED.to_owned()]).collect() })
    }
}

/// The group of everyone who says who they are.
pub const AUTHENTICATED: &str = "system:authenticated";

/// What a client shows to say who it is.
#[derive(Clone, Copy)]
pub enum Credentials<'a> {
    Password {
        user: &'a str,
        password: &'a str,
    },
    /// A bearer token that is not one of the registry's own.
    Token(&'a str),
}

/// What may be done in a repository.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Actions {
    pub pull: bool,
    pub push: bool,
    pub delete: bool,
}

impl Actions {
    pub const NONE: Self = Self { pull: false, push: false, delete: false };
    pub const PULL: Self = Self { pull: true, push: false, delete: false };
    pub const PUSH: Self = Self { pull: true, push: true, delete: false };
    pub const ALL: Self = Self { pull: true, push: true, delete: true };

    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { pull: self.pull && other.pull, push: self.push && other.push, delete: self.delete && other.delete }
    }

    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self { pull: self.pull || other.pull, push: self.push || other.push, delete: self.delete || other.delete }
    }

    pub fn covers(self, wanted: Self) -> bool {
        self.and(wanted) == wanted
    }

    /// As scopes of tokens name them; names unknown to us are nothing.
    pub fn from_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        words.into_iter().fold(Self::NONE, |actions, word| match word {
            "pull" => Self { pull: true, ..actions },
            "push" => Self { push: true, ..actions },
            "delete" => Self { delete: true, ..actions },
            "*" => Self::ALL,
            _ => actions,
        })
    }

    pub fn words(self) -> Vec<&'static str> {
        let all = [(self.pull, "pull"), (self.push, "push"), (self.delete, "delete")];
        all.into_iter().filter(|(may, _)| *may).map(|(_, word)| word).collect()
    }
}

/// What the cloud knows of users and projects.
#[async_trait::async_trait]
pub trait Access: Send + Sync + 'static {
    /// Whether clients are asked who they are at all.
    fn asks(&self) -> bool {
        true
    }

    /// Whose credentials these are; `None` when they are nobody's.
    async fn authenticate(&self, credentials: Credentials<'_>) -> Result<Option<User>>;

    /// What `user` may do in a repository, which need not exist.
    async fn actions(&self, user: Option<&User>, repository: &str) -> Result<Actions>;

    /// What holds for a repository whoever asks.
    async fn rules(&self, repository: &str) -> Result<Arc<Rules>>;

    /// Where a repository is a cache of; `None`: it is no cache.
    async fn upstream(&self, _repository: &str) -> Result<Option<Upstream>> {
        Ok(None)
    }

    /// Returns once it knows all rules.
    async fn ready(&self) {}

    /// Fails with the reason why nothing can be pushed to a repository, even by those who may.
    async fn admits(&self, _repository: &str) -> Result<()> {
        Ok(())
    }
}

/// Lets everyone do everything within these rules: for tests and closed networks.
#[derive(Default)]
pub struct Everyone(pub Arc<Rules>);

#[async_trait::async_trait]
impl Access for Everyone {
    fn asks(&self) -> bool {
        false
    }

    async fn authenticate(&self, _: Credentials<'_>) -> Result<Option<User>> {
        Ok(None)
    }

    async fn actions(&self, _: Option<&User>, _: &str) -> Result<Actions> {
        Ok(Actions::ALL)
    }

    async fn rules(&self, _: &str) -> Result<Arc<Rules>> {
        Ok(self.0.clone())
    }
}
