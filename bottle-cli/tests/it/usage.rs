//! Command lines that are not understood, and help.

use insta::assert_snapshot;

use crate::bench::Bench;

#[tokio::test]
async fn help_goes_to_standard_output() {
    assert_snapshot!(Bench::new().run(&["--help"]).await, @r"
    status: 0
    ----- stdout
    Run a program in a microVM of its own, with a gateway as its only way out

    Usage: bottle [OPTIONS] <COMMAND>

    Commands:
      start    Start a bottle, run a command in it, and remove it when the command ends
      exec     Run another command in a bottle that runs
      attach   Connect to the main process of a bottle that runs
      list     List bottles [aliases: ls, ps]
      inspect  Say all that is known of a bottle, as JSON
      logs     Print what the main process of a bottle said
      events   Print what happened in a bottle: what it reached, and what was refused
      stop     Stop bottles, giving what runs in them time to end
      kill     Send a signal to the main process of bottles
      wait     Wait until bottles have ended, and print the status of each
      restart  Start a bottle that was kept again, with the disk it had; one that runs is stopped first
      rm       Remove bottles that have ended; their records stay
      image    Get, list, export and remove images
      doctor   Say what this host has, what it lacks, and how to get it
      help     Print this message or the help of the given subcommand(s)

    Options:
          --backend <NAME>  Use this backend [default: krun]
      -v, --verbose         Say more: every stage of a start, and how it ended
      -q, --quiet           Say nothing but errors
      -h, --help            Print help
      -V, --version         Print version

    Exit status:
      start, restart, exec, attach: the process's own; 125 if bottle failed, 126 if the program cannot
      be run, 127 if it was not found, 128+n if signal n ended it. Others: 0, or 1 for failure. All: 2
      for a wrong command line
    ----- stderr
    ");
}

#[tokio::test]
async fn the_help_of_start_names_every_flag() {
    assert_snapshot!(Bench::new().run(&["start", "--help"]).await, @r"
    status: 0
    ----- stdout
    Start a bottle, run a command in it, and remove it when the command ends

    Usage: bottle start [OPTIONS] [IMAGE] [-- <CMD>...]

    Arguments:
      [IMAGE]   Boot this image: of a registry (`debian:12`), a layout (`oci:DIR[:TAG]`), a file
                (`oci-archive:FILE`, `docker-archive:FILE`) or standard input (`-`)
      [CMD]...  Run this command (default: the image's)

    Options:
          --pull <missing|always|never>
              Ask the registry for the image if it is not here, always, or never [default: missing]
          --name <NAME>
              Name the bottle, `a-z`, `0-9` and `-` (default: made up)
      -d, --detach
              Start it in the background and print its id; it is kept when it has ended
      -i, --interactive
              Keep standard input open even if nobody is attached
      -t, --tty
              Give it a terminal; the keys `ctrl-p,ctrl-q` detach from it
          --detach-keys <KEYS>
              Detach when these keys are typed, as `ctrl-],q`
          --keep
              Keep its disk and log when it has ended, so that it can be started again
          --rm
              Remove it when it has ended, even if it was detached
      -l, --label <KEY[=VALUE]>
              Write this on it (can be repeated)
          --timeout <TIME>
              Stop it after this time, as `90s` or `2h`
      -p, --publish <[ADDR:][HOST:]GUEST>
              Let a port of this host lead to a server in it; of this host alone, unless ADDR is named
              (can be repeated)
          --allow <HOST[:PORT]>
              Let it reach this host, or with `*.` all hosts below it, on port 443 or PORT; it can reach
              nothing else (can be repeated)
      -e, --env <NAME[=VALUE]>
              Set a variable, or take it over from here if it is set (can be repeated)
          --secret <env:NAME|file:PATH>
              Refuse requests in which this value stands, in any encoding; it is named here by where it
              is found (can be repeated)
          --env-file <FILE>
              Set the variables of this file, one `NAME[=VALUE]` a line (can be repeated)
      -u, --user <USER[:GROUP]>
              Run as this user of the image (default: the image's)
          --cpus <N>
              Give it this many virtual CPUs (default: 1)
      -m, --memory <SIZE>
              Give it this much memory (default: 1g)
          --disk <SIZE>
              Give it a writable disk of this size, of which only what is used takes up space here
              (default: 20g)
          --ephemeral
              Keep what is written in its memory, and on no disk
          --upstream-ca <FILE>
              Also trust the CA certificates of this PEM file for the hosts it reaches (can be repeated)
          --resolve <HOST:PORT:ADDR[:PORT]>
              Connect to ADDR for this host and port, even if the address is a private one, instead of
              asking DNS (can be repeated)
          --dry-run
              Say what would be done, and do nothing
          --json
              Print the plan as JSON
          --backend <NAME>
              Use this backend [default: krun]
      -v, --verbose
              Say more: every stage of a start, and how it ended
      -q, --quiet
              Say nothing but errors
      -h, --help
              Print help

    Standard input, output and error are the command's. Its status becomes the exit status.
    Control-C goes to the command; a second one within 2 s, or SIGTERM, stops the bottle.
    ----- stderr
    ");
}

#[tokio::test]
async fn nothing_at_all_is_answered_with_the_help() {
    let output = Bench::new().run(&[]).await;
    assert_eq!(output.status.0, 2);
    assert!(output.stdout.is_empty(), "{output}");
    assert!(output.stderr.contains("Usage: bottle"), "{output}");
}

#[tokio::test]
async fn an_unknown_flag_is_answered_with_the_nearest_one() {
    assert_snapshot!(Bench::new().start(&["--alow", "api.test"]).await, @r"
    status: 2
    ----- stdout
    ----- stderr
    error: unexpected argument '--alow' found

      tip: a similar argument exists: '--allow'
      tip: to pass '--alow' as a value, use '-- --alow'

    Usage: bottle start --name <NAME> --allow <HOST[:PORT]> <IMAGE> [-- <CMD>...]

    For more information, try '--help'.
    ");
}

#[tokio::test]
async fn an_unknown_verb_is_answered_with_the_nearest_one() {
    assert_snapshot!(Bench::new().run(&["strat"]).await, @r"
    status: 2
    ----- stdout
    ----- stderr
    error: unrecognized subcommand 'strat'

      tip: some similar subcommands exist: 'restart', 'start'

    Usage: bottle [OPTIONS] <COMMAND>

    For more information, try '--help'.
    ");
}

#[tokio::test]
async fn a_command_without_its_dashes_is_answered_with_them() {
    assert_snapshot!(Bench::new().start(&["true"]).await, @r"
    status: 2
    ----- stdout
    ----- stderr
    error: unexpected argument 'true' found

    Usage: bottle start [OPTIONS] [IMAGE] [-- <CMD>...]

    For more information, try '--help'.
    ");
}

#[tokio::test]
async fn a_rule_that_names_no_host_is_refused() {
    assert_snapshot!(Bench::new().start(&["--allow", "https://api.test/"]).await, @r"
    status: 2
    ----- stdout
    ----- stderr
    error: invalid value 'https://api.test/' for '--allow <HOST[:PORT]>': a rule names a host and no URL (use `api.test`)

    For more information, try '--help'.
    ");
    assert_snapshot!(Bench::new().start(&["--allow", "10.0.0.1"]).await, @r"
    status: 2
    ----- stdout
    ----- stderr
    error: invalid value '10.0.0.1' for '--allow <HOST[:PORT]>': `10.0.0.1` is not a host name: it is an address (a rule names a host)

    For more information, try '--help'.
    ");
    assert_snapshot!(Bench::new().start(&["--allow", "api.test:https"]).await, @r"
    status: 2
    ----- stdout
    ----- stderr
    error: invalid value 'api.test:https' for '--allow <HOST[:PORT]>': `https` is not a port (use 1 to 65535)

    For more information, try '--help'.
    ");
    assert_snapshot!(Bench::new().start(&["--allow", "*.com"]).await, @r"
    status: 2
    ----- stdout
    ----- stderr
    error: invalid value '*.com' for '--allow <HOST[:PORT]>': `*.com` is not a host name: a wildcard needs a suffix of at least two labels

    For more information, try '--help'.
    ");
}

#[tokio::test]
async fn every_other_malformed_value_is_refused_with_what_would_do() {
    for (flag, value, words) in [
        (
            "--env",
            "=x",
            "a variable is set by `NAME=VALUE`, or taken over by `NAME`",
        ),
        (
            "--disk",
            "2",
            "a size needs the unit `m` (MiB) or `g` (GiB)",
        ),
        ("--name", "../web", "'.' is not allowed in a name"),
        ("--resolve", "api.test:443", "is not `HOST:PORT:ADDR`"),
        (
            "--secret",
            "hunter2",
            "name where the value is found: `env:NAME` or `file:PATH`",
        ),
        ("--user", "a b", "is not `USER` or `USER:GROUP`"),
        ("--cpus", "0", "a whole number from 1 to 255"),
        (
            "--memory",
            "512",
            "a size needs the unit `m` (MiB) or `g` (GiB)",
        ),
        ("--memory", "lots", "a size is a whole number and a unit"),
    ] {
        let argument = format!("{flag}={value}");
        let output = Bench::new()
            .run(&["--backend", "fake", "start", &argument])
            .await;
        assert_eq!(output.status.0, 2, "{output}");
        assert!(output.stderr.contains(words), "{argument}\n{output}");
        assert!(output.stderr.contains(flag), "{argument}\n{output}");
    }
}

#[tokio::test]
async fn flags_that_contradict_each_other_are_refused() {
    let output = Bench::new().start(&["-q", "-v", "--", "true"]).await;
    assert_eq!(output.status.0, 2, "{output}");
    let output = Bench::new().start(&["--json", "--", "true"]).await;
    assert_eq!(output.status.0, 2, "{output}");
    assert!(output.stderr.contains("--dry-run"), "{output}");
}

#[tokio::test]
async fn the_help_of_export_says_what_the_archive_is() {
    assert_snapshot!(Bench::new().run(&["image", "export", "--help"]).await, @r"
    status: 0
    ----- stdout
    Write an image that is here to a file, as an OCI archive

    Usage: bottle image export [OPTIONS] <IMAGE>

    Arguments:
      <IMAGE>  The image

    Options:
      -o, --output <FILE>   Write to this file, or with `-` to standard output; a file is replaced once
                            all is written [default: -]
          --backend <NAME>  Use this backend [default: krun]
      -v, --verbose         Say more: every stage of a start, and how it ended
      -q, --quiet           Say nothing but errors
      -h, --help            Print help

    `docker load`, `podman load`, `skopeo copy oci-archive:FILE …` and `bottle image import` read the
    archive. The store keeps what layers hold, not the files they came as: layers are written anew and
    uncompressed, with the same contents under other digests.
    ----- stderr
    ");
}
