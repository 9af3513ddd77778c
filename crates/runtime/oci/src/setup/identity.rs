//! Who a process runs as: numbers as given, names from the container's own files.

use std::os::fd::BorrowedFd;
use std::path::Path;

use super::paths::read_small;
use crate::error::{Error, Result};
use crate::spec::User;

/// Larger files of users or groups are not read.
const MAX_FILE: u64 = 4 << 20;

#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups, without duplicates.
    pub groups: Vec<u32>,
    pub home: String,
}

/// Looks a user up in the root's `/etc/passwd` and `/etc/group`.
pub fn resolve(root: BorrowedFd<'_>, user: &User) -> Result<Identity> {
    let read = |path: &str| read_small(root, Path::new(path), MAX_FILE).unwrap_or_default();
    resolve_in(&read("/etc/passwd"), &read("/etc/group"), user)
}

struct Entry<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

fn users(passwd: &str) -> impl Iterator<Item = Entry<'_>> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, uid, gid) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let home = fields.nth(1).unwrap_or("/");
        Some(Entry { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    })
}

/// Name, number and members.
fn groups(group: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    group.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, _, gid) = (fields.next()?, fields.next()?, fields.next()?);
        Some((name, gid.parse().ok()?, fields.next().unwrap_or_default()))
    })
}

fn resolve_in(passwd: &str, group: &str, user: &User) -> Result<Identity> {
    let (name, group_name) = match user.name.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (user.name.as_str(), None),
    };
    let number: Option<u32> = user.uid.or_else(|| if name.is_empty() { Some(0) } else { name.parse().ok() });
    let entry = match number {
        Some(uid) => users(passwd).find(|entry| entry.uid == uid),
        None => users(passwd).find(|entry| entry.name == name),
    };
    let Some(uid) = number.or(entry.as_ref().map(|entry| entry.uid)) else {
        return Err(Error::CannotRun(format!("unable to find user {name}: no matching entries in passwd file")));
    };
    let named_group = match group_name.filter(|name| !name.is_empty()) {
        Some(text) => match text.parse().ok().or_else(|| groups(group).find(|g| g.0 == text).map(|g| g.1)) {
            Some(gid) => Some(gid),
            None => {
                let message = format!("unable to find group {text}: no matching entries in group file");
                return Err(Error::CannotRun(message));
            }
        },
        None => None,
    };
    let gid = user.gid.or(named_group).or(entry.as_ref().map(|entry| entry.gid)).unwrap_or(0);
    let mut all = user.additional_gids.clone();
    if let Some(entry) = entry.as_ref().filter(|_| !user.only_given_groups) {
        all.extend(groups(group).filter(|g| g.2.split(',').any(|member| member == entry.name)).map(|g| g.1));
    }
    if user.keeps_group {
        all.push(gid);
    }
    all.sort_unstable();
    all.dedup();
    let home = entry.map_or("/", |entry| entry.home).to_owned();
    Ok(Identity { uid, gid, groups: all, home })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nweb:x:33:33:www:/var/www:/bin/false\n";
    const GROUP: &str = "root:x:0:\nweb:x:33:\nlogs:x:40:web,other\n";

    fn user(name: &str) -> User {
        User { name: name.into(), ..User::default() }
    }

    #[test]
    fn names_and_numbers() {
        let of = |user: &User| resolve_in(PASSWD, GROUP, user).map(|i| (i.uid, i.gid, i.groups, i.home));
        assert_eq!(of(&user("")).unwrap(), (0, 0, vec![], "/root".into()));
        assert_eq!(of(&user("web")).unwrap(), (33, 33, vec![40], "/var/www".into()));
        assert_eq!(of(&user("33:logs")).unwrap(), (33, 40, vec![40], "/var/www".into()));
        assert_eq!(of(&user("1000")).unwrap(), (1000, 0, vec![], "/".into()));
        let given =
            User { uid: Some(5), gid: Some(6), additional_gids: vec![9, 8, 9], name: "web".into(), ..User::default() };
        assert_eq!(of(&given).unwrap(), (5, 6, vec![8, 9], "/".into()));
        let kept = User { keeps_group: true, ..user("web") };
        assert_eq!(of(&kept).unwrap(), (33, 33, vec![33, 40], "/var/www".into()));
        let strict = User { only_given_groups: true, ..user("web") };
        assert_eq!(of(&strict).unwrap(), (33, 33, vec![], "/var/www".into()));
        assert!(of(&user("nobody")).unwrap_err().to_string().contains("unable to find user nobody"));
        assert!(of(&user("web:none")).is_err());
    }
}
