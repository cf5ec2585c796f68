//! `bottle image`.

use std::path::PathBuf;

use bottle_core::spec::ImageSource;
use clap::{Args, Subcommand};

/// What an exported archive is.
const ARCHIVE: &str = "\
`docker load`, `podman load`, `skopeo copy oci-archive:FILE …` and `bottle image import` read the \
archive. The store keeps what layers hold, not the files they came as: layers are written anew and \
uncompressed, with the same contents under other digests.";

/// Flags of `image`.
#[derive(Args, Debug)]
pub(crate) struct ImageArgs {
    #[command(subcommand)]
    pub(crate) command: ImageCommand,
}

/// What is to be done with images.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Get an image and make its disk, so that a start needs no network
    Pull(PullArgs),
    /// Get an image from somewhere and give it another name
    Import(ImportArgs),
    /// Write an image that is here to a file, as an OCI archive
    #[command(after_help = ARCHIVE)]
    Export(ExportArgs),
    /// List the images that are here
    Ls(ListArgs),
    /// Print all that is known of an image, as JSON
    Inspect(InspectArgs),
    /// Remove images, and what only they need
    Rm(RemoveArgs),
    /// Remove what no image needs: leftovers and downloads that were cut off
    Prune(PruneArgs),
}

/// Flags of `image pull`.
#[derive(Args, Debug)]
pub(crate) struct PullArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: ImageSource,
    /// Print what was pulled, as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `image import`.
#[derive(Args, Debug)]
pub(crate) struct ImportArgs {
    /// Where the image is
    #[arg(value_name = "SOURCE")]
    pub(crate) source: ImageSource,
    /// The name under which it will be found, as of a registry's image
    #[arg(value_name = "NAME")]
    pub(crate) name: ImageSource,
    /// Print what was imported, as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `image export`.
#[derive(Args, Debug)]
pub(crate) struct ExportArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: ImageSource,
    /// Write to this file, or with `-` to standard output; a file is replaced once all is written
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    pub(crate) output: PathBuf,
}

/// Flags of `image ls`.
#[derive(Args, Debug)]
pub(crate) struct ListArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Flags of `image inspect`.
#[derive(Args, Debug)]
pub(crate) struct InspectArgs {
    /// The image
    #[arg(value_name = "IMAGE")]
    pub(crate) image: ImageSource,
}

/// Flags of `image rm`.
#[derive(Args, Debug)]
pub(crate) struct RemoveArgs {
    /// The images
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<ImageSource>,
}

/// Flags of `image prune`.
#[derive(Args, Debug)]
pub(crate) struct PruneArgs {
    /// Remove all images that no bottle runs from, too
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
