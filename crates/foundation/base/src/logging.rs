//! Log lines on standard error: for people on a terminal, JSON otherwise. Times are RFC 3339 in UTC.
//!
//! `DHOW_LOG` filters (`info`, `debug`, `dhow_store=trace,warn`); the default is `info` of ours, less of libraries.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

use crate::{Error, Result};

/// The store's engine tells of every step, and the netlink library of every answer that we asked for to see whether
/// something is there.
const DEFAULT_FILTER: &str = "info,fjall=warn,lsm_tree=warn,nlink=error";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text on a terminal, JSON otherwise.
    #[default]
    Auto,
    Text,
    Json,
}

impl std::str::FromStr for Format {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(Error::Logging(format!("unknown format {other:?}; use auto, text or json"))),
        }
    }
}

/// Sets the process's logger; a second call is an error.
pub fn init(format: Format) -> Result<()> {
    let filter = match std::env::var("DHOW_LOG") {
        Ok(text) => EnvFilter::try_new(&text).map_err(|e| Error::Logging(format!("DHOW_LOG={text:?}: {e}")))?,
        Err(_) => EnvFilter::new(DEFAULT_FILTER),
    };
    let terminal = std::io::stderr().is_terminal();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_timer(SystemTime).with_writer(std::io::stderr);
    let json = match format {
        Format::Auto => !terminal,
        Format::Text => false,
        Format::Json => true,
    };
    if json {
        builder.json().flatten_event(true).with_ansi(false).try_init()
    } else {
        builder.with_ansi(terminal).try_init()
    }
    .map_err(|e| Error::Logging(e.to_string()))
}
