//! Byte streams between runtimes and their callers as CRI has them: SPDY/3.1 streams on an upgraded HTTP connection.

pub(crate) mod dial;
pub mod frame;
pub(crate) mod spdy;

use serde_json::{Value, json};

/// What is spoken on the streams of exec and attach: the fourth version ends with a `Status` on the error stream.
pub const REMOTE_COMMAND: &str = "v4.channel.k8s.io";
/// What is spoken on the streams of port-forward.
pub const PORT_FORWARD: &str = "portforward.k8s.io";
/// Header by which both sides agree on what is spoken.
pub const VERSION: &str = "x-stream-protocol-version";
/// The `Upgrade` that carries all of it.
pub const UPGRADE: &str = "SPDY/3.1";
/// Header of a stream that says what it is for: `error`, `stdin`, `stdout`, `stderr`, `resize` or `data`.
pub const STREAM_TYPE: &str = "streamtype";

/// Where the streams of exec and attach share a WebSocket: each message begins with its channel.
pub mod channel {
    pub const STDIN: u8 = 0;
    pub const STDOUT: u8 = 1;
    pub const STDERR: u8 = 2;
    pub const ERROR: u8 = 3;
    pub const RESIZE: u8 = 4;
    /// [`V5`] only: the payload names the channel that ended.
    pub const CLOSE: u8 = 255;
    /// The version whose clients can say that their input ended.
    pub const V5: &str = "v5.channel.k8s.io";
}

/// A terminal's size as it travels on a `resize` stream, one document after another.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TerminalSize {
    pub width: u16,
    pub height: u16,
}

/// What the error stream of exec and attach says at the end: a `Status` of `metav1`.
pub fn status(outcome: Result<i32, String>) -> Value {
    match outcome {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(message) => json!({
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": "InternalError",
            "code": 500,
        }),
    }
}
