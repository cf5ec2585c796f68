//! `cargo xtask test`.
use anyhow::Result;
use crate::tree::Tree;
pub(crate) fn run(_tree: &Tree) -> Result<u8> { Ok(0) }
