use std::fs::Permissions;
use std::time::Instant;

use tempfile::TempDir;

use super::*;

struct Home {
    dir: TempDir,
    options: SourceOptions,
}

impl Home {
    fn new(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), config).unwrap();
        let options = SourceOptions {
            docker_config: Some(dir.path().to_owned()),
            helper_path: Some(dir.path().as_os_str().to_owned()),
            ..SourceOptions::default()
        };
        Self { dir, options }
    }

    fn helper(&self, name: &str, script: &str) {
        let path = self.dir.path().join(format!("docker-credential-{name}"));
        // Written elsewhere: a program that a parallel test's child holds open cannot be started.
        let draft = self.dir.path().join("draft");
        fs::write(&draft, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&draft, Permissions::from_mode(0o755)).unwrap();
        fs::rename(draft, path).unwrap();
    }

    fn ask(&self, host: &str, repository: &str) -> Result<Option<String>, CredentialError> {
        let found = find(&self.options, host, repository)?;
        Ok(found.map(|found| match found {
            Credentials::IdentityToken(token) => format!("token {}", token.as_str()),
            Credentials::Password { user, password } => {
                format!("{} {}", user.as_str(), password.as_str())
            }
        }))
    }

    #[track_caller]
    fn known(&self, host: &str, repository: &str) -> Option<String> {
        self.ask(host, repository).unwrap()
    }

    #[track_caller]
    fn failure(&self, host: &str) -> String {
        let error = self.ask(host, "x").unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
        error
    }
}

fn some(text: &str) -> Option<String> {
    Some(text.to_owned())
}

#[test]
fn logins_are_found_by_every_spelling_of_a_host() {
    let home = Home::new(
        r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "dTpodWI="},
            "a.test:5000": {"auth": "dTpwOnc="},
            "https://b.test/v2/": {"identitytoken": "hunter2", "auth": "dTo="},
            "c.test": {"username": "u", "password": "plain"},
            "d.test": {},
            "e.test": {"auth": "PHRva2VuPjpyZWZyZXNo"}
        }, "HttpHeaders": {"X": "y"}, "psFormat": "table"}"#,
    );
    assert_eq!(home.known("docker.io", "library/x"), some("u hub"));
    assert_eq!(home.known("a.test:5000", "x"), some("u p:w"));
    assert_eq!(home.known("a.test", "x"), None);
    assert_eq!(home.known("b.test", "x"), some("token hunter2"));
    assert_eq!(home.known("c.test", "x"), some("u plain"));
    assert_eq!(home.known("d.test", "x"), None);
    assert_eq!(home.known("e.test", "x"), some("token refresh"));
}

#[test]
fn podmans_file_is_asked_second_and_knows_namespaces() {
    let mut home = Home::new(r#"{"auths": {"a.test": {"auth": "dTpkb2NrZXI="}}}"#);
    let auth = home.dir.path().join("auth.json");
    let file = r#"{"auths": {
        "a.test": {"auth": "dTpwb2RtYW4="},
        "b.test/team/app": {"auth": "dTphcHA="},
        "b.test/team": {"auth": "dTp0ZWFt"}
    }}"#;
    fs::write(&auth, file).unwrap();
    home.options.auth_files = vec![home.dir.path().join("missing.json"), auth];
    assert_eq!(home.known("a.test", "x"), some("u docker"));
    assert_eq!(home.known("b.test", "team/app"), some("u app"));
    assert_eq!(home.known("b.test", "team/application"), some("u team"));
    assert_eq!(home.known("b.test", "other"), None);
}

#[test]
fn a_helper_of_the_host_comes_before_the_store_and_the_file() {
    let home = Home::new(
        r#"{"auths": {"a.test": {"auth": "dTpmaWxl"}, "c.test": {"auth": "dTpmaWxl"}},
            "credsStore": "store", "credHelpers": {"a.test": "own"}}"#,
    );
    // They answer with what they were asked.
    let script = |user: &str| {
        format!(
            "read -r host || :\n[ \"$1\" = get ] || exit 3\n[ \"$host\" != c.test ] || {{ echo \
             'credentials not found in native keychain'; exit 1; }}\n\
             echo '{{\"ServerURL\":\"x\",\"Username\":\"{user}\",\"Secret\":\"'\"$host\"'\"}}'"
        )
    };
    home.helper("own", &script("own"));
    home.helper("store", &script("store"));
    assert_eq!(home.known("a.test", "x"), some("own a.test"));
    assert_eq!(home.known("b.test", "x"), some("store b.test"));
    assert_eq!(
        home.known("docker.io", "x"),
        some(&format!("store {HUB_KEY}"))
    );
    assert_eq!(home.known("c.test", "x"), some("u file"));
    home.helper(
        "own",
        "echo '{\"Username\":\"<token>\",\"Secret\":\"refresh\"}'",
    );
    assert_eq!(home.known("a.test", "x"), some("token refresh"));
}

