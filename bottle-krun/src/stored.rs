//! `spec.json` in a bottle's directory of state: what others may know of it, and if it is kept, what
//! starts it again.
//!
//! Written once, when the directory is claimed; never rewritten. Only a bottle that is kept has its
//! environment in it; values of secrets never are.

use std::error::Error;
use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bottle_core::backend::LookUp;
use bottle_core::event::unix_ms;
use bottle_core::id::BottleId;
use bottle_core::images::Pull;
use bottle_core::listing::{Labels, State, Summary};
use bottle_core::ports::Publish;
use bottle_core::spec::{Env, Overlay, Resolve, Resources, Spec, UserName};
use bottle_core::units::{MiB, Vcpus};
use bottle_image::{ImageConfig, ImageDisk, ImageRef};
use bottle_wire::client::LaunchRule;
use nix::libc::O_NOFOLLOW;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::rules;

/// Changes when an older file can't be read any more.
const VERSION: u32 = 1;

/// The file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Stored {
    version: u32,
    id: BottleId,
    name: BottleId,
    image: String,
    created_ms: u64,
    command: Vec<String>,
    labels: Labels,
    detached: bool,
    tty: bool,
    ports: Vec<Publish>,
    /// Of a bottle that is kept.
    again: Option<Again>,
}

/// What starts a bottle again.
#[derive(Debug, Serialize, Deserialize)]
struct Again {
    command: Option<Vec<String>>,
    user: Option<UserName>,
    env: Vec<(String, String)>,
    rules: Vec<LaunchRule>,
    resolve: Vec<Resolve>,
    upstream_roots: Vec<String>,
    secrets: Vec<String>,
    vcpus: Vcpus,
    memory: MiB,
    overlay: Option<MiB>,
    stdin: bool,
    timeout_ms: Option<u64>,
    disk: Disk,
}

/// The image's disk, as it was.
#[derive(Debug, Serialize, Deserialize)]
struct Disk {
    descriptor: PathBuf,
    parts: Vec<PathBuf>,
    manifest: String,
    config: ImageConfig,
}

impl Stored {
    /// Describes a bottle that is about to be made.
    pub(crate) fn new(id: &BottleId, spec: &Spec, command: &[String], disk: &ImageDisk) -> Self {
        let Spec {
            name,
            image,
            pull: _,
            command: own_command,
            user,
            env,
            policy,
            resolve,
            // It may hold a password, and is whatever the host has when the bottle starts.
            proxy: _,
            upstream_roots,
            known_values,
            resources,
            detached,
            kept,
            stdin,
            tty,
            labels,
            ports,
            timeout,
        } = spec;
        let again = kept.then(|| Again {
            command: own_command.clone(),
            user: user.clone(),
            env: env
                .iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            rules: rules::launched(policy),
            resolve: resolve.clone(),
            upstream_roots: upstream_roots.clone(),
            secrets: known_values.iter().map(|it| it.name().to_owned()).collect(),
            vcpus: resources.vcpus,
            memory: resources.memory,
            overlay: match resources.overlay {
                Overlay::Disk(size) => Some(size),
                Overlay::Memory => None,
            },
            stdin: *stdin,
            timeout_ms: timeout.map(millis),
            disk: Disk {
                descriptor: disk.descriptor.clone(),
                parts: disk.parts.clone(),
                manifest: disk.image.manifest.clone(),
                config: disk.image.config.clone(),
            },
        });
        Self {
            version: VERSION,
            id: id.clone(),
            name: name.clone(),
            image: image.to_string(),
            created_ms: unix_ms(SystemTime::now()),
            command: command.to_vec(),
            labels: labels.clone(),
            detached: *detached,
            tty: *tty,
            ports: ports.clone(),
            again,
        }
    }

