//! Names of users and groups, as the host knows them. A look-up may ask a directory service, so it never
//! happens on a thread that serves requests.

use std::collections::{BTreeSet, HashMap};

use nix::unistd::{Gid, Group, Uid, User};

/// Names by number; a number without a name stands for itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    users: HashMap<u32, String>,
    groups: HashMap<u32, String>,
}

impl Names {
    /// The names of these users and groups.
    pub async fn of(users: BTreeSet<u32>, groups: BTreeSet<u32>) -> Self {
        if users.is_empty() && groups.is_empty() {
            return Self::default();
        }
        let look_up = move || Self {
            users: users.into_iter().filter_map(|id| Some((id, user_name(id)?))).collect(),
            groups: groups.into_iter().filter_map(|id| Some((id, group_name(id)?))).collect(),
        };
        tokio::task::spawn_blocking(look_up).await.unwrap_or_default()
    }

    pub fn user(&self, id: u32) -> String {
        self.users.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }

    pub fn group(&self, id: u32) -> String {
        self.groups.get(&id).cloned().unwrap_or_else(|| id.to_string())
    }
}

fn user_name(id: u32) -> Option<String> {
    User::from_uid(Uid::from_raw(id)).ok().flatten().map(|user| user.name)
}

fn group_name(id: u32) -> Option<String> {
    Group::from_gid(Gid::from_raw(id)).ok().flatten().map(|group| group.name)
}

/// The number of a user, by name.
pub fn user_id(name: &str) -> Option<u32> {
    User::from_name(name).ok().flatten().map(|user| user.uid.as_raw())
}

/// The number of a group, by name.
pub fn group_id(name: &str) -> Option<u32> {
    Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn root_has_a_name_and_a_number_nobody_has_stands_for_itself() {
        let names = Names::of([0, 3_999_999_999].into(), [0].into()).await;
        assert_eq!((names.user(0), names.group(0)), ("root".to_owned(), "root".to_owned()));
        assert_eq!(names.user(3_999_999_999), "3999999999");
        assert_eq!((user_id("root"), group_id("root")), (Some(0), Some(0)));
        assert_eq!(user_id("no such user"), None);
    }
}
