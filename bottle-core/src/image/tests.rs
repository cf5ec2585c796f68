use proptest::prelude::*;

use super::*;

const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

fn problem(text: &str) -> ReferenceProblem {
    let error = text.parse::<ImageSource>().unwrap_err();
    assert_eq!(error.text, text);
    error.problem
}

#[test]
fn names_are_completed_as_docker_completes_them() {
    for (text, full) in [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("docker:dind", "docker.io/library/docker:dind"),
        ("docker://debian:12", "docker.io/library/debian:12"),
        ("docker.io/debian", "docker.io/library/debian:latest"),
        ("index.docker.io/a/b", "docker.io/a/b:latest"),
        ("a/b", "docker.io/a/b:latest"),
        ("a/b/c:v1", "docker.io/a/b/c:v1"),
        ("ghcr.io/x/y:V1.2_x-", "ghcr.io/x/y:V1.2_x-"),
        ("GHCR.io/x", "ghcr.io/x:latest"),
        ("UPPER/x", "upper/x:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost:5000/x:tag", "localhost:5000/x:tag"),
        ("127.0.0.1:1/x", "127.0.0.1:1/x:latest"),
        ("[::1]:5000/x", "[::1]:5000/x:latest"),
        ("[fe80::1]/x", "[fe80::1]/x:latest"),
        ("x:1/y", "x:1/y:latest"),
        ("x.io/a-b.c__d/e--f", "x.io/a-b.c__d/e--f:latest"),
        ("a__b---c.d_e", "docker.io/library/a__b---c.d_e:latest"),
        ("x:_", "docker.io/library/x:_"),
    ] {
        let source: ImageSource = text.parse().unwrap_or_else(|e| panic!("{e}"));
        assert!(matches!(source, ImageSource::Registry(_)), "{text}");
        assert_eq!(source.to_string(), full, "{text}");
    }
}

#[test]
fn a_digest_decides_and_a_tag_beside_it_is_kept() {
    let digest = format!("sha256:{HEX}");
    let only: RegistryReference = format!("ghcr.io/x/y@{digest}").parse().unwrap();
    assert_eq!((only.host(), only.repository()), ("ghcr.io", "x/y"));
    assert_eq!((only.tag(), only.digest()), (None, Some(digest.as_str())));
    assert_eq!(only.wanted(), digest);
    let both: RegistryReference = format!("x:1@{digest}").parse().unwrap();
    assert_eq!((both.tag(), both.wanted()), (Some("1"), digest.as_str()));
    let tag: RegistryReference = "x:1".parse().unwrap();
    assert_eq!(tag.wanted(), "1");
}

#[test]
fn layouts_and_archives_are_named_by_their_kind() {
    let tag = |tag: &str| Some(tag.to_owned());
    let oci = |dir: &str, reference| ImageSource::OciLayout {
        dir: dir.into(),
        reference,
    };
    let digest = format!("sha256:{HEX}");
    for (text, expected) in [
        ("oci:images/base", oci("images/base", None)),
        ("oci:images/base:v1.2", oci("images/base", tag("v1.2"))),
        ("oci:/a:b/c", oci("/a:b/c", None)),
        ("oci:/a:b/c:d", oci("/a:b/c", tag("d"))),
        ("oci:/a:b/", oci("/a:b", None)),
        ("oci:d@x:tag", oci("d@x", tag("tag"))),
        (&format!("oci:./d@{digest}"), oci("./d", tag(&digest))),
        (
            "oci-archive:a.tar:x",
            ImageSource::OciArchive {
                path: "a.tar".into(),
                reference: tag("x"),
            },
        ),
        (
            "docker-archive:/a.tar",
            ImageSource::DockerArchive {
                path: "/a.tar".into(),
                reference: None,
            },
        ),
        (
            "docker-archive:a.tar:localhost:5000/x:1",
            ImageSource::DockerArchive {
                path: "a.tar".into(),
                reference: Some("localhost:5000/x:1".parse().unwrap()),
            },
        ),
        ("-", ImageSource::Stdin),
    ] {
        assert_eq!(text.parse(), Ok(expected), "{text}");
    }
}

