//! The bottle's CA in every trust store that is found, and in the variables that runtimes read.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::files;
use crate::error::{InitError, failed};

/// The bundles that distributions' libraries read: Debian, RHEL, Alpine, SUSE.
const BUNDLES: [&str; 4] = [
    "etc/ssl/certs/ca-certificates.crt",
    "etc/pki/tls/certs/ca-bundle.crt",
    "etc/ssl/cert.pem",
    "etc/ssl/ca-bundle.pem",
];

/// The CA alone.
const CA: &str = "etc/ssl/bottle/ca.pem";

/// The CA and the image's own roots.
const BUNDLE: &str = "etc/ssl/bottle/ca-bundle.pem";

/// Where `update-ca-certificates` takes local ones from: it may run in the bottle.
const LOCAL: &str = "usr/local/share/ca-certificates/bottle.crt";

/// Variables whose file replaces the roots of a runtime or tool, and the one that adds to them.
const REPLACING: [&str; 11] = [
    "AWS_CA_BUNDLE",
    "CARGO_HTTP_CAINFO",
    "CODEX_CA_CERTIFICATE",
    "CURL_CA_BUNDLE",
    "DENO_CERT",
    "GIT_SSL_CAINFO",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "NIX_SSL_CERT_FILE",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "SSL_CERT_FILE",
];
const ADDING: &str = "NODE_EXTRA_CA_CERTS";

/// Lines around our part of a bundle; text between certificates is ignored by its readers.
const BEGIN: &str = "# BEGIN bottle\n";
const END: &str = "# END bottle\n";

/// Bytes of a bundle that are read.
const MAX_BUNDLE: u64 = 16 << 20;

/// Installs the CA; returns variables for processes that do not set them themselves.
pub(super) fn install(root: &Path, ca_pem: &str) -> Result<Vec<(&'static str, String)>, InitError> {
    if !ca_pem.starts_with("-----BEGIN CERTIFICATE-----\n") {
        let why = "it is not PEM".to_owned();
        return Err(InitError::Unusable {
            what: "the bottle's CA",
            why,
        });
    }
    let mut all = None;
    for path in BUNDLES {
        let Some((own, mode, target)) = read_bundle(root, path)? else {
            continue;
        };
        let with = with_ca(&own, ca_pem);
        if with != own {
            files::replace(root, &target, with.as_bytes(), mode)?;
        }
        all.get_or_insert(with);
    }
    let all = all.unwrap_or_else(|| with_ca("", ca_pem));
    files::replace(root, CA, ca_pem.as_bytes(), 0o644)?;
    files::replace(root, BUNDLE, all.as_bytes(), 0o644)?;
    files::replace(root, LOCAL, ca_pem.as_bytes(), 0o644)?;
    let mut variables: Vec<_> = REPLACING
        .iter()
        .map(|name| (*name, format!("/{BUNDLE}")))
        .collect();
    variables.push((ADDING, format!("/{CA}")));
    Ok(variables)
}

/// A bundle's text, mode, and real path below the root: several names may be links to one file.
fn read_bundle(root: &Path, path: &str) -> Result<Option<(String, u32, String)>, InitError> {
    let named = || format!("/{path}");
    let target = match root.join(path).canonicalize() {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("find", named())(error)),
    };
    let data = fs::metadata(&target).map_err(failed("look at", named()))?;
    let root = root.canonicalize().map_err(failed("find", "/"))?;
    let inside = target
        .strip_prefix(&root)
        .ok()
        .and_then(Path::to_str)
        .map(str::to_owned);
    let (true, true, Some(inside)) = (data.is_file(), data.len() <= MAX_BUNDLE, inside) else {
        let why = format!("`{}` is no file of a sensible size", named());
        return Err(InitError::Unusable {
            what: "a trust store",
            why,
        });
    };
    let bytes = fs::read(&target).map_err(failed("read", named()))?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    Ok(Some((text, data.permissions().mode() & 0o777, inside)))
}

/// The bundle with this CA as its last part; that of an earlier boot is left out.
fn with_ca(bundle: &str, ca_pem: &str) -> String {
    let own = match (bundle.find(BEGIN), bundle.find(END)) {
        (Some(begin), Some(end)) if begin < end => {
            format!("{}{}", &bundle[..begin], &bundle[end + END.len()..])
        }
        _ => bundle.to_owned(),
    };
    let line = |text: &str| {
        if text.is_empty() || text.ends_with('\n') {
            ""
        } else {
            "\n"
        }
    };
    format!("{own}{}{BEGIN}{ca_pem}{}{END}", line(&own), line(ca_pem))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::files::tests::Root;
    use super::*;

    const CA_PEM: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

    #[test]
    fn every_bundle_gets_the_ca_once_and_links_stay() {
        let root = Root::new("trust");
        fs::create_dir_all(root.0.join("etc/ssl/certs")).unwrap();
        let bundle = root.0.join("etc/ssl/certs/ca-certificates.crt");
        fs::write(&bundle, "own roots").unwrap();
        symlink("certs/ca-certificates.crt", root.0.join("etc/ssl/cert.pem")).unwrap();
        let variables = install(&root.0, CA_PEM).unwrap();
        let expected = format!("own roots\n# BEGIN bottle\n{CA_PEM}# END bottle\n");
        assert_eq!(fs::read_to_string(&bundle).unwrap(), expected);
        assert_eq!(fs::read_to_string(root.0.join(BUNDLE)).unwrap(), expected);
        assert!(
            fs::symlink_metadata(root.0.join("etc/ssl/cert.pem"))
                .unwrap()
                .is_symlink()
        );
        assert!(variables.contains(&("SSL_CERT_FILE", "/etc/ssl/bottle/ca-bundle.pem".to_owned())));
        let other = CA_PEM.replace("AAAA", "BBBB");
        install(&root.0, &other).unwrap();
        assert_eq!(
            fs::read_to_string(&bundle).unwrap(),
            expected.replace("AAAA", "BBBB")
        );
    }

    #[test]
    fn an_image_without_a_bundle_trusts_the_ca_alone() {
        let root = Root::new("trust-none");
        install(&root.0, CA_PEM).unwrap();
        let bundle = fs::read_to_string(root.0.join(BUNDLE)).unwrap();
        assert_eq!(bundle, format!("# BEGIN bottle\n{CA_PEM}# END bottle\n"));
    }

    #[test]
    fn a_bundle_that_is_a_directory_is_refused() {
        let root = Root::new("trust-dir");
        fs::create_dir_all(root.0.join(BUNDLES[0])).unwrap();
        assert!(matches!(
            install(&root.0, CA_PEM),
            Err(InitError::Unusable { .. })
        ));
        assert!(matches!(
            install(&root.0, "x"),
            Err(InitError::Unusable { .. })
        ));
    }
}
