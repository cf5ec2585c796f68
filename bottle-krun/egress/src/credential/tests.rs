//! Credentials without a network: rules, sources, headers.

use std::env::temp_dir;
use std::fs;
use std::process;

use bottle_core::credential::WrittenCredential;
use bottle_core::policy::WrittenRule;

use super::*;

const SECRET: &str = "s3cret-value-of-the-owner";

fn credential(header: &str, basic: Option<&str>, format: Option<&str>) -> Credential {
    let written = WrittenCredential {
        name: "api".to_owned(),
        header: header.to_owned(),
        from: "env:X".to_owned(),
        format: format.map(str::to_owned),
        basic: basic.map(str::to_owned),
    };
    written.try_into().unwrap()
}

fn keeper(credential: Credential, source: impl CredentialSource + 'static) -> Arc<Keeper> {
    let name = credential.name().clone();
    let vault = Vault::new(vec![(credential, Box::new(source))], &Policy::default()).unwrap();
    vault.keeper(&name).unwrap()
}

fn fixed() -> FixedSource {
    FixedSource::new(SECRET.as_bytes().to_vec())
}

#[test]
fn a_rule_and_its_credential_exist_together() {
    let rule = WrittenRule {
        host: "a.test".to_owned(),
        methods: vec!["GET".to_owned()],
        paths: vec!["/".to_owned()],
        credential: Some("api".to_owned()),
        ..WrittenRule::default()
    };
    let policy = Policy::new([rule.try_into().unwrap()]);
    let error = Vault::new(Vec::new(), &policy).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a rule names the credential `api`, which does not exist"
    );
    let one = || {
        let source: Box<dyn CredentialSource> = Box::new(fixed());
        (credential("x-key", None, None), source)
    };
    Vault::new(vec![one()], &policy).unwrap();
    assert!(matches!(
        Vault::new(vec![one(), one()], &policy),
        Err(VaultError::Twice { .. })
    ));
}

#[tokio::test]
async fn what_the_guest_sent_is_gone_in_every_spelling() {
    let keeper = keeper(credential("X-Api-Key", None, None), fixed());
    let value = keeper.value().await.unwrap();
    let mut headers = HeaderMap::new();
    for (name, text) in [
        ("x-api-key", "guest"),
        ("X-API-Key", "guest, again"),
        ("x_api_key", "guest"),
        ("x-api_key", "guest"),
        ("authorization", "Bearer guest"),
        ("range", "bytes=0-9"),
        ("accept-encoding", "br, gzip"),
        ("x-kept", "1"),
    ] {
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            text.parse().unwrap(),
        );
    }
    keeper.inject(&mut headers, &value);
    let mut left: Vec<_> = headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap()))
        .collect();
    left.sort_unstable();
    let wanted = [
        ("accept-encoding", "identity"),
        ("x-api-key", SECRET),
        ("x-kept", "1"),
    ];
    assert_eq!(left, wanted);
    assert!(headers["x-api-key"].is_sensitive());
}

#[tokio::test]
async fn a_value_is_written_in_its_form() {
    for (basic, format, wanted) in [
        (None, Some("Bearer {}"), format!("Bearer {SECRET}")),
        (None, Some("token={};v=1"), format!("token={SECRET};v=1")),
        (
            Some("me"),
            None,
            "Basic bWU6czNjcmV0LXZhbHVlLW9mLXRoZS1vd25lcg==".to_owned(),
        ),
    ] {
        let keeper = keeper(credential("authorization", basic, format), fixed());
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static("Bearer guest"));
        keeper.inject(&mut headers, &keeper.value().await.unwrap());
        assert_eq!(headers[AUTHORIZATION], wanted);
    }
}

#[tokio::test]
async fn nothing_that_can_be_printed_holds_the_value() {
    let keeper = keeper(credential("x-key", None, None), fixed());
    let value = keeper.value().await.unwrap();
    let mut headers = HeaderMap::new();
    keeper.inject(&mut headers, &value);
    let printed = format!(
        "{keeper:?} {value:?} {headers:?} {:?} {:?}",
        fixed(),
        Arc::clone(&keeper)
    );
    assert!(!printed.contains(SECRET), "{printed}");
}

#[tokio::test]
async fn files_and_programs_are_asked_when_they_are_needed() {
    let path = temp_dir().join(format!("bottle-credential-{}", process::id()));
    let file = keeper(
        credential("x-key", None, None),
        FileSource::new(path.clone()),
    );
    let refusal = file.value().await.unwrap_err();
    assert_eq!(refusal.reason, Reason::CredentialUnavailable);
    assert_eq!(refusal.detail, "the credential api could not be had");
    fs::write(&path, format!("  {SECRET}\n")).unwrap();
    let first = file.value().await.unwrap();
    assert_eq!(first.header, SECRET);
    assert!(file.renewed(&first).await.is_none(), "nothing newer");
    fs::write(&path, "another-value-of-the-owner").unwrap();
    assert!(file.renewed(&first).await.is_none(), "asked a moment ago");
    fs::remove_file(&path).unwrap();

    let sh = |script: &str| {
        CommandSource::new("sh".to_owned(), vec!["-c".to_owned(), script.to_owned()])
    };
    let printed = sh("echo printed-by-a-program; echo noise >&2")
        .fetch()
        .await
        .unwrap();
    assert_eq!(&printed[..], b"printed-by-a-program\n");
    for (script, error) in [
        (
            "echo hunter2-hunter2; exit 3",
            "`sh` gave no credential: exit status: 3",
        ),
        (
            "head -c 5000 /dev/zero; sleep 100",
            "the value has more than 4096 bytes",
        ),
    ] {
        assert_eq!(sh(script).fetch().await.unwrap_err().to_string(), error);
    }
    let short = keeper(
        credential("x-key", None, None),
        FixedSource::new(b"short".to_vec()),
    );
    short.value().await.unwrap_err();
    let torn = keeper(
        credential("x-key", None, None),
        FixedSource::new(b"two\r\nlines".to_vec()),
    );
    torn.value().await.unwrap_err();
}
