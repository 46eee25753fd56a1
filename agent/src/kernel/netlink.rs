//! The kernel over rtnetlink.
