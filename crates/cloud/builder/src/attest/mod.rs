//! What is stated about an image that was built: how it came to be, and what is in it.

mod packages;
mod provenance;
mod spdx;

use dhow_image::Statement;
use serde::{Deserialize, Serialize};

use crate::Builder;
use crate::build::Tree;
use crate::error::{Result, blocking};
use crate::report::Report;

pub use provenance::Asked;

/// How much is said about the way an image came to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProvenanceMode {
    /// What went in, when and where; no arguments, which may be nobody else's business.
    #[default]
    Min,
    /// Arguments, the names of secrets and the Dockerfile, too.
    Max,
}

/// What is to be stated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Attest {
    pub provenance: Option<ProvenanceMode>,
    /// The packages that are in it.
    pub sbom: bool,
}

impl Builder {
    /// Makes the statements about a build that are asked for.
    pub(crate) async fn attest(
        &self,
        wanted: Attest,
        asked: &Asked<'_>,
        tree: &Tree,
        report: &Report,
    ) -> Result<Vec<Statement>> {
        let mut statements = Vec::new();
        if wanted.sbom {
            let view = self.view(tree).await?;
            let found = blocking(move || packages::find(&view)).await?;
            statements.push(spdx::statement(&found, tree));
        }
        if let Some(mode) = wanted.provenance {
            statements.push(provenance::statement(mode, asked, report));
        }
        Ok(statements)
    }
}