    /// Writes it to a new file.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let json = serde_json::to_vec(self)?;
        let mut file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW)
            .open(path)?;
        file.write_all(&json)?;
        file.sync_all()
    }

    /// Reads it.
    ///
    /// # Errors
    ///
    /// [`StoredError`].
    pub(crate) fn read(path: &Path) -> Result<Self, StoredError> {
        let bytes = fs::read(path).map_err(|source| StoredError::Io {
            path: path.to_owned(),
            source,
        })?;
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let damaged = |source| StoredError::Damaged {
            path: path.to_owned(),
            source,
        };
        let Head { version } = serde_json::from_slice(&bytes).map_err(damaged)?;
        if version != VERSION {
            return Err(StoredError::Version {
                path: path.to_owned(),
                version,
            });
        }
        serde_json::from_slice(&bytes).map_err(damaged)
    }

    /// Whether the bottle stays when it has ended.
    pub(crate) fn is_kept(&self) -> bool {
        self.again.is_some()
    }

    /// The files of the disk that a kept bottle needs to start again.
    pub(crate) fn into_disk_files(self) -> Vec<PathBuf> {
        let again = self.again.into_iter();
        again
            .flat_map(|again| [vec![again.disk.descriptor], again.disk.parts].concat())
            .collect()
    }

    /// Shows it in a list.
    pub(crate) fn summary(self, state: State) -> Summary {
        let kept = self.is_kept();
        let Self {
            version: _,
            id,
            name,
            image,
            created_ms,
            command,
            labels,
            detached,
            tty,
            ports,
            again: _,
        } = self;
        Summary {
            id,
            name,
            image,
            command,
            labels,
            created_ms,
            detached,
            kept,
            tty,
            ports,
            state,
        }
    }

    /// Finds the disk that a kept bottle had.
    ///
    /// # Errors
    ///
    /// [`StoredError::ImageGone`]; `None` if the bottle is not kept.
    pub(crate) fn disk(self) -> Result<Option<ImageDisk>, StoredError> {
        self.again.map(|again| again.disk.found()).transpose()
    }

    /// Makes the specification once more, with the disk that it had.
    ///
    /// # Errors
    ///
    /// [`StoredError`]; `None` if the bottle is not kept.
    pub(crate) fn again(
        self,
        look_up: &LookUp<'_>,
    ) -> Result<Option<(Spec, ImageDisk)>, StoredError> {
        let Self {
            name,
            image,
            labels,
            detached,
            tty,
            ports,
            again,
            ..
        } = self;
        let Some(again) = again else { return Ok(None) };
        let image = image.parse().map_err(|_| StoredError::Value {
            what: "image",
            text: image,
        })?;
        let mut env = Env::default();
        for (name, value) in again.env {
            env.set(&name, &value).map_err(|_| StoredError::Value {
                what: "variable",
                text: name,
            })?;
        }
        let mut known_values = Vec::new();
        for name in again.secrets {
            let found = look_up(&name);
            known_values.push(found.map_err(|source| StoredError::Secret { name, source })?);
        }
        let disk = again.disk.found()?;
        let mut spec = Spec::new(name, image);
        spec.pull = Pull::Never;
        spec.command = again.command;
        spec.user = again.user;
        spec.env = env;
        spec.policy = rules::policy_of(again.rules).ok_or_else(|| StoredError::Value {
            what: "one of the rules of",
            text: spec.name.to_string(),
        })?;
        spec.resolve = again.resolve;
        spec.upstream_roots = again.upstream_roots;
        spec.known_values = known_values;
        spec.resources = Resources {
            vcpus: again.vcpus,
            memory: again.memory,
            overlay: again.overlay.map_or(Overlay::Memory, Overlay::Disk),
        };
        spec.detached = detached;
        spec.kept = true;
        spec.stdin = again.stdin;
        spec.tty = tty;
        spec.labels = labels;
        spec.ports = ports;
        spec.timeout = again.timeout_ms.map(Duration::from_millis);
        Ok(Some((spec, disk)))
    }
}

impl Disk {
    fn found(self) -> Result<ImageDisk, StoredError> {
        let Self {
            descriptor,
            parts,
            manifest,
            config,
        } = self;
        let gone = [&descriptor]
            .into_iter()
            .chain(&parts)
            .find(|path| !path.exists());
        if let Some(path) = gone.cloned() {
            return Err(StoredError::ImageGone { path, manifest });
        }
        Ok(ImageDisk {
            descriptor,
            parts,
            image: ImageRef { manifest, config },
            converted: false,
        })
    }
}

