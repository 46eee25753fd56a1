//! Names that are no text. The kernel takes any bytes for the name of an interface but `/`, `:` and blanks, and any at
//! all for an alias; the library that reads its messages wants UTF-8. One such link of somebody else must not hide all
//! others: here its bytes that are no text become `?`, which no name that the worker gives can have.

use nix::libc;

/// Header of a netlink message, and of the two kinds of messages that have names (linux/rtnetlink.h).
const HEADER: usize = 16;
const LINK: usize = HEADER + 16;
const ADDRESS: usize = HEADER + 8;

// linux/if_link.h and linux/if_addr.h
const IFLA_PROP_LIST: u16 = 52;
const LINK_TEXTS: [u16; 3] = [3, 20, 53]; // IFLA_IFNAME, IFLA_IFALIAS, IFLA_ALT_IFNAME
const ADDRESS_TEXTS: [u16; 1] = [3]; // IFA_LABEL
/// The bits of an attribute's kind that are its kind.
const NLA_TYPE_MASK: u16 = 0x3fff;

/// A copy of the first message in `bytes` whose names are text; `None` where they are so already.
pub(super) fn readable(bytes: &[u8]) -> Option<Vec<u8>> {
    let [a, b, c, d, k0, k1, ..] = *bytes else { return None };
    let mut message = bytes.get(..u32::from_ne_bytes([a, b, c, d]) as usize)?.to_vec();
    let (start, texts): (usize, &[u16]) = match u16::from_ne_bytes([k0, k1]) {
        libc::RTM_NEWLINK => (LINK, &LINK_TEXTS),
        libc::RTM_NEWADDR => (ADDRESS, &ADDRESS_TEXTS),
        _ => return None,
    };
    mend(message.get_mut(start..)?, texts).then_some(message)
}

/// Whether any of the texts among the attributes was none.
fn mend(mut attributes: &mut [u8], texts: &[u16]) -> bool {
    let mut changed = false;
    while let Some((&mut [l0, l1, k0, k1], rest)) = attributes.split_first_chunk_mut() {
        let Some(length) = usize::from(u16::from_ne_bytes([l0, l1])).checked_sub(4) else { break };
        let Some((value, _)) = rest.split_at_mut_checked(length) else { break };
        let kind = u16::from_ne_bytes([k0, k1]) & NLA_TYPE_MASK;
        if kind == IFLA_PROP_LIST {
            changed |= mend(value, texts);
        } else if texts.contains(&kind) {
            changed |= mend_text(value);
        }
        attributes = rest.get_mut(length.next_multiple_of(4)..).unwrap_or_default();
    }
    changed
}

fn mend_text(text: &mut [u8]) -> bool {
    let mut changed = false;
    while let Err(error) = str::from_utf8(text) {
        let Some(byte) = text.get_mut(error.valid_up_to()) else { break };
        *byte = b'?';
        changed = true;
    }
    changed
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
    use netlink_packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkMessage},
    };

    use super::*;

    fn message(name: &str, alias: &str) -> Vec<u8> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::Mtu(1500));
        link.attributes.push(LinkAttribute::IfName(name.into()));
        link.attributes.push(LinkAttribute::IfAlias(alias.into()));
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewLink(link));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    fn put(bytes: &mut [u8], place: &str, by: &[u8]) {
        let at = bytes.windows(place.len()).position(|window| window == place.as_bytes()).unwrap();
        bytes[at..at + by.len()].copy_from_slice(by);
    }

    #[test]
    fn bytes_that_are_no_text_become_question_marks_and_nothing_else_changes() {
        let mut bytes = message("café-x", "of somebody");
        assert_eq!(readable(&bytes), None, "it is text");
        put(&mut bytes, "é", b"\xe9\xff");
        put(&mut bytes, "some", b"\x80ome");
        // A second message behind it is not looked at.
        let length = bytes.len();
        bytes.extend([0xff; 20]);
        let mended = readable(&bytes).unwrap();
        assert_eq!(mended.len(), length);
        let read = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&mended).unwrap();
        let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = read.payload else {
            panic!("{read:?}")
        };
        assert_eq!(
            link.attributes,
            [
                LinkAttribute::Mtu(1500),
                LinkAttribute::IfName("caf??-x".into()),
                LinkAttribute::IfAlias("of ?omebody".into())
            ]
        );
    }

    #[test]
    fn truncated_messages_are_left_to_the_reader() {
        let mut bytes = message("a-name", "an alias");
        put(&mut bytes, "name", b"\xff\xff\xff\xff");
        for length in 0..bytes.len() {
            assert_eq!(readable(&bytes[..length]), None);
        }
        assert!(readable(&bytes).is_some());
        // An attribute that is longer than the message.
        bytes[LINK] = 0xf0;
        assert_eq!(readable(&bytes), None);
    }
}
