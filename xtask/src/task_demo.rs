//! `cargo xtask demo`.

use anyhow::{Result, bail};

use crate::tree::Tree;

/// Runs the task.
pub(crate) fn run(_tree: &Tree) -> Result<u8> {
    bail!("not yet")
}
