//! Images of nodes, and what the cluster's registry knows of its own.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::ConnectArgs;

/// Which node's images, and how to reach it.
#[derive(Debug, Clone, Args)]
pub struct ImageNode {
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// The node [default: the first one].
    #[arg(long, value_name = "NAME")]
    pub node: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum ImageCommand {
    /// Pull an image from its registry; with your docker credentials, if you have some.
    Pull {
        #[command(flatten)]
        at: ImageNode,
        #[arg(value_name = "IMAGE")]
        name: String,
        /// Another platform than the node's.
        #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
        platform: Option<String>,
    },
    /// Push an image to a registry; with your docker credentials, if you have some.
    Push {
        #[command(flatten)]
        at: ImageNode,
        #[arg(value_name = "IMAGE")]
        name: String,
        /// Name in the registry [default: the image's own].
        #[arg(value_name = "TARGET")]
        target: Option<String>,
        /// Send layers in pieces of this many MiB.
        #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
        chunk: Option<u64>,
    },
    /// Load docker-archive or oci-archive files into the node's store.
    Import {
        #[command(flatten)]
        at: ImageNode,
        /// Files, or `-` for standard input.
        #[arg(required = true, value_name = "FILE|-")]
        files: Vec<PathBuf>,
    },
    /// Write images to an archive.
    Export {
        #[command(flatten)]
        at: ImageNode,
        #[arg(required = true, value_name = "IMAGE")]
        names: Vec<String>,
        /// File to write, or `-` for standard output.
        #[arg(short, long, value_name = "FILE|-")]
        output: PathBuf,
        #[arg(long, value_enum, default_value_t = ArchiveKind::Oci)]
        format: ArchiveKind,
    },
    /// List the images the node holds.
    #[command(alias = "ls")]
    List {
        #[command(flatten)]
        at: ImageNode,
        #[arg(short, long, value_enum, default_value_t = ImageOutput::Table)]
        output: ImageOutput,
    },
    /// Show everything about an image.
    Inspect {
        #[command(flatten)]
        at: ImageNode,
        #[arg(value_name = "IMAGE")]
        name: String,
        #[arg(short, long, value_enum, default_value_t = ImageOutput::Json)]
        output: ImageOutput,
    },
    /// Give an image another name.
    Tag {
        #[command(flatten)]
        at: ImageNode,
        #[arg(value_name = "IMAGE")]
        name: String,
        #[arg(value_name = "NEW-NAME")]
        target: String,
    },
    /// Take names away; an image without one goes once no container uses it.
    #[command(alias = "rm")]
    Remove {
        #[command(flatten)]
        at: ImageNode,
        #[arg(required = true, value_name = "IMAGE")]
        names: Vec<String>,
    },
    /// Remove images without a name, and what no image needs.
    Prune {
        #[command(flatten)]
        at: ImageNode,
        /// Every image that no container uses.
        #[arg(short, long)]
        all: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ArchiveKind {
    Oci,
    Docker,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ImageOutput {
    Table,
    Wide,
    Json,
    Yaml,
}

#[derive(Debug, Subcommand)]
pub enum RegistryCommand {
    /// List the tags of a repository with their sizes, signatures, bills of material and vulnerabilities.
    Artifacts {
        #[command(flatten)]
        connect: ConnectArgs,
        #[arg(value_name = "REPOSITORY[:TAG]")]
        name: String,
        #[arg(short, long, value_enum, default_value_t = ImageOutput::Table)]
        output: ImageOutput,
    },
    /// Show how often a repository was pulled from and pushed to, by day.
    Usage {
        #[command(flatten)]
        connect: ConnectArgs,
        #[arg(value_name = "REPOSITORY")]
        name: String,
        #[arg(short, long, value_enum, default_value_t = ImageOutput::Table)]
        output: ImageOutput,
    },
}
