//! The crate's front door as most tests want it: a layout directory, and default options.

use std::error::Error;
use std::path::Path;

use bottle_core::image::ImageSource;
use bottle_core::images::PullReporter;
use bottle_core::reporter::Silent;
use bottle_image::{ImageDisk, ImageError, ImageRef, SourceOptions};

fn layout(dir: &Path, reference: Option<&str>) -> ImageSource {
    ImageSource::OciLayout {
        dir: dir.to_owned(),
        reference: reference.map(str::to_owned),
    }
}

pub(crate) fn find(dir: &Path, reference: Option<&str>) -> Result<ImageRef, ImageError> {
    bottle_image::find(&layout(dir, reference), &SourceOptions::default())
}

pub(crate) fn to_disk(
    dir: &Path,
    reference: Option<&str>,
    store: &Path,
) -> Result<ImageDisk, ImageError> {
    to_disk_told(dir, reference, store, &Silent)
}

pub(crate) fn to_disk_told(
    dir: &Path,
    reference: Option<&str>,
    store: &Path,
    reporter: &dyn PullReporter,
) -> Result<ImageDisk, ImageError> {
    let options = SourceOptions::default();
    bottle_image::to_disk(&layout(dir, reference), &options, store, reporter)
}

/// An error with its causes, as they are printed.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
