//! The images that bottles boot: the store as the seam shows it.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bottle_core::backend::{BackendError, Blame};
use bottle_core::image::ImageSource;
use bottle_core::images::{
    Exported, ImageRecord, Images, Pull, PullReporter, Pulled, Removed, StoredImage,
};
use bottle_core::spec::Spec;
use bottle_image::{Catalog, Hold, ImageDisk, ImageError, ImageRef, SourceOptions};
use thiserror::Error;
use tokio::task::spawn_blocking;

use crate::options::KrunOptions;
use crate::registries::{self, RegistriesError};
use crate::state;

/// The images of one user.
#[derive(Clone, Debug)]
pub(crate) struct ImageStore {
    /// Where bottles are that may need images to start again.
    options: KrunOptions,
    store: PathBuf,
    sources: SourceOptions,
    /// What a person wrote down about registries.
    registries: Option<PathBuf>,
}

impl ImageStore {
    pub(crate) fn of(options: &KrunOptions) -> Self {
        Self {
            options: options.clone(),
            store: options.image_store.clone(),
            sources: options.sources.clone(),
            registries: options.registries.clone(),
        }
    }

    /// Finds the image of a specification, and changes nothing.
    ///
    /// # Errors
    ///
    /// [`Unready`]; with [`Pull::Never`] also for an image that only a registry has.
    pub(crate) fn find(&self, spec: &Spec) -> Result<ImageRef, Unready> {
        if let Some(disk) = self.kept(spec)? {
            return Ok(disk.image);
        }
        Ok(bottle_image::find(&spec.image, &self.sources()?)?)
    }

    /// Makes the disk of a specification's image ready; nobody removes it before the hold is
    /// dropped.
    ///
    /// # Errors
    ///
    /// As [`find`](Self::find), and what getting the image may meet with.
    pub(crate) fn ready(
        &self,
        spec: &Spec,
        reporter: &dyn PullReporter,
    ) -> Result<(ImageDisk, Hold), Unready> {
        let hold = self.hold()?;
        if let Some(disk) = self.kept(spec)? {
            return Ok((disk, hold));
        }
        let sources = self.sources()?;
        let (disk, _) = bottle_image::pull(&spec.image, None, &sources, &self.store, reporter)?;
        Ok((disk, hold))
    }

    /// The catalog, in which the disks of bottles that were kept are in use.
    fn catalog(&self) -> Catalog {
        let needed = state::disk_files(&self.options);
        Catalog::new(&self.store).needing(needed.iter().map(PathBuf::as_path))
    }

    /// Keeps images from being removed meanwhile.
    ///
    /// # Errors
    ///
    /// If the store cannot be locked.
    pub(crate) fn hold(&self) -> Result<Hold, Unready> {
        Ok(Catalog::new(&self.store).hold()?)
    }

    /// The disk of an image that need not be asked for anywhere.
    fn kept(&self, spec: &Spec) -> Result<Option<ImageDisk>, Unready> {
        if !matches!(spec.image, ImageSource::Registry(_)) || spec.pull == Pull::Always {
            return Ok(None);
        }
        let name = spec.image.to_string();
        match bottle_image::stored(&self.store, &name)? {
            None if spec.pull == Pull::Never => Err(ImageError::NotStored { name }.into()),
            found => Ok(found),
        }
    }

    fn sources(&self) -> Result<SourceOptions, Unready> {
        let mut sources = self.sources.clone();
        if let Some(path) = &self.registries {
            sources.registries.extend(registries::read(path)?);
        }
        Ok(sources)
    }

    /// Does something that takes its time, and words its failure.
    async fn work<T: Send + 'static>(
        &self,
        op: String,
        work: impl FnOnce(Self) -> Result<T, Unready> + Send + 'static,
    ) -> Result<T, BackendError> {
        let store = self.clone();
        let done = spawn_blocking(move || work(store));
        done.await
            .expect("work on images does not panic")
            .map_err(|error| BackendError::Failed {
                op,
                blame: Blame::User,
                hint: None,
                source: Box::new(error),
            })
    }
}

#[async_trait]
impl Images for ImageStore {
    async fn pull(
        &self,
        source: &ImageSource,
        name: Option<&str>,
        reporter: Arc<dyn PullReporter>,
    ) -> Result<Pulled, BackendError> {
        let (source, name) = (source.clone(), name.map(str::to_owned));
        self.work(format!("pull image `{source}`"), move |store| {
            let sources = store.sources()?;
            let name = name.as_deref();
            let (disk, record) =
                bottle_image::pull(&source, name, &sources, &store.store, &*reporter)?;
            Ok(Pulled {
                changed: disk.converted,
                record,
            })
        })
        .await
    }

    async fn list(&self) -> Result<Vec<StoredImage>, BackendError> {
        let work = |store: Self| Ok(store.catalog().list()?);
        self.work("list images".to_owned(), work).await
    }

    async fn inspect(&self, name: &str) -> Result<ImageRecord, BackendError> {
        let name = name.to_owned();
        self.work(format!("inspect image `{name}`"), move |store| {
            let found = store.catalog().get(&name)?;
            Ok(found.ok_or(ImageError::NotStored { name })?)
        })
        .await
    }

    async fn export(
        &self,
        name: &str,
        mut to: Box<dyn Write + Send>,
    ) -> Result<Exported, BackendError> {
        let name = name.to_owned();
        self.work(format!("export image `{name}`"), move |store| {
            Ok(bottle_image::export(&store.store, &name, &mut *to)?)
        })
        .await
    }

    async fn remove(&self, name: &str) -> Result<Removed, BackendError> {
        let name = name.to_owned();
        self.work(format!("remove image `{name}`"), move |store| {
            Ok(store.catalog().remove(&name)?)
        })
        .await
    }

    async fn prune(&self, all: bool) -> Result<Removed, BackendError> {
        let work = move |store: Self| Ok(store.catalog().prune(all)?);
        self.work("prune images".to_owned(), work).await
    }
}

/// Why an image is not ready.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum Unready {
    /// The image, its source or the store.
    #[error(transparent)]
    Image {
        /// What.
        #[from]
        source: ImageError,
    },
    /// What a person wrote down about registries.
    #[error(transparent)]
    Registries {
        /// What.
        #[from]
        source: RegistriesError,
    },
}
