//! Users and groups by the image's own files. A static program has no name service; and the image
//! is hostile, so the parsers are total and skip what they don't understand.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use nix::libc;

use crate::error::{InitError, failed};

/// Bytes of a user database that are read.
const MAX_FILE: u64 = 4 << 20;

/// Groups that a process is put into; the kernel takes 65536.
const MAX_GROUPS: usize = 1024;

/// Whom a process runs as.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Supplementary groups, the primary one among them.
    pub(crate) groups: Vec<u32>,
    pub(crate) name: String,
    pub(crate) home: String,
}

/// Resolves `USER[:GROUP]` (names or numbers, empty is root) by `/etc/passwd` and `/etc/group`.
pub(crate) fn resolve(user: &str) -> Result<Identity, InitError> {
    resolve_in(user, &read("/etc/passwd")?, &read("/etc/group")?)
}

fn read(path: &'static str) -> Result<String, InitError> {
    let file = match File::options()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW)
        .open(path)
    {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(failed("open", path)(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE)
        .read_to_end(&mut bytes)
        .map_err(failed("read", path))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// As container engines do: an unknown number is taken as it is, an unknown name is an error; a
/// group that is named replaces all others.
fn resolve_in(spec: &str, passwd: &str, group: &str) -> Result<Identity, InitError> {
    let (user, named_group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    let user = if user.is_empty() { "0" } else { user };
    let entry = users(passwd)
        .find(|entry| entry.name == user)
        .or_else(|| users(passwd).find(|entry| Some(entry.uid) == id(user)));
    let mut identity = match (entry, id(user)) {
        (Some(entry), _) => Identity {
            uid: entry.uid,
            gid: entry.gid,
            groups: Vec::new(),
            name: entry.name.to_owned(),
            home: entry.home.to_owned(),
        },
        (None, Some(uid)) => Identity {
            uid,
            gid: 0,
            groups: Vec::new(),
            name: if uid == 0 {
                "root".to_owned()
            } else {
                user.to_owned()
            },
            home: if uid == 0 {
                "/root".to_owned()
            } else {
                "/".to_owned()
            },
        },
        (None, None) => {
            return Err(InitError::Unknown {
                kind: "user",
                name: user.to_owned(),
            });
        }
    };
    match named_group {
        Some(named) => {
            identity.gid = groups(group)
                .find(|entry| entry.name == named)
                .map(|entry| entry.gid)
                .or_else(|| id(named))
                .ok_or_else(|| InitError::Unknown {
                    kind: "group",
                    name: named.to_owned(),
                })?;
            identity.groups.push(identity.gid);
        }
        None => {
            identity.groups.push(identity.gid);
            for entry in groups(group) {
                let member = entry
                    .members
                    .split(',')
                    .any(|member| member == identity.name);
                if member && !identity.groups.contains(&entry.gid) {
                    identity.groups.push(entry.gid);
                }
                if identity.groups.len() == MAX_GROUPS {
                    break;
                }
            }
        }
    }
    Ok(identity)
}

struct User<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// `name:password:uid:gid:comment:home:shell`
fn users(passwd: &str) -> impl Iterator<Item = User<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let uid = id(fields.nth(1)?)?;
        let gid = id(fields.next()?)?;
        let home = fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/");
        Some(User {
            name,
            uid,
            gid,
            home,
        })
    })
}

/// `name:password:gid:member,member`
fn groups(group: &str) -> impl Iterator<Item = Group<'_>> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = id(fields.nth(1)?)?;
        Some(Group {
            name,
            gid,
            members: fields.next().unwrap_or_default().trim_end(),
        })
    })
}

/// A number that can be a user's or a group's: digits, and not the one that means "unchanged".
fn id(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|id| digits && *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\n\
        # comment\n::7:7:::\nbroken:x:a:1::/:\nhuge:x:4294967295:0::/:\n\
        agent:x:1000:1001:Agent,,,:/home/agent:/bin/bash\n\
        12:x:77:78::/twelve:\nlast:x:5:6";
    const GROUP: &str = "root:x:0:\nagent:x:1001:\nsudo:x:27:agent,other\nwheel:x:10:other\n\
        docker:x:999:other,agent\nbad:x:y:agent\nsudo2:x:27:agent";

    fn resolved(spec: &str) -> Result<(u32, u32, Vec<u32>, String, String), String> {
        resolve_in(spec, PASSWD, GROUP)
            .map(|i| (i.uid, i.gid, i.groups, i.name, i.home))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn names_numbers_and_groups_are_resolved_as_engines_do() {
        let agent = (
            1000,
            1001,
            vec![1001, 27, 999],
            "agent".into(),
            "/home/agent".into(),
        );
        assert_eq!(resolved("agent"), Ok(agent.clone()));
        assert_eq!(resolved("1000"), Ok(agent));
        let root = (0, 0, vec![0], "root".into(), "/root".into());
        assert_eq!(resolved(""), Ok(root.clone()));
        assert_eq!(resolved(":0"), Ok(root));
        let with_group = |gid| (1000, gid, vec![gid], "agent".into(), "/home/agent".into());
        assert_eq!(resolved("agent:wheel"), Ok(with_group(10)));
        assert_eq!(resolved("agent:4242"), Ok(with_group(4242)));
        assert_eq!(
            resolved("4000"),
            Ok((4000, 0, vec![0], "4000".into(), "/".into()))
        );
        assert_eq!(
            resolved("12"),
            Ok((77, 78, vec![78], "12".into(), "/twelve".into()))
        );
        assert_eq!(
            resolved("last"),
            Ok((5, 6, vec![6], "last".into(), "/".into()))
        );
    }

    #[test]
    fn unknown_names_and_impossible_numbers_are_refused() {
        assert_eq!(
            resolved("nobody").unwrap_err(),
            "the image has no user `nobody`"
        );
        assert_eq!(
            resolved("broken").unwrap_err(),
            "the image has no user `broken`"
        );
        assert_eq!(
            resolved("huge").unwrap_err(),
            "the image has no user `huge`"
        );
        assert_eq!(
            resolved("4294967295").unwrap_err(),
            "the image has no user `4294967295`"
        );
        assert_eq!(resolved("+1").unwrap_err(), "the image has no user `+1`");
        assert_eq!(resolved("agent:").unwrap_err(), "the image has no group ``");
        assert_eq!(
            resolved("agent:nope").unwrap_err(),
            "the image has no group `nope`"
        );
    }

    proptest! {
        #[test]
        fn hostile_databases_never_panic(spec in ".{0,9}", passwd in "[:,a0\n]{0,60}", group in "[:,a0\n]{0,60}") {
            let _ = resolve_in(&spec, &passwd, &group);
        }
    }
}
