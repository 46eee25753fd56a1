//! A frame as the engine wants packets.

use std::ptr::NonNull;

use telecluster_common::{
    checksum::{apply, fold},
    packet::{ChecksumFix, Packet, Wire, note},
};

use super::INSIDE_INTERFACE;
use crate::vectors::UPLINK;

/// A frame in memory, as complete as a socket buffer without offloads.
pub(super) struct Bytes<'a> {
    pub(super) frame: &'a mut Vec<u8>,
    interface: u32,
    came_in_through: u32,
    note: u32,
}

impl<'a> Bytes<'a> {
    /// At the uplink, from the inside.
    pub(super) fn at_uplink(frame: &'a mut Vec<u8>) -> Self {
        Self { frame, interface: UPLINK, came_in_through: INSIDE_INTERFACE, note: note::NONE }
    }

    /// Where it comes in.
    pub(super) fn coming(frame: &'a mut Vec<u8>, interface: u32) -> Self {
        Self { frame, interface, came_in_through: interface, note: note::NONE }
    }

    /// Where it leaves. From 0: the host's own.
    pub(super) fn leaving(frame: &'a mut Vec<u8>, from: u32, interface: u32, note: u32) -> Self {
        Self { frame, interface, came_in_through: from, note }
    }
}

impl Packet for Bytes<'_> {
    fn carries(&self, ethertype: u16) -> bool {
        self.frame.get(12..14) == Some(&ethertype.to_be_bytes())
    }

    fn interface(&self) -> u32 {
        self.interface
    }

    fn network_len(&self) -> u32 {
        u32::try_from(self.frame.len() - 14).expect("a frame")
    }

    fn segments(&self) -> u32 {
        1
    }

    fn segment_payload(&self) -> u32 {
        0
    }

    fn came_in_through(&self) -> u32 {
        self.came_in_through
    }

    fn note(&self) -> u32 {
        self.note
    }

    fn set_note(&mut self, note: u32) {
        self.note = note;
    }

    fn make_linear(&mut self, _len: usize) {}

    fn quote(&mut self, keep: u32, room: u32) -> bool {
        self.frame.truncate(keep as usize);
        self.frame.splice(14..14, std::iter::repeat_n(0, room as usize));
        true
    }

    fn resum(&mut self, _difference: u16) {}

    fn at<T: Wire>(&mut self, offset: usize) -> Option<NonNull<T>> {
        let bytes = self.frame.get_mut(offset..offset.checked_add(size_of::<T>())?)?;
        NonNull::new(bytes.as_mut_ptr().cast())
    }

    fn add_up<T: Wire>(&mut self, offset: usize, sum: u32) -> Option<u32> {
        let bytes = self.frame.get(offset..offset.checked_add(size_of::<T>())?)?;
        let words = bytes.chunks(2).map(|word| u32::from(u16::from_ne_bytes([word[0], word[1]])));
        Some(u32::from(fold(sum)) + words.sum::<u32>())
    }

    fn commit(&mut self, fix: ChecksumFix) -> bool {
        let Some(field) = self.frame.get_mut(fix.offset..fix.offset + 2) else {
            return false;
        };
        let old = [field[0], field[1]];
        if (fix.optional && old == [0, 0]) || (fix.pseudo == 0 && fix.body == 0) {
            return true;
        }
        let mut new = apply(old, fold(u32::from(fix.pseudo) + u32::from(fix.body)));
        if fix.optional && new == [0, 0] {
            new = [0xff, 0xff];
        }
        field.copy_from_slice(&new);
        true
    }
}
