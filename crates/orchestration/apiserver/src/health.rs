//! `/healthz`, `/livez` and `/readyz`: named checks, each reachable by itself.

use std::time::Duration;

use bytes::Bytes;
use dhow_api::Status;
use dhow_client::Body;
use http::Response;

use crate::ApiServer;
use crate::encode;
use crate::info::Query;

/// What the store gets to answer.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, PartialEq)]
enum Check {
    Ping,
    Log,
    Etcd,
    EtcdReadiness,
    InformerSync,
    Shutdown,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Self::Ping => "ping",
            Self::Log => "log",
            Self::Etcd => "etcd",
            Self::EtcdReadiness => "etcd-readiness",
            Self::InformerSync => "informer-sync",
            Self::Shutdown => "shutdown",
        }
    }

    async fn passes(self, server: &ApiServer) -> bool {
        match self {
            Self::Ping | Self::Log => true,
            // Named as upstream names it, whatever the store is.
            Self::Etcd | Self::EtcdReadiness => {
                matches!(tokio::time::timeout(PATIENCE, server.store.revision()).await, Ok(Ok(_)))
            }
            Self::InformerSync => server.store.cache.revision() > 0,
            Self::Shutdown => !server.shutdown.is_cancelled(),
        }
    }
}

const ALIVE: &[Check] = &[Check::Ping, Check::Log, Check::Etcd];
const READY: &[Check] =
    &[Check::Ping, Check::Log, Check::Etcd, Check::EtcdReadiness, Check::InformerSync, Check::Shutdown];

/// Answers a health path; `None` if it is none.
pub async fn answer(server: &ApiServer, path: &str, query: &Query) -> Option<Result<Response<Body>, Status>> {
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let group = parts.next()?;
    let checks = match group {
        "healthz" | "livez" => ALIVE,
        "readyz" => READY,
        _ => return None,
    };
    if let Some(name) = parts.next() {
        let check = checks.iter().find(|check| check.name() == name)?;
        return Some(match check.passes(server).await {
            true => text(200, "ok".into()),
            false => text(500, format!("internal server error: {group} check {name:?} failed: reason withheld")),
        });
    }
    let (mut lines, mut healthy) = (String::new(), true);
    for check in checks {
        let name = check.name();
        if query.all("exclude").any(|excluded| excluded == name) {
            lines += &format!("[+]{name} excluded: ok\n");
        } else if check.passes(server).await {
            lines += &format!("[+]{name} ok\n");
        } else {
            healthy = false;
            lines += &format!("[-]{name} failed: reason withheld\n");
        }
    }
    Some(match (healthy, query.has("verbose")) {
        (true, false) => text(200, "ok".into()),
        (true, true) => text(200, format!("{lines}{group} check passed\n")),
        (false, _) => text(500, format!("{lines}{group} check failed\n")),
    })
}

fn text(code: u16, text: String) -> Result<Response<Body>, Status> {
    encode::build(code, "text/plain; charset=utf-8", Bytes::from(text))
}