/// Returns whole milliseconds.
pub(crate) fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// Why a bottle's description can't be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum StoredError {
    /// It is no description.
    #[error("`{}` is damaged; remove the bottle", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The image's disk was removed.
    #[error(
        "its image is not in the store any more (`{}` is missing); get the image of digest {manifest} \
         again",
        path.display()
    )]
    ImageGone {
        /// What is missing.
        path: PathBuf,
        /// The image's manifest.
        manifest: String,
    },
    /// It can't be read.
    #[error("cannot read `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A secret's value can't be found.
    #[error("cannot find the value of secret `{name}`")]
    Secret {
        /// Its name.
        name: String,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// A value that this release does not understand.
    #[error("{what} {text:?} is not understood")]
    Value {
        /// What it is.
        what: &'static str,
        /// How it is written.
        text: String,
    },
    /// Another release wrote it.
    #[error("`{}` has version {version}, this release reads version {VERSION}", path.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        version: u32,
    },
}

impl StoredError {
    /// Says whether there is no file at all.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == ErrorKind::NotFound)
    }
}

#[cfg(test)]
mod tests {
    use bottle_core::policy::Policy;
    use bottle_core::secret::Secret;

    use super::*;

    fn disk(dir: &Path) -> ImageDisk {
        let path = |name: &str| {
            let path = dir.join(name);
            fs::write(&path, "").unwrap();
            path
        };
        ImageDisk {
            descriptor: path("x.vmdk"),
            parts: vec![path("x.meta"), path("y.erofs")],
            image: ImageRef {
                manifest: "sha256:0".to_owned(),
                config: ImageConfig::default(),
            },
            converted: true,
        }
    }

    fn spec() -> Spec {
        let mut spec = Spec::new("web".parse().unwrap(), "debian:12".parse().unwrap());
        spec.command = Some(vec!["sleep".to_owned(), "9".to_owned()]);
        spec.env.set("A", "b=c").unwrap();
        spec.policy = Policy::new(["x.test:8443".parse().unwrap()]);
        spec.resolve = vec!["x.test:8443:127.0.0.1:1".parse().unwrap()];
        spec.known_values
            .extend(Secret::new("env:TOKEN", *b"hunter2-hunter2"));
        spec.detached = true;
        spec.tty = true;
        spec.timeout = Some(Duration::from_millis(1500));
        spec.ports = vec!["8080:80".parse().unwrap()];
        spec
    }

    #[test]
    fn a_kept_bottle_starts_again_as_it_was_and_its_secrets_are_looked_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spec.json");
        let id: BottleId = "web-22222".parse().unwrap();
        let mut spec = spec();
        spec.kept = true;
        let disk = disk(dir.path());
        Stored::new(&id, &spec, &["sleep".to_owned()], &disk)
            .write(&path)
            .unwrap();
        assert!(!fs::read_to_string(&path).unwrap().contains("hunter2"));
        let look_up = |name: &str| {
            assert_eq!(name, "env:TOKEN");
            Ok(Secret::new(name, *b"another-value").unwrap())
        };
        let (again, its_disk) = Stored::read(&path)
            .unwrap()
            .again(&look_up)
            .unwrap()
            .unwrap();
        assert_eq!(its_disk.parts, disk.parts);
        assert_eq!(again.known_values[0].expose(), b"another-value");
        spec.known_values.clone_from(&again.known_values);
        spec.pull = Pull::Never;
        assert_eq!(format!("{again:?}"), format!("{spec:?}"));

        fs::remove_file(&disk.parts[1]).unwrap();
        let gone = Stored::read(&path).unwrap().again(&look_up);
        assert!(
            matches!(gone, Err(StoredError::ImageGone { .. })),
            "{gone:?}"
        );
    }

    #[test]
    fn a_bottle_that_is_not_kept_leaves_nothing_of_its_environment_on_the_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spec.json");
        let id: BottleId = "web-22222".parse().unwrap();
        Stored::new(&id, &spec(), &["sleep".to_owned()], &disk(dir.path()))
            .write(&path)
            .unwrap();
        assert!(!fs::read_to_string(&path).unwrap().contains("b=c"));
        let nothing = |_: &str| Err("none".into());
        assert!(
            Stored::read(&path)
                .unwrap()
                .again(&nothing)
                .unwrap()
                .is_none()
        );
    }

    #[test]
    fn a_file_of_another_version_or_none_at_all_is_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spec.json");
        assert!(Stored::read(&path).unwrap_err().is_missing());
        fs::write(&path, r#"{"version":9,"new":true}"#).unwrap();
        let error = Stored::read(&path).unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("has version 9, this release reads version 1")
        );
        fs::write(&path, "{").unwrap();
        assert!(matches!(
            Stored::read(&path),
            Err(StoredError::Damaged { .. })
        ));
    }
}
