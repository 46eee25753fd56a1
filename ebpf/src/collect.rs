//! Removal of flows that are over, of those whose keys the agent has put into a frame: run by `BPF_PROG_TEST_RUN`, attached
//! nowhere. They answer how many flows those were.

use aya_ebpf::{macros::classifier, programs::TcContext};
use telecluster_common::{
    maps::FlowKey,
    nat::collect::{BATCH4, BATCH6, START, collect},
    packet::Packet as _,
    tables::{Host as _, Tables},
};

use crate::{A4, A6, skb::Skb, tables::Kernel};

/// Flows of IPv4.
#[classifier]
pub fn tc_collect4(ctx: TcContext) -> i32 {
    all::<A4>(&ctx, BATCH4)
}

/// Flows of IPv6.
#[classifier]
pub fn tc_collect6(ctx: TcContext) -> i32 {
    all::<A6>(&ctx, BATCH6)
}

#[inline(always)]
fn all<A>(ctx: &TcContext, most: usize) -> i32
where
    A: telecluster_common::family::Address,
    Kernel: Tables<A>,
{
    let (mut skb, kernel) = (Skb::new(ctx), Kernel::new(ctx));
    let Some(mut work) = kernel.work() else {
        return 0;
    };
    // SAFETY: this CPU's own, and nobody else's while the program runs: softirqs are off.
    let work = unsafe { work.as_mut() };
    let now = kernel.now();
    let (mut place, mut flows) = (0, 0);
    while place < most {
        if !take_down(&mut skb, &mut work.key, START + place * size_of::<FlowKey<A>>()) {
            break;
        }
        flows += i32::from(collect(&kernel, work, now));
        place += 1;
    }
    flows
}

/// Copies a key out of the frame, word by word. False: there is none.
#[inline(always)]
fn take_down<A>(skb: &mut Skb, key: &mut FlowKey<A>, start: usize) -> bool {
    let words = core::ptr::from_mut(key).cast::<u32>();
    let mut place = 0;
    while place < size_of::<FlowKey<A>>() / 4 {
        let Some(word) = skb.at::<[u8; 4]>(start + place * 4) else {
            return false;
        };
        // SAFETY: `at` checked the bounds; a key is that many words, each of which may have any value.
        unsafe { words.add(place).write_volatile(u32::from_ne_bytes(word.as_ptr().read())) }
        place += 1;
    }
    true
}
