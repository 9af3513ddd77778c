//! Objects that parts of the cloud need to be there: their kinds, their roles, their Services.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use dhow_client::Client;
use http::{Request, header};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

const RETRY: Duration = Duration::from_secs(5);

/// Applies all of it, then waits for the end. A cloud without them is still one, so this ends nothing.
pub async fn keep(administrator: Client, objects: Vec<Value>, shutdown: CancellationToken) -> Result<()> {
    tokio::select! {
        () = publish(&administrator, &objects) => shutdown.cancelled().await,
        () = shutdown.cancelled() => {}
    }
    Ok(())
}

/// Returns once all of it is there.
pub async fn publish(administrator: &Client, objects: &[Value]) {
    while let Err(error) = apply_all(administrator, objects).await {
        tracing::warn!(error = format!("{error:#}"), "cannot publish what parts of the cloud need; trying again");
        tokio::time::sleep(RETRY).await;
    }
}

async fn apply_all(client: &Client, objects: &[Value]) -> Result<()> {
    for object in objects {
        apply(client, object).await?;
    }
    Ok(())
}

/// Server-side apply: what an older version of us left is brought up to date.
async fn apply(client: &Client, object: &Value) -> Result<()> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (version, kind, name) = (text(&object["apiVersion"]), text(&object["kind"]), text(&object["metadata"]["name"]));
    let root = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
    let scope = object["metadata"]["namespace"].as_str().map(|ns| format!("/namespaces/{ns}")).unwrap_or_default();
    let path = format!("{root}{scope}/{}s/{name}?fieldManager=dhow&force=true", kind.to_ascii_lowercase());
    let request = Request::patch(&path)
        .header(header::CONTENT_TYPE, "application/apply-patch+yaml")
        .header(header::ACCEPT, "application/json")
        .body(Bytes::from(object.to_string()))?;
    let response = client.request(request).await.with_context(|| format!("apply {kind} {name}"))?;
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    let body = response.into_body().collect().await.map_err(|error| anyhow!("{error}"))?.to_bytes();
    bail!("apply {kind} {name}: {status}: {}", String::from_utf8_lossy(&body))
}
