//! Whether somebody has put a queue on an interface that shapes: what leaves in a driver passes it by.

use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcAttribute, TcMessage},
};

use super::{KernelError, rtnl::Rtnl};

/// Queues that interfaces have by themselves, and hooks that are no queues.
const PLAIN: [&str; 9] =
    ["noqueue", "mq", "mqprio", "pfifo_fast", "fq_codel", "fq", "pfifo", "clsact", "ingress"];

/// The kind of a queue that is there on purpose: `htb`.
pub(super) fn shaper(index: u32) -> Result<Option<String>, KernelError> {
    let operation = "look at the queues of an interface";
    let request = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let found = Rtnl::open()?.dump(operation, &request)?;
    let kinds = found.into_iter().filter_map(|answer| match answer {
        RouteNetlinkMessage::NewQueueDiscipline(queue) if queue.header.index == index.cast_signed() => {
            queue.attributes.into_iter().find_map(|attribute| match attribute {
                TcAttribute::Kind(kind) => Some(kind),
                _ => None,
            })
        }
        _ => None,
    });
    Ok(first_shaper(kinds))
}

fn first_shaper(mut kinds: impl Iterator<Item = String>) -> Option<String> {
    kinds.find(|kind| !PLAIN.contains(&kind.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_interfaces_have_by_themselves_does_not_shape() {
        let first = |kinds: &[&str]| first_shaper(kinds.iter().map(|kind| (*kind).to_owned()));
        assert_eq!(first(&["mq", "fq_codel", "clsact"]), None);
        assert_eq!(first(&["mq", "htb", "fq_codel"]).as_deref(), Some("htb"));
    }

    #[test]
    fn loopback_is_not_shaped() {
        assert_eq!(shaper(1).unwrap(), None);
    }
}
