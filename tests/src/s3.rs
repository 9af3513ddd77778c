//! An S3 server on a test's host.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Child;

use anyhow::{Context, Result};
use dhow_test_s3::BUCKET;
use serde_json::{Value, json};

use crate::Host;

const ADDRESS: &str = "127.0.0.1:9000";

/// It ends when dropped; what it has stays in the host's folder.
pub struct S3 {
    child: Child,
    folder: PathBuf,
    address: String,
}

impl S3 {
    /// Starts it, with what an earlier one has left.
    pub fn start(host: &Host) -> Result<Self> {
        Self::start_at(host, ADDRESS)
    }

    /// The same at this address.
    pub fn start_at(host: &Host, address: &str) -> Result<Self> {
        // Made beside the tests, as the program under test is.
        let here = std::env::current_exe().context("find the test executable")?;
        let program = here.ancestors().nth(2).context("find the target folder")?.join("dhow-test-s3");
        let folder = host.folder().join("s3");
        std::fs::create_dir_all(&folder)?;
        let (name, at) = (program.to_str().context("path")?, folder.to_str().context("path")?);
        let mut child = host.spawn(name, &[at, address])?;
        let mut said = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut said)?;
        let server = Self { child, folder, address: address.to_owned() };
        anyhow::ensure!(said.starts_with("serving"), "the S3 server says {said:?}");
        Ok(server)
    }

    /// A bucket as it stands in the settings.
    pub fn settings(&self, prefix: &str) -> Value {
        let credentials = self.folder.join("credentials");
        json!({"endpoint": format!("http://{}", self.address), "bucket": BUCKET, "prefix": prefix, "credentialsFile": credentials})
    }

    /// Where the objects are whose keys begin with `prefix/`.
    pub fn objects(&self, prefix: &str) -> PathBuf {
        self.folder.join(BUCKET).join(prefix)
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