#[test]
fn what_is_no_reference_is_told_why() {
    type P = ReferenceProblem;
    let long_tag = "t".repeat(129);
    let long_name = format!("example.test/{}", "n".repeat(243));
    let component = |c: &str| P::Component {
        component: c.to_owned(),
    };
    let tag = |tag: &str| P::Tag {
        tag: tag.to_owned(),
    };
    let host = |host: &str| P::Host {
        host: host.to_owned(),
    };
    let digest = |digest: &str| P::Digest {
        digest: digest.to_owned(),
    };
    let cases: Vec<(&str, P)> = vec![
        ("", P::Empty),
        ("docker://", P::Empty),
        ("Debian", P::UpperCase { found: 'D' }),
        ("x/Y:1", P::UpperCase { found: 'Y' }),
        ("x:", tag("")),
        ("x:.1", tag(".1")),
        ("x:-1", tag("-1")),
        ("x:a b", tag("a b")),
        ("x:\u{e9}", tag("\u{e9}")),
        ("x:1\n", tag("1\n")),
        ("-x", component("-x")),
        ("_x", component("_x")),
        ("x-", component("x-")),
        ("x..y", component("x..y")),
        ("x___y", component("x___y")),
        ("x._y", component("x._y")),
        ("x-_y", component("x-_y")),
        ("x//y", component("")),
        ("x/", component("")),
        ("x/../y", component("..")),
        ("a b", component("a b")),
        ("localhost:5000/", component("")),
        ("x%2f", component("x%2f")),
        ("ex_ample.test/x", host("ex_ample.test")),
        ("-a.test/x", host("-a.test")),
        ("a..test/x", host("a..test")),
        ("a.test:/x", host("a.test:")),
        ("a.test:99999/x", host("a.test:99999")),
        ("a.test:0/x", host("a.test:0")),
        ("a.test:+5/x", host("a.test:+5")),
        ("[::g]/x", host("[::g]")),
        ("[::1]5/x", host("[::1]5")),
        ("http://a.test/x", host("http:")),
        ("user@a.test/x", digest("a.test/x")),
        ("x@sha256:00", digest("sha256:00")),
        ("x@sha512:00", digest("sha512:00")),
        ("x@", digest("")),
        (HEX, P::ImageId),
        (&long_name, P::NameTooLong),
        ("oci:", P::Place { form: "oci:DIR" }),
        ("oci::x", P::Place { form: "oci:DIR" }),
        ("oci:dir:", tag("")),
        ("oci:dir:a b", tag("a b")),
        ("oci:dir:a@b", tag("a@b")),
        ("oci:dir@sha256:00", digest("sha256:00")),
        (
            "oci-archive:",
            P::Place {
                form: "oci-archive:FILE",
            },
        ),
        (
            "docker-archive:",
            P::Place {
                form: "docker-archive:FILE",
            },
        ),
        ("docker-archive:f:", P::Empty),
        (
            "docker-daemon:x:1",
            P::Transport {
                transport: "docker-daemon",
            },
        ),
        ("dir:/x", P::Transport { transport: "dir" }),
    ];
    for (text, expected) in cases {
        assert_eq!(problem(text), expected, "{text:?}");
    }
    assert_eq!(problem(&format!("x:{long_tag}")), tag(&long_tag));
    let archived = format!("docker-archive:f:x@sha256:{HEX}");
    assert_eq!(problem(&archived), P::ArchiveDigest);
    let upper = format!("x@sha256:{}", HEX.to_uppercase());
    assert!(matches!(problem(&upper), P::Digest { .. }));
    // The longest that is allowed.
    format!("x:{}", &long_tag[1..])
        .parse::<ImageSource>()
        .unwrap();
    long_name[..long_name.len() - 1]
        .parse::<ImageSource>()
        .unwrap();
}

#[test]
fn a_path_is_never_guessed_and_the_error_says_what_to_write() {
    for path in ["./dir", "../dir", "/dir", ".", "~/dir", "./dir:tag"] {
        let error = path.parse::<ImageSource>().unwrap_err().to_string();
        assert!(error.contains(&format!("write `oci:{path}`")), "{error}");
    }
}

prop_compose! {
    fn registry()(
        host in prop_oneof![
            Just(String::new()),
            "[a-z]{1,5}(\\.[a-z0-9]{1,5}){1,2}/".prop_map(|host| host),
            "(localhost|\\[::1\\]|[a-z]{3}):[1-9][0-9]{0,3}/".prop_map(|host| host),
        ],
        // A dot in the first part would make it a host.
        path in "[a-z0-9]{1,4}((_|__|-{1,3})[a-z0-9]{1,3}){0,2}(/[a-z0-9]{1,3}(\\.[a-z]{1,2})?){0,2}",
        tag in prop_oneof![Just(String::new()), ":[A-Za-z0-9_][A-Za-z0-9_.-]{0,10}".boxed()],
        digest in prop_oneof![Just(String::new()), "@sha256:[0-9a-f]{64}".boxed()],
    ) -> String {
        format!("{host}{path}{tag}{digest}")
    }
}

fn written() -> impl Strategy<Value = String> {
    prop_oneof![
        registry(),
        registry().prop_map(|text| format!("docker://{text}")),
        "oci:[a-z/.:@]{1,12}(:[a-z0-9._-]{1,8})?",
        "oci:[a-z/.]{1,12}@sha256:[0-9a-f]{64}",
        "oci-archive:[a-z/.:]{1,12}",
        ("docker-archive:[a-z/.]{1,12}", registry()).prop_map(|(a, b)| format!("{a}:{b}")),
        "\\PC{0,20}",
        ".{0,40}",
    ]
}

proptest! {
    #[test]
    fn what_is_accepted_reads_back_as_the_same(text in written()) {
        if let Ok(source) = text.parse::<ImageSource>() {
            let printed = source.to_string();
            prop_assert_eq!(printed.parse::<ImageSource>(), Ok(source), "{}", printed);
        }
    }

    #[test]
    fn a_well_formed_reference_is_accepted(text in registry()) {
        prop_assert!(text.parse::<RegistryReference>().is_ok(), "{}", text);
    }

    #[test]
    fn what_is_accepted_is_harmless_in_a_url(text in ".{0,60}") {
        if let Ok(reference) = text.parse::<RegistryReference>() {
            let harmless = |c: char| c.is_ascii_graphic() && !"?#%\\\"<>{}|^`@".contains(c);
            let target = format!("{}{}", reference.repository(), reference.wanted());
            prop_assert!(target.chars().all(harmless));
            prop_assert!(reference.repository().split('/').all(|part| !part.starts_with('.')));
        }
    }
}
