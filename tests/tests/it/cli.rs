//! The `bottle` command, as a person uses it.

use std::fs;

use anyhow::ensure;
use bottle_core::backend::ExitStatus;
use bottle_tests::cli::run;
use bottle_tests::frame::on_host;
use bottle_tests::upstream::Upstream;

#[test]
fn the_workload_has_standard_output_for_itself() {
    on_host(async |host| {
        let upstream = Upstream::start(&["allowed.test"]).await?;
        let mut args = host.start_args("cli-out");
        args.extend(host.allow_args(&upstream)?);
        args.extend(["--env", "GREETING=hello", "--"].map(str::to_owned));
        let script = "echo $GREETING; id -u; curl -sS https://allowed.test/cli; echo oops >&2; cat";
        args.extend(["sh", "-c", script].map(str::to_owned));
        let output = run(host.bottle(&args), b"from the terminal\n").await?;
        let stdout = "hello\n1000\nhello from the upstream\nfrom the terminal\n";
        assert_eq!(String::from_utf8_lossy(&output.stdout), stdout, "{output}");
        assert_eq!(output.status, ExitStatus::Exited(0), "{output}");
        ensure!(
            String::from_utf8_lossy(&output.stderr).contains("oops"),
            "{output}"
        );
        assert_eq!(upstream.seen("/cli").len(), 1);
        let left = host.leftovers()?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    });
}

#[test]
fn the_status_of_the_workload_is_the_commands() {
    on_host(async |host| {
        let cases: [(&str, &[&str], u8); 3] = [
            (
                "cli-7",
                &[
                    "--user",
                    "root",
                    "--",
                    "sh",
                    "-c",
                    "[ $(id -u) = 0 ] && exit 7",
                ],
                7,
            ),
            ("cli-127", &["--", "no-such-program"], 127),
            ("cli-137", &["--", "sh", "-c", "kill -KILL $$"], 137),
        ];
        for (name, rest, code) in cases {
            let mut args = host.start_args(name);
            args.extend(rest.iter().map(|word| (*word).to_owned()));
            let output = run(host.bottle(&args), b"").await?;
            assert_eq!(output.status, ExitStatus::Exited(code), "{output}");
        }
        Ok(())
    });
}

#[test]
fn a_dry_run_creates_nothing() {
    on_host(async |host| {
        let upstream = Upstream::start(&["allowed.test"]).await?;
        let mut args = host.start_args("cli-dry");
        args.extend(host.allow_args(&upstream)?);
        args.extend(["--dry-run", "--", "true"].map(str::to_owned));
        let before: Vec<_> = fs::read_dir(&host.dir)?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        let output = run(host.bottle(&args), b"").await?;
        let told = format!(
            "{}{}",
            output.text(),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.status, ExitStatus::Exited(0), "{output}");
        ensure!(
            told.contains("allowed.test") && told.contains("sha256:"),
            "{output}"
        );
        let after: Vec<_> = fs::read_dir(&host.dir)?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        assert_eq!(before, after);
        ensure!(host.leftovers()?.is_empty(), "{:?}", host.leftovers());
        assert_eq!(upstream.connections(), 0);
        Ok(())
    });
}

#[test]
fn the_doctor_finds_this_host_fit() {
    on_host(async |host| {
        let output = run(host.bottle(["doctor"]), b"").await?;
        let told = format!(
            "{}{}",
            output.text(),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.status, ExitStatus::Exited(0), "{output}");
        ensure!(told.contains("kvm"), "{output}");
        Ok(())
    });
}
