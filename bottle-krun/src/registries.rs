//! What differs from the usual for some registries, as a person writes it down.
//!
//! ```toml
//! [registry."registry.example:5000"]
//! ca = "/etc/ssl/our-root.pem"        # trusted too, for this one only
//! mirrors = ["mirror.example"]        # asked first
//!
//! [registry."127.0.0.1:5000"]
//! plain_http = true                   # no TLS at all
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bottle_image::RegistryRule;
use serde::Deserialize;
use thiserror::Error;
use toml::de::Error as TomlError;

/// The file's whole content.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    registry: BTreeMap<String, Settings>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    ca: Option<PathBuf>,
    #[serde(default)]
    plain_http: bool,
    #[serde(default)]
    mirrors: Vec<String>,
}

/// Reads the file; one that is not there says nothing.
///
/// # Errors
///
/// [`RegistriesError`] if it cannot be read or understood.
pub(crate) fn read(path: &Path) -> Result<Vec<RegistryRule>, RegistriesError> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => {
            return Err(RegistriesError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    let document: Document =
        toml::from_str(&text).map_err(|source| RegistriesError::Malformed {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
    let rules = document.registry.into_iter().map(|(host, settings)| {
        let mut rule = RegistryRule::new(host);
        rule.ca = settings.ca;
        rule.plain_http = settings.plain_http;
        rule.mirrors = settings.mirrors;
        rule
    });
    Ok(rules.collect())
}

/// Why settings of registries are of no use.
#[derive(Debug, Error)]
#[non_exhaustive]
pub(crate) enum RegistriesError {
    /// The file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What stopped it.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("`{}` is malformed; docs/images.md shows how it is written", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        source: Box<TomlError>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<RegistryRule>, RegistriesError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("registries.toml");
        fs::write(&path, text).unwrap();
        read(&path)
    }

    #[test]
    fn a_registry_has_the_settings_that_are_written_down_for_it() {
        let rules = parsed(
            "[registry.\"r.example:5000\"]\nca = \"/ca.pem\"\nmirrors = [\"m.example\"]\n\
             [registry.\"127.0.0.1:1\"]\nplain_http = true\n",
        )
        .unwrap();
        assert_eq!(rules.len(), 2);
        assert_eq!(
            (&*rules[0].host, rules[0].plain_http),
            ("127.0.0.1:1", true)
        );
        assert_eq!(rules[1].ca.as_deref(), Some(Path::new("/ca.pem")));
        assert_eq!(rules[1].mirrors, ["m.example"]);
    }

    #[test]
    fn a_file_that_is_not_there_says_nothing() {
        assert_eq!(read(Path::new("/nonexistent/registries.toml")).unwrap(), []);
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for wrong in [
            "[registry.\"r\"]\nplain-http = true\n",
            "[registries.\"r\"]\n",
            "[registry.\"r\"]\nplain_http = \"yes\"\n",
            "registry",
        ] {
            let error = parsed(wrong).unwrap_err();
            assert!(
                matches!(error, RegistriesError::Malformed { .. }),
                "{wrong}"
            );
        }
    }
}
