//! What would let this user open `/dev/kvm`, by what the file's owner, group and mode are. Advice that cannot help
//! sends people looking in the wrong place.

use std::os::unix::fs::MetadataExt;

use nix::unistd::{Gid, Group, User, getegid, geteuid, getgroups};

use super::KVM_PATH;

/// Who may open the file.
#[derive(Debug, Clone, Copy)]
struct Access {
    mode: u32,
    owner: u32,
    group: u32,
}

/// Who wants to.
#[derive(Debug)]
struct Wanting {
    user: u32,
    groups: Vec<u32>,
    /// Whether the group's list has the user, who then only has to log in anew.
    is_listed: bool,
}

const READ_WRITE: u32 = 6;

pub(super) fn advice() -> String {
    let Ok(file) = std::fs::metadata(KVM_PATH) else {
        return "its directory cannot be searched; run as root".into();
    };
    let access = Access {
        mode: file.mode() & 0o777,
        owner: file.uid(),
        group: file.gid(),
    };
    let group = Group::from_gid(Gid::from_raw(access.group)).ok().flatten();
    let user = User::from_uid(geteuid()).ok().flatten();
    let groups = getgroups()
        .unwrap_or_default()
        .into_iter()
        .chain([getegid()]);
    let wanting = Wanting {
        user: geteuid().as_raw(),
        groups: groups.map(Gid::as_raw).collect(),
        is_listed: match (&group, &user) {
            (Some(group), Some(user)) => group.mem.contains(&user.name),
            _ => false,
        },
    };
    let name = group.map_or_else(|| access.group.to_string(), |group| group.name);
    advice_for(access, &name, &wanting)
}

fn advice_for(access: Access, group: &str, wanting: &Wanting) -> String {
    let allows = |bits: u32| bits & READ_WRITE == READ_WRITE;
    let (mode, is_member) = (access.mode, wanting.groups.contains(&access.group));
    let is_allowed = match () {
        () if wanting.user == 0 => true,
        () if wanting.user == access.owner => allows(mode >> 6),
        () if is_member => allows(mode >> 3),
        () => allows(mode),
    };
    // Whoever is in root's group may do more than use KVM.
    let group_helps = allows(mode >> 3) && access.group != 0 && !is_member;
    if is_allowed {
        "its mode allows it, so something else does not: the rules for devices of a container or a service, or a \
         security module; allow this process the device there"
            .into()
    } else if group_helps && wanting.is_listed {
        format!("this user is in the group {group} since the last login only; log in again")
    } else if group_helps {
        format!(
            "add this user to the group that owns it (`usermod -aG {group} $USER`, then log in again) or run as root"
        )
    } else {
        format!(
            "its mode {mode:o} lets no group of users have it; as root, give it to one \
             (`chgrp kvm {KVM_PATH}; chmod 660 {KVM_PATH}`, and by a udev rule for the next boot), or run as root"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_is_what_helps() {
        let wanting = |groups: &[u32], is_listed| Wanting {
            user: 1000,
            groups: groups.to_vec(),
            is_listed,
        };
        let file = |mode, group| Access {
            mode,
            owner: 0,
            group,
        };
        for (access, wanting, words) in [
            (file(0o660, 36), wanting(&[1000], false), "usermod -aG kvm"),
            (file(0o660, 36), wanting(&[1000], true), "log in again"),
            (file(0o600, 36), wanting(&[36], false), "chmod 660"),
            (file(0o600, 0), wanting(&[1000], false), "chgrp kvm"),
            (file(0o660, 0), wanting(&[1000], false), "chgrp kvm"),
            (file(0o660, 36), wanting(&[36], true), "container"),
            (file(0o666, 0), wanting(&[1000], false), "container"),
        ] {
            let text = advice_for(access, "kvm", &wanting);
            assert!(text.contains(words), "{access:?} {wanting:?}: {text}");
            let is_usermod = words.starts_with("usermod");
            assert_eq!(
                text.contains("usermod"),
                is_usermod,
                "{access:?} {wanting:?}: {text}"
            );
        }
        let root = Wanting {
            user: 0,
            ..wanting(&[0], false)
        };
        assert!(advice_for(file(0o600, 0), "root", &root).contains("container"));
    }
}
