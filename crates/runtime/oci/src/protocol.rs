//! What daemon and shim say to each other. A connection carries one request and its answers.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::spec::{Process, SandboxSpec, State};

#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Answered with `Ready` once the sandbox's namespaces exist.
    Hello,
    /// A shim that was started ahead of time learns which sandbox it is; namespaces are as it was started with.
    Configure {
        spec: Box<SandboxSpec>,
    },
    /// Makes a container from `containers/<id>/spec.json` in the sandbox's folder, up to the point of running it.
    Create {
        id: String,
    },
    Start {
        id: String,
    },
    /// Sends a signal to the first process, or with `all` to every process of the container.
    Signal {
        id: String,
        signal: i32,
        all: bool,
    },
    /// Kills what still runs, and forgets the container.
    Remove {
        id: String,
    },
    States,
    /// Sends a signal to a program that runs beside a first process; one that has ended is fine.
    SignalExec {
        pid: i32,
        signal: i32,
    },
    /// Runs a program beside the first process. Without a terminal the files are its stdin, stdout and stderr, those
    /// that are asked for; with one the answer `Running` brings the terminal. Ends with `Exited`.
    Exec {
        id: String,
        process: Box<Process>,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    },
    /// The files get what the container prints from now on, stdout first. The answer `Running` brings its terminal if there
    /// is one, else its stdin if that is asked for. Ends with `Exited`.
    Attach {
        id: String,
        stdin: bool,
    },
    /// Connects to a TCP port on the sandbox's loopback; the answer `Running` brings the connection.
    Connect {
        port: u16,
    },
    ReopenLog {
        id: String,
    },
    /// Answered with a `State` for each change from now on, and with `Rotated` for each log that is put aside.
    Watch,
    /// Kills everything and ends the shim.
    Stop,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    Done,
    Ready {
        pid: i32,
    },
    /// `pid` is the program's, as the host sees it; 0 where there is none.
    Running {
        pid: i32,
    },
    Exited {
        code: i32,
    },
    States(Vec<State>),
    State(Box<State>),
    /// The log file at this place was put aside, and a new one begun.
    Rotated {
        path: PathBuf,
    },
    Failed {
        kind: FailureKind,
        message: String,
    },
}

/// Which error a failure was, as far as a caller may care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    NotFound,
    CannotRun,
    Invalid,
    Other,
}

impl From<Error> for Reply {
    fn from(error: Error) -> Self {
        let (kind, message) = match error {
            Error::NotFound(id) => (FailureKind::NotFound, id),
            Error::CannotRun(message) => (FailureKind::CannotRun, message),
            Error::Invalid(message) => (FailureKind::Invalid, message),
            other => (FailureKind::Other, other.to_string()),
        };
        Self::Failed { kind, message }
    }
}

impl FailureKind {
    /// The error it was on the other side.
    pub fn into_error(self, message: String) -> Error {
        match self {
            Self::NotFound => Error::NotFound(message),
            Self::CannotRun => Error::CannotRun(message),
            Self::Invalid => Error::Invalid(message),
            Self::Other => Error::Shim(message),
        }
    }
}