#[test]
fn a_helper_that_fails_says_nothing_of_what_it_said() {
    let home = Home::new(r#"{"credHelpers": {"a.test": "x", "b.test": "missing"}}"#);
    for (script, expected) in [
        ("echo hunter2; exit 1", "failed: it ended with an error"),
        (
            "echo '{\"Secret\":\"hunter2\"'",
            "failed: its answer is malformed",
        ),
        (
            "echo '{\"Username\":[\"hunter2\"]}'",
            "failed: its answer is malformed",
        ),
        ("exec cat /dev/zero", "failed: its answer is too long"),
        (
            "exec head -c 70000 /dev/zero",
            "failed: its answer is too long",
        ),
    ] {
        home.helper("x", script);
        let message = home.failure("a.test");
        assert!(message.contains(expected), "{script}: {message}");
    }
    let message = home.failure("b.test");
    assert!(
        message.contains("`docker-credential-missing` is not in PATH"),
        "{message}"
    );
}

#[test]
fn a_helper_that_hangs_is_killed_with_its_children() {
    let mut home = Home::new(r#"{"credsStore": "x"}"#);
    home.options.timeouts.helper = Duration::from_millis(300);
    let pids = home.dir.path().join("pids");
    let script = format!("sleep 600 & echo $$ $! >{}; wait", pids.display());
    home.helper("x", &script);
    let started = Instant::now();
    let message = home.failure("a.test");
    assert!(
        message.contains("did not answer within 300 ms"),
        "{message}"
    );
    assert!(
        started.elapsed() < Duration::from_secs(10),
        "{:?}",
        started.elapsed()
    );
    for pid in fs::read_to_string(pids).unwrap().split_whitespace() {
        loop {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            // A zombie waits for whoever adopted it; it may take a moment to become one.
            if stat.is_empty() || stat.contains(") Z ") {
                break;
            }
            assert!(started.elapsed() < Duration::from_secs(10), "{stat}");
            thread::yield_now();
        }
    }
}

#[test]
fn a_helper_is_a_name_and_never_a_path_or_a_command() {
    for name in ["../x", "/bin/sh", "a b", "x;y", "-x", ".x", "$(x)", "x\\n"] {
        let home = Home::new(&format!(r#"{{"credsStore": "{name}"}}"#));
        let message = home.failure("a.test");
        assert!(message.contains("no name of a program"), "{message}");
    }
    // A relative directory of the PATH would be the current one's word.
    let mut home = Home::new(r#"{"credsStore": "x"}"#);
    home.helper("x", "echo '{\"Username\":\"u\",\"Secret\":\"hunter2\"}'");
    let up = env::current_dir().unwrap().components().count() - 1;
    let relative = format!(
        "{}{}",
        "../".repeat(up),
        &home.dir.path().display().to_string()[1..]
    );
    assert!(Path::new(&relative).join("docker-credential-x").exists());
    home.options.helper_path = Some(relative.into());
    assert!(home.failure("a.test").contains("is not in PATH"));
}

#[test]
fn a_damaged_file_is_named_without_its_secrets() {
    let message = Home::new("{\n\"auths\": {\"a.test\": \"hunter2\"}}").failure("a.test");
    assert!(
        message.ends_with("config.json` is malformed in line 2"),
        "{message}"
    );
    for auth in ["aHVudGVyMg==", "hunter2!", "/w=="] {
        let home = Home::new(&format!(
            r#"{{"auths": {{"a.test": {{"auth": "{auth}"}}}}}}"#
        ));
        let message = home.failure("a.test");
        assert!(
            message.contains("malformed `auth` for `a.test`"),
            "{message}"
        );
    }
}

#[test]
fn credentials_are_not_debugged() {
    let home = Home::new(r#"{"auths": {"a.test": {"auth": "dTpodW50ZXIy"}}}"#);
    let found = find(&home.options, "a.test", "x").unwrap();
    assert_eq!(format!("{found:?}"), "Some(Credentials(..))");
}
