//! The variables of a process: pure functions.

use super::users::Identity;

/// Where programs are looked for if nothing else is said.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a terminal is taken for if nothing else is said.
const TERM: &str = "xterm";

/// Adds variables that are not set yet.
pub(crate) fn with_defaults(
    env: &[(String, String)],
    defaults: &[(&str, String)],
) -> Vec<(String, String)> {
    let mut env = env.to_vec();
    for (name, value) in defaults {
        if !env.iter().any(|(set, _)| set == name) {
            env.push(((*name).to_owned(), value.clone()));
        }
    }
    env
}

/// The bottle's variables, then the process's own; what both leave open comes from the user's
/// entry, and for a process on a terminal there is a kind of it. Later values win, each name
/// stands once.
pub(crate) fn of_process(
    bottle: &[(String, String)],
    own: &[(String, String)],
    user: &Identity,
    on_terminal: bool,
) -> Vec<(String, String)> {
    let mut env: Vec<(String, String)> = Vec::new();
    for (name, value) in bottle.iter().chain(own) {
        match env.iter_mut().find(|(set, _)| set == name) {
            Some((_, old)) => old.clone_from(value),
            None => env.push((name.clone(), value.clone())),
        }
    }
    let user = [
        ("PATH", PATH.to_owned()),
        ("HOME", user.home.clone()),
        ("USER", user.name.clone()),
        ("LOGNAME", user.name.clone()),
    ];
    let env = with_defaults(&env, &user);
    if on_terminal {
        with_defaults(&env, &[("TERM", TERM.to_owned())])
    } else {
        env
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_values_win_and_gaps_are_filled() {
        let pairs = |list: &[(&str, &str)]| -> Vec<(String, String)> {
            list.iter()
                .map(|(a, b)| ((*a).to_owned(), (*b).to_owned()))
                .collect()
        };
        let user = Identity {
            uid: 1000,
            gid: 1000,
            groups: vec![1000],
            name: "agent".into(),
            home: "/home/agent".into(),
        };
        let bottle = pairs(&[("A", "1"), ("HOME", "/h"), ("B", "2")]);
        let own = pairs(&[("A", "3"), ("C", "")]);
        let mut expected = pairs(&[
            ("A", "3"),
            ("HOME", "/h"),
            ("B", "2"),
            ("C", ""),
            ("PATH", PATH),
            ("USER", "agent"),
            ("LOGNAME", "agent"),
        ]);
        assert_eq!(of_process(&bottle, &own, &user, false), expected);
        expected.extend(pairs(&[("TERM", "xterm")]));
        assert_eq!(of_process(&bottle, &own, &user, true), expected);
        let bottle = pairs(&[("TERM", "dumb")]);
        let env = of_process(&bottle, &[], &user, true);
        assert!(env.contains(&("TERM".to_owned(), "dumb".to_owned())));
    }
}
