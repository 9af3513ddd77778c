//! Docker's images.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use dhow_image::{ArchiveFormat, ImageStore, Reference};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::AsyncBufReadExt;

use super::api::Api;
use super::{Inner, api};
use crate::runtime::{ImageAuth, ImageInfo, Reader};
use crate::{Error, archive, pause};

/// Makes the sandboxes' image if it is not there.
pub async fn ensure_pause(api: &Api) -> Result<(), Error> {
    if api.get(&format!("/images/{}/json", pause::NAME)).await.is_ok() {
        return Ok(());
    }
    let answer = api.upload("/images/load?quiet=true", Box::new(std::io::Cursor::new(pause::archive()?))).await;
    let answer = answer.map_err(|failure| failure.on("image", pause::NAME))?;
    progress(answer).await.map_err(|message| Error::internal("load the pause image", message))
}

/// Reads a call's progress to its end; the error if it reports one.
async fn progress(answer: http::Response<hyper::body::Incoming>) -> Result<(), String> {
    let mut lines = api::reader(answer).lines();
    loop {
        match lines.next_line().await {
            Ok(None) => return Ok(()),
            Ok(Some(line)) => {
                let told: Value = serde_json::from_str(&line).unwrap_or_default();
                if let Some(error) = told["error"].as_str() {
                    return Err(error.to_owned());
                }
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

pub async fn pull(inner: &Inner, reference: &str, auth: Option<ImageAuth>) -> Result<String, Error> {
    let failed = |message: String| Error::ImagePull { reference: reference.to_owned(), message };
    let header = auth.map(|auth| {
        let auth = if auth.identity_token.is_empty() {
            json!({"username": auth.username, "password": auth.password})
        } else {
            json!({"identitytoken": auth.identity_token})
        };
        ("X-Registry-Auth", URL_SAFE.encode(auth.to_string()))
    });
    // Without a tag Docker would pull all of them.
    let full = Reference::parse(reference).map_err(|error| failed(error.to_string()))?.to_string();
    let path = format!("/images/create?fromImage={}", api::escape(&full));
    let answer = inner.api.begin(&path, &Value::Null, header).await.map_err(|failure| failed(failure.to_string()))?;
    progress(answer).await.map_err(&failed)?;
    match status(inner, &full).await? {
        Some(image) => Ok(image.id),
        None => Err(failed("Docker does not have it after pulling it".into())),
    }
}

pub async fn status(inner: &Inner, reference: &str) -> Result<Option<ImageInfo>, Error> {
    match inner.api.get(&format!("/images/{}/json", segments(reference))).await {
        Ok(image) => Ok(Some(info(&image["Id"], &image, &image["Config"]["User"]))),
        Err(failure) if failure.is(StatusCode::NOT_FOUND) => Ok(None),
        Err(failure) => Err(failure.on("image", reference)),
    }
}

pub async fn list(inner: &Inner) -> Result<Vec<ImageInfo>, Error> {
    let list = inner.api.get("/images/json").await.map_err(|failure| failure.on("image", ""))?;
    // The list does not tell the user.
    Ok(list.as_array().into_iter().flatten().map(|image| info(&image["Id"], image, &Value::Null)).collect())
}

fn info(id: &Value, image: &Value, user: &Value) -> ImageInfo {
    let names = |list: &Value| {
        let names = list.as_array().into_iter().flatten().filter_map(Value::as_str);
        // Docker shortens its own registry's names.
        names.filter_map(|name| Reference::parse(name).ok()).map(|name| name.to_string()).collect()
    };
    let user = user.as_str().unwrap_or_default().split(':').next().unwrap_or_default();
    let uid = user.parse().ok();
    ImageInfo {
        id: id.as_str().unwrap_or_default().to_owned(),
        repo_tags: names(&image["RepoTags"]),
        repo_digests: names(&image["RepoDigests"]),
        size: image["Size"].as_u64().unwrap_or_default(),
        uid,
        username: (uid.is_none() && !user.is_empty()).then(|| user.to_owned()),
    }
}

/// Removes a name, or an image with all its names.
pub async fn remove(inner: &Inner, reference: &str) -> Result<(), Error> {
    let Some(image) = status(inner, reference).await? else { return Ok(()) };
    let by_id = image.id == reference || image.id.trim_start_matches("sha256:") == reference;
    let names = if by_id && !image.repo_tags.is_empty() { image.repo_tags } else { vec![reference.to_owned()] };
    for name in names {
        match inner.api.delete(&format!("/images/{}", segments(&name))).await {
            Err(failure) if failure.is(StatusCode::NOT_FOUND) => {}
            Err(failure) => return Err(failure.on("image", &name)),
            Ok(_) => {}
        }
    }
    Ok(())
}

/// A reference as part of a path: its slashes are the path's.
fn segments(reference: &str) -> String {
    reference.split('/').map(api::escape).collect::<Vec<_>>().join("/")
}

/// Docker reads its own archives only, so every image becomes one.
pub async fn import(inner: &Inner, reader: Reader) -> Result<Vec<String>, Error> {
    let folder = tempfile::tempdir().map_err(|error| Error::internal("make a folder for the image", error))?;
    let store =
        ImageStore::open(folder.path()).map_err(|error| Error::internal("open a store for the image", error))?;
    let names = archive::read(&store, reader).await?;
    for name in &names {
        let path = folder.path().join("image.tar");
        archive::write(&store, name, ArchiveFormat::Docker, &path).await?;
        let file = tokio::fs::File::open(&path).await;
        let file = file.map_err(|error| Error::internal(format!("read {}", path.display()), error))?;
        let answer = inner.api.upload("/images/load?quiet=true", Box::new(file)).await;
        let answer = answer.map_err(|failure| failure.on("image", name))?;
        let loaded = progress(answer).await;
        loaded.map_err(|message| Error::InvalidArgument(format!("load {name} into Docker: {message}")))?;
    }
    Ok(names)
}
