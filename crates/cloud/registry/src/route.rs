//! Which of the protocol's endpoints a path is.

use dhow_image::{Digest, Reference};

use crate::{Code, Error, Result};

/// What a manifest is asked for by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Digest(Digest),
    /// As it was given; whether it may be a tag is looked at where one is made.
    Tag(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    Base,
    Token,
    Catalog,
    Tags {
        repository: String,
    },
    Manifest {
        repository: String,
        target: Target,
    },
    Blob {
        repository: String,
        digest: Digest,
    },
    Uploads {
        repository: String,
    },
    Upload {
        repository: String,
        id: String,
    },
    Referrers {
        repository: String,
        digest: Digest,
    },
    /// An extension of ours: what there is about images.
    Artifacts {
        repository: String,
    },
}

fn digest(text: &str) -> Result<Digest> {
    Digest::parse(text).map_err(|error| Error::new(Code::DigestInvalid, error.to_string()))
}

impl Route {
    /// `None`: none of them. A repository may itself be called `blobs` or `tags`, so paths are read from their end.
    ///
    /// # Errors
    /// When the repository or digest in it is malformed.
    pub fn parse(path: &str) -> Result<Option<Self>> {
        let path = decode(path).ok_or_else(|| Error::new(Code::NameInvalid, "the path is not valid UTF-8"))?;
        if path == "/token" {
            return Ok(Some(Route::Token));
        }
        let Some(rest) = path.strip_prefix("/v2/") else {
            return Ok((path == "/v2").then_some(Route::Base));
        };
        if rest.is_empty() {
            return Ok(Some(Route::Base));
        }
        if rest == "_catalog" {
            return Ok(Some(Route::Catalog));
        }
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Ok(Some(Route::Tags { repository: repository(name)? }));
        }
        if let Some(name) = rest.strip_suffix("/_dhow/artifacts") {
            return Ok(Some(Route::Artifacts { repository: repository(name)? }));
        }
        if let Some(name) = rest.strip_suffix("/blobs/uploads/").or_else(|| rest.strip_suffix("/blobs/uploads")) {
            return Ok(Some(Route::Uploads { repository: repository(name)? }));
        }
        let Some((before, last)) = rest.rsplit_once('/') else { return Ok(None) };
        if let Some(name) = before.strip_suffix("/blobs/uploads") {
            return Ok(Some(Route::Upload { repository: repository(name)?, id: last.to_owned() }));
        }
        if let Some(name) = before.strip_suffix("/blobs") {
            return Ok(Some(Route::Blob { repository: repository(name)?, digest: digest(last)? }));
        }
        if let Some(name) = before.strip_suffix("/referrers") {
            return Ok(Some(Route::Referrers { repository: repository(name)?, digest: digest(last)? }));
        }
        if let Some(name) = before.strip_suffix("/manifests") {
            let repository = repository(name)?;
            let target = if last.contains(':') { Target::Digest(digest(last)?) } else { Target::Tag(last.to_owned()) };
            return Ok(Some(Route::Manifest { repository, target }));
        }
        Ok(None)
    }

    pub fn repository(&self) -> Option<&str> {
        match self {
            Route::Base | Route::Token | Route::Catalog => None,
            Route::Tags { repository }
            | Route::Manifest { repository, .. }
            | Route::Blob { repository, .. }
            | Route::Uploads { repository }
            | Route::Upload { repository, .. }
            | Route::Referrers { repository, .. }
            | Route::Artifacts { repository } => Some(repository),
        }
    }
}

pub fn repository(name: &str) -> Result<String> {
    if Reference::is_repository(name) {
        return Ok(name.to_owned());
    }
    Err(Error::new(Code::NameInvalid, "invalid repository name").detail(serde_json::json!({ "name": name })))
}

/// Undoes percent-encoding; `None` when that gives no text.
fn decode(path: &str) -> Option<String> {
    if !path.contains('%') {
        return Some(path.to_owned());
    }
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = |at: usize| after.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        match (first, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push(u8::try_from(high * 16 + low).ok()?);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn paths() {
        let a = Digest::of(b"a");
        let name = |name: &str| name.to_owned();
        let cases = [
            ("/v2".to_owned(), Some(Route::Base)),
            (name("/v2/"), Some(Route::Base)),
            (name("/v2/_catalog"), Some(Route::Catalog)),
            (name("/token"), Some(Route::Token)),
            (name("/v2/a/b/tags/list"), Some(Route::Tags { repository: name("a/b") })),
            (name("/v2/blobs/uploads/blobs/uploads/"), Some(Route::Uploads { repository: name("blobs/uploads") })),
            (name("/v2/a/blobs/uploads"), Some(Route::Uploads { repository: name("a") })),
            (name("/v2/a/blobs/uploads/x-1"), Some(Route::Upload { repository: name("a"), id: name("x-1") })),
            (format!("/v2/a/blobs/{a}"), Some(Route::Blob { repository: name("a"), digest: a.clone() })),
            (
                format!("/v2/a/blobs/{}", a.as_str().replace(':', "%3A")),
                Some(Route::Blob { repository: name("a"), digest: a.clone() }),
            ),
            (format!("/v2/a/referrers/{a}"), Some(Route::Referrers { repository: name("a"), digest: a.clone() })),
            (
                name("/v2/tags/manifests/list"),
                Some(Route::Manifest { repository: name("tags"), target: Target::Tag(name("list")) }),
            ),
            (name("/v2/a/b/_dhow/artifacts"), Some(Route::Artifacts { repository: name("a/b") })),
            (name("/v2/a"), None),
            (name("/v2/a/b/c"), None),
            (name("/v1/x"), None),
            (name("/"), None),
        ];
        for (path, expected) in cases {
            assert_eq!(Route::parse(&path).unwrap(), expected, "{path}");
        }
        for bad in [
            "/v2/A/tags/list",
            "/v2/a//b/tags/list",
            "/v2/../x/tags/list",
            "/v2/a/blobs/sha256:x",
            "/v2/%ff/tags/list",
            "/v2/a%2f..%2fb/tags/list",
            "/v2/a/manifests/sha256:baddigeststring",
        ] {
            assert!(Route::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_repository_that_is_let_in_is_a_name(path in "/v2/[a-z0-9._/%-]{0,40}/(tags/list|blobs/uploads/|manifests/x)") {
            if let Ok(Some(route)) = Route::parse(&path)
                && let Some(name) = route.repository()
            {
                prop_assert!(Reference::is_repository(name));
                prop_assert!(!name.contains(".."));
            }
        }

        #[test]
        fn any_path_is_read_without_harm(path: String) {
            let _ = Route::parse(&path);
        }
    }
}
