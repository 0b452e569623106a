//! The workspace as cargo sees it: places and packages.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use serde::Deserialize;

use crate::process;

/// What `cargo metadata` says, as far as we ask.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    pub(crate) target_directory: PathBuf,
    pub(crate) workspace_root: PathBuf,
}

/// A member of the workspace.
#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) manifest_path: PathBuf,
    pub(crate) dependencies: Vec<Dependency>,
}

/// One line of a member's dependencies.
#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    /// The place of one of ours.
    pub(crate) path: Option<PathBuf>,
}

impl Package {
    /// The folder of the package.
    pub(crate) fn dir(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(Path::new("."))
    }
}

/// Cargo, the one that runs us.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The folder of the workspace.
pub(crate) fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Asks cargo.
pub(crate) fn metadata() -> anyhow::Result<Metadata> {
    let text = process::output(cargo().args(["metadata", "--format-version", "1", "--no-deps"]))?;
    serde_json::from_str(&text).context("cannot read what cargo metadata says")
}

/// The cache of guests: where `oxbow run` without a kernel looks too.
pub(crate) fn guests_dir() -> PathBuf {
    match std::env::var_os("OXBOW_CACHE").filter(|value| !value.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => root().join("target/guests"),
    }
}

/// Builds `oxbow` as users run it, and returns its path.
pub(crate) fn build_oxbow() -> anyhow::Result<PathBuf> {
    process::run(cargo().args(["build", "--release", "--quiet", "--package", "oxbow"]))?;
    let path = metadata()?.target_directory.join("release/oxbow");
    anyhow::ensure!(path.is_file(), "cargo built no {}", path.display());
    Ok(path)
}
