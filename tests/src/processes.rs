//! What `/proc` says of processes, for tests that ask what is left of a bottle.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// A process, told from a later one with the same number by its start time.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its parent's.
    pub parent: i32,
    /// When it started, in clock ticks since boot.
    started: u64,
    /// `R`, `S`, … as in `/proc/PID/stat`.
    state: char,
    /// Its numbers from our namespace inwards; more than one if it lives in a namespace below.
    pub numbers: Vec<i32>,
    /// Its command line, words joined by spaces.
    pub command: String,
}

impl Process {
    /// Returns the process of this number, unless there is none.
    pub fn find(pid: i32) -> Option<Self> {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let stat = fs::read_to_string(dir.join("stat")).ok()?;
        // The second field is in parentheses and may hold anything.
        let mut fields = stat.rsplit_once(") ")?.1.split(' ');
        let state = fields.next()?.chars().next()?;
        let parent = fields.next()?.parse().ok()?;
        let started = fields.nth(17)?.parse().ok()?;
        let status = fs::read_to_string(dir.join("status")).ok()?;
        let numbers = status
            .lines()
            .find_map(|line| line.strip_prefix("NSpid:"))?;
        let numbers = numbers
            .split_whitespace()
            .filter_map(|text| text.parse().ok())
            .collect();
        let command = fs::read(dir.join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        Some(Self {
            pid,
            parent,
            started,
            state,
            numbers,
            command,
        })
    }

    /// Lists all processes.
    ///
    /// # Errors
    ///
    /// If there is no `/proc`.
    pub fn all() -> Result<Vec<Self>> {
        let entries = fs::read_dir("/proc").context("cannot read /proc")?;
        let pids = entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Ok(pids.filter_map(Self::find).collect())
    }

    /// Lists the descendants of a process, itself first.
    ///
    /// # Errors
    ///
    /// As [`Self::all`].
    pub fn tree(root: i32) -> Result<Vec<Self>> {
        let all = Self::all()?;
        let mut tree: Vec<Self> = all.iter().filter(|one| one.pid == root).cloned().collect();
        let mut next = 0;
        while let Some(parent) = tree.get(next).map(|one| one.pid) {
            tree.extend(all.iter().filter(|one| one.parent == parent).cloned());
            next += 1;
        }
        Ok(tree)
    }

    /// Says whether it still runs: neither gone nor a zombie.
    pub fn lives(&self) -> bool {
        Self::find(self.pid).is_some_and(|now| now.started == self.started && now.state != 'Z')
    }

    /// Lists the namespaces it lives in that this process does not, as `net:[4026531840]`.
    pub fn own_namespaces(&self) -> BTreeSet<String> {
        let ours = namespaces("self");
        namespaces(&self.pid.to_string())
            .difference(&ours)
            .cloned()
            .collect()
    }
}

/// Lists the namespaces in which some process lives.
///
/// # Errors
///
/// If there is no `/proc`.
pub fn all_namespaces() -> Result<BTreeSet<String>> {
    let all = Process::all()?;
    Ok(all
        .iter()
        .flat_map(|one| namespaces(&one.pid.to_string()))
        .collect())
}

fn namespaces(of: &str) -> BTreeSet<String> {
    let links = fs::read_dir(format!("/proc/{of}/ns"));
    let targets = links.into_iter().flatten().flatten().filter_map(|link| {
        let target = fs::read_link(link.path()).ok()?;
        Some(target.to_string_lossy().into_owned())
    });
    targets.collect()
}
