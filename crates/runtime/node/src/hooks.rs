//! What a container asks to be done after its start and before its stop.

use std::time::Duration;

use dhow_cri::Runtime;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};

use crate::http_check::{self, Asked};

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
                code => {
                    let said = [result.stdout, result.stderr].concat();
                    let said = String::from_utf8_lossy(&said);
                    let line = command.join(" ");
                    Err(format!("command {line:?} exited with {code}: {}", said.trim_end()))
                }
            };
        }
        if let Some(http) = &handler.http_get {
            let asked = Asked::new(http, self.container, self.ip)?;
            let answer = match asked.send().await {
                // Hooks were sent without TLS whatever they said, once; servers that count on it are still about.
                Err(error) if asked.is_tls() && error.contains("tls: ") => asked.plain().send().await?,
                other => other?,
            };
            return match answer.status {
                200..400 => Ok(()),
                code => Err(format!("HTTP hook was answered with {code}")),
            };
        }
        if let Some(sleep) = &handler.sleep {
            tokio::time::sleep(Duration::from_secs(sleep.seconds.unsigned_abs())).await;
            return Ok(());
        }
        if let Some(tcp) = &handler.tcp_socket {
            let host = tcp.host.as_deref().filter(|host| !host.is_empty()).unwrap_or(self.ip);
            return http_check::connect(host, http_check::port(self.container, &tcp.port)?).await.map(drop);
        }
        Err("invalid handler: it has no action".into())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::testing::FakeRuntime;

    #[tokio::test]
    async fn exec_hooks_reach_the_container_and_empty_ones_fail() {
        let runtime = FakeRuntime::default();
        let container = Container::default();
        let target = Target { runtime: &runtime, id: "c", ip: "127.0.0.1", container: &container };
        let hook = serde_json::json!({"exec": {"command": ["sync", "now"]}});
        let hook = serde_json::from_value(hook).unwrap();
        target.run(&hook).await.unwrap();
        assert_eq!(*runtime.execs.lock(), [["sync", "now"]]);
        assert!(target.run(&LifecycleHandler::default()).await.is_err());
        runtime.exit_code.store(3, std::sync::atomic::Ordering::Relaxed);
        let error = target.run(&hook).await.unwrap_err();
        assert_eq!(error, "command \"sync now\" exited with 3: no");
    }
}
