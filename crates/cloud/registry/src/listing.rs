//! Lists and their pages: repositories, tags, referrers.

use dhow_image::Digest;
use dhow_image::media::OCI_INDEX;
use http::{Response, StatusCode};
use serde_json::{Value, json};

use crate::access::Actions;
use crate::request::{Asked, Body, json_answer};
use crate::{Code, Error, Inner, Result};

/// What one answer holds at most.
const PAGE: usize = 1000;
/// Referrers carry annotations of their manifests.
const PAGE_BYTES: usize = 2 << 20;

/// `n` and `last` of a request.
fn page(asked: &Asked) -> Result<(Option<usize>, Option<String>)> {
    let n = asked.parameter("n").map(|n| {
        n.parse::<usize>().map_err(|_| {
            Error::new(Code::PaginationNumberInvalid, "invalid number of results requested").detail(json!({ "n": n }))
        })
    });
    Ok((n.transpose()?, asked.parameter("last").filter(|last| !last.is_empty()).map(str::to_owned)))
}

/// A `Link` to the next page.
fn next(path: &str, last: &str, n: Option<usize>, more: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.append_pair("last", last);
    if let Some(n) = n {
        query.append_pair("n", &n.to_string());
    }
    more.iter().for_each(|(name, value)| {
        query.append_pair(name, value);
    });
    format!("<{path}?{}>; rel=\"next\"", query.finish())
}

fn list(value: &Value, link: Option<String>) -> Response<Body> {
    match link {
        Some(link) => json_answer(StatusCode::OK, &[("link", &link)], value),
        None => json_answer(StatusCode::OK, &[], value),
    }
}

impl Inner {
    /// Of the repositories, those that the client may pull from.
    pub async fn list_repositories(&self, asked: &Asked) -> Result<Response<Body>> {
        let (n, last) = page(asked)?;
        let limit = n.unwrap_or(PAGE).min(PAGE);
        let (mut found, mut after, mut more) = (Vec::new(), last, limit > 0);
        while more && found.len() <= limit {
            let (names, rest) = self.catalog.repositories(after.as_deref(), PAGE).await?;
            more = rest;
            for name in names {
                after = Some(name.clone());
                if self.may(&asked.who, &name).await?.covers(Actions::PULL) {
                    found.push(name);
                }
            }
        }
        let link = (found.len() > limit && limit > 0).then(|| {
            found.truncate(limit);
            next("/v2/_catalog", found.last().map_or("", String::as_str), n, &[])
        });
        Ok(list(&json!({ "repositories": found }), link))
    }

    pub async fn list_tags(&self, asked: &Asked, repository: &str) -> Result<Response<Body>> {
        let (n, last) = page(asked)?;
        if !self.catalog.exists(repository).await? {
            return Err(Error::name_unknown(repository));
        }
        let limit = n.unwrap_or(PAGE).min(PAGE);
        let (tags, more) = match limit {
            0 => (Vec::new(), false),
            limit => self.catalog.tag_names(repository, last.as_deref(), limit).await?,
        };
        let path = format!("/v2/{repository}/tags/list");
        let link = more.then(|| next(&path, tags.last().map_or("", String::as_str), n, &[]));
        Ok(list(&json!({ "name": repository, "tags": tags }), link))
    }

    pub async fn list_referrers(&self, asked: &Asked, repository: &str, subject: &Digest) -> Result<Response<Body>> {
        let (n, last) = page(asked)?;
        self.refresh_referrers(repository, subject).await?;
        let limit = n.unwrap_or(PAGE).clamp(1, PAGE);
        let wanted = asked.parameter("artifactType").filter(|kind| !kind.is_empty());
        let (mut found, mut after, mut more, mut bytes): (Vec<Value>, _, _, _) = (Vec::new(), last, true, 0);
        while more && found.len() < limit && bytes < PAGE_BYTES {
            // One at a time where annotations may be large would be slow, and all at once too much.
            let (page, rest) = self.catalog.referrers(repository, subject, after.as_deref(), 100).await?;
            more = rest;
            let length = page.len();
            for (index, descriptor) in page.into_iter().enumerate() {
                after = descriptor["digest"].as_str().map(str::to_owned);
                if wanted.is_none_or(|wanted| descriptor["artifactType"] == wanted) {
                    bytes += descriptor.to_string().len();
                    found.push(descriptor);
                }
                if found.len() >= limit || bytes >= PAGE_BYTES {
                    more = more || index + 1 < length;
                    break;
                }
            }
        }
        let path = format!("/v2/{repository}/referrers/{subject}");
        let kept: Vec<(&str, &str)> = wanted.iter().map(|kind| ("artifactType", *kind)).collect();
        let link = more.then(|| next(&path, after.as_deref().unwrap_or_default(), n, &kept));
        let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": found });
        let mut headers = vec![("content-type", OCI_INDEX)];
        if wanted.is_some() {
            headers.push(("oci-filters-applied", "artifactType"));
        }
        if let Some(link) = &link {
            headers.push(("link", link));
        }
        Ok(json_answer(StatusCode::OK, &headers, &index))
    }
}
