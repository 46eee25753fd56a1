//! Names of links and of network namespaces.

use serde::{Deserialize, Serialize};

/// An interface name that the worker may create: 1 to 15 bytes of `A-Z a-z 0-9 _ . -`,
/// not starting with `-` or `.` (linux: `dev_valid_name`, narrowed so that no name is an option or a path).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct LinkName(String);

/// The name of a network namespace under `/run/netns`, the same alphabet, up to 255 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamespaceName(String);

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("is empty")]
    Empty,
    #[error("has {0} bytes, the most is {1}")]
    TooLong(usize, usize),
    #[error("starts with '{0}'")]
    BadStart(char),
    #[error("contains {0:?}; only A-Z a-z 0-9 _ . - are allowed")]
    BadCharacter(char),
    #[error("is taken: the kernel keeps its settings for every interface under {0:?}")]
    Reserved(String),
}

fn check_name(name: &str, max: usize, reserved: &[&str]) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > max {
        return Err(NameError::TooLong(name.len(), max));
    }
    if let Some(c) = name.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))) {
        return Err(NameError::BadCharacter(c));
    }
    match name.chars().next() {
        Some(c @ ('-' | '.')) => Err(NameError::BadStart(c)),
        _ if reserved.contains(&name) => Err(NameError::Reserved(name.to_owned())),
        _ => Ok(()),
    }
}

macro_rules! name_type {
    ($name:ident, $max:expr, $reserved:expr) => {
        impl $name {
            /// Longest name in bytes.
            pub const MAX: usize = $max;

            pub fn new(name: impl Into<String>) -> Result<Self, NameError> {
                let name = name.into();
                check_name(&name, Self::MAX, $reserved)?;
                Ok(Self(name))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                self.0 == other
            }
        }
    };
}

// /proc/sys/net/ipv4/conf/all and default: the kernel makes no interface of these names.
name_type!(LinkName, 15, &["all", "default"]); // IFNAMSIZ - 1
name_type!(NamespaceName, 255, &[]); // NAME_MAX
