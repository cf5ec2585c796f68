//! The rules, as functions of a text.

use std::path::Path;

/// A module longer than this is two modules.
const MAX_LINES: usize = 800;

/// Phrases that stand where a proof should.
const NO_PROOFS: [&str; 5] = [
    "trivially safe",
    "obviously safe",
    "this is safe",
    "ffi call with correct arguments",
    "see above",
];

/// What a Rust file is; not every rule is for every kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Made by a program.
    Generated,
    /// Anything else.
    Module,
    /// `tests.rs` beside the module that it tests, whose sentence covers it.
    Tests,
}

impl Kind {
    /// Tells by the path.
    pub(super) fn of(file: &Path) -> Self {
        if file.ends_with("ffi/sys.rs") {
            Self::Generated
        } else if file.ends_with("tests.rs") {
            Self::Tests
        } else {
            Self::Module
        }
    }
}

/// Returns what is wrong with a Rust file: the line, from 1, and the rule.
pub(super) fn rust(text: &str, kind: Kind) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    if kind == Kind::Generated {
        return found;
    }
    if kind == Kind::Module
        && !text
            .lines()
            .find(|line| !line.trim().is_empty())
            .is_some_and(|l| l.starts_with("//!"))
    {
        found.push((
            1,
            "a module opens with a `//!` sentence saying what it is for".to_owned(),
        ));
    }
    let count = text.lines().count();
    if count > MAX_LINES {
        found.push((MAX_LINES, format!("{count} lines; split above {MAX_LINES}")));
    }
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let Some((code, comment)) = line.split_once("//") else {
            if is_mod_test(line) {
                found.push((number, "the module of tests is called `tests`".to_owned()));
            }
            continue;
        };
        if is_mod_test(code) {
            found.push((number, "the module of tests is called `tests`".to_owned()));
        }
        if comment.contains(&marker()) && !names_an_issue(comment) {
            found.push((
                number,
                format!("a {} names its issue: `{}(#12)`", marker(), marker()),
            ));
        }
        if let Some((_, proof)) = comment.split_once("SAFETY:") {
            let proof = proof.to_lowercase();
            if let Some(phrase) = NO_PROOFS.iter().find(|phrase| proof.contains(**phrase)) {
                found.push((number, format!("`{phrase}` is no proof")));
            }
        }
    }
    found
}

/// Says whether a member takes its lints from the workspace.
pub(super) fn has_workspace_lints(manifest: &str) -> bool {
    toml::from_str::<toml::Table>(manifest).is_ok_and(|manifest| {
        manifest
            .get("lints")
            .and_then(|lints| lints.get("workspace"))
            == Some(&toml::Value::Boolean(true))
    })
}

fn is_mod_test(line: &str) -> bool {
    let line = line.trim();
    line == "mod test;" || line.starts_with("mod test {")
}

/// The word itself, written so that this file does not break its own rule.
fn marker() -> String {
    ["TO", "DO"].concat()
}

fn names_an_issue(comment: &str) -> bool {
    comment
        .split_once(&format!("{}(#", marker()))
        .is_some_and(|(_, rest)| rest.starts_with(|c: char| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(text: &str, what: &str) {
        let found = rust(text, Kind::Module);
        assert!(
            found.iter().any(|(_, rule)| rule.contains(what)),
            "{found:?}"
        );
    }

    #[test]
    fn a_decent_module_passes() {
        let text = format!(
            "//! Parses.\n// {}(#7): later.\n// SAFETY: ioctl reads one integer; `n` lives on.\n",
            marker()
        );
        assert_eq!(rust(&text, Kind::Module), []);
    }

    #[test]
    fn a_module_without_a_sentence_is_refused() {
        refused("use std::fs;\n", "opens with");
    }

    #[test]
    fn a_module_of_more_than_800_lines_is_refused_unless_generated() {
        let text = format!("//! Long.\n{}", "\n".repeat(800));
        refused(&text, "801 lines");
        assert_eq!(rust(&text, Kind::Generated), []);
    }

    #[test]
    fn an_open_end_without_an_issue_is_refused() {
        refused(
            &format!("//! X.\n// {}: later\n", marker()),
            "names its issue",
        );
        refused(
            &format!("//! X.\n// {}(me): later\n", marker()),
            "names its issue",
        );
    }

    #[test]
    fn a_phrase_is_no_proof() {
        refused(
            &format!("//! X.\n// {}: Trivially safe.\n", "SAFETY"),
            "no proof",
        );
    }

    #[test]
    fn a_module_called_test_is_refused() {
        refused("//! X.\nmod test {\n", "called `tests`");
    }

    #[test]
    fn a_member_with_lints_of_its_own_is_seen() {
        assert!(has_workspace_lints("[lints]\nworkspace = true\n"));
        assert!(!has_workspace_lints(
            "[lints.rust]\nunsafe_code = \"deny\"\n"
        ));
        assert!(!has_workspace_lints("[package]\nname = \"x\"\n"));
    }
}
