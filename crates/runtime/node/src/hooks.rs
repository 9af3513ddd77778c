//! What a container asks to be done after its start and before its stop.

use std::time::Duration;

use dhow_cri::Runtime;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::probes;

/// Whom a hook is run for.
pub struct Target<'a> {
    pub runtime: &'a dyn Runtime,
    pub id: &'a str,
    pub ip: &'a str,
    pub container: &'a Container,
}

impl Target<'_> {
    /// Runs to the end; the error is for the pod's events.
    pub async fn run(&self, handler: &LifecycleHandler) -> Result<(), String> {
        if let Some(exec) = &handler.exec {
            let command = exec.command.clone().unwrap_or_default();
            let result = self.runtime.exec_sync(self.id, &command, None).await.map_err(|error| error.to_string())?;
            return match result.exit_code {
                0 => Ok(()),
                code => Err(format!("command {command:?} exited with {code}")),
            };
        }
        if let Some(http) = &handler.http_get {
            let port = probes::port(self.container, &http.port).ok_or("the hook names no port of the container")?;
            let host = http.host.as_deref().unwrap_or(self.ip);
            return match probes::http_get(host, port, http).await {
                Some(code) if (200..400).contains(&code) => Ok(()),
                Some(code) => Err(format!("HTTP hook was answered with {code}")),
                None => Err("HTTP hook was not answered".into()),
            };
        }
        if let Some(sleep) = &handler.sleep {
            tokio::time::sleep(Duration::from_secs(sleep.seconds.unsigned_abs())).await;
            return Ok(());
        }
        Err("the hook has no action this node supports".into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::FakeRuntime;

    #[tokio::test]
    async fn exec_hooks_reach_the_container_and_unknown_ones_fail() {
        let runtime = FakeRuntime::default();
        let container = Container::default();
        let target = Target { runtime: &runtime, id: "c", ip: "127.0.0.1", container: &container };
        let hook = serde_json::json!({"exec": {"command": ["sync", "now"]}});
        target.run(&serde_json::from_value(hook).unwrap()).await.unwrap();
        assert_eq!(*runtime.execs.lock(), [["sync", "now"]]);
        assert!(target.run(&LifecycleHandler::default()).await.is_err());
    }
}
