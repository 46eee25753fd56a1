//! Removal of what is over, of flows and bindings whose keys the agent has put into a frame: run by `BPF_PROG_TEST_RUN`, attached
//! nowhere. They answer how many those were.

use aya_ebpf::{macros::classifier, programs::TcContext};
use telecluster_common::{
    nat::{
        collect::{BATCH4, BATCH6, HELD_DOWN, START, collect},
        release::{self, release},
        work::Work,
    },
    packet::Packet as _,
    tables::{Host as _, Tables},
};

use crate::{A4, A6, skb::Skb, tables::Kernel};

/// Flows of IPv4.
#[classifier]
pub fn tc_collect4(ctx: TcContext) -> i32 {
    all::<A4, _>(&ctx, BATCH4, |work| &mut work.key, |kernel, work, _, now| collect(kernel, work, now))
}

/// Flows of IPv6.
#[classifier]
pub fn tc_collect6(ctx: TcContext) -> i32 {
    all::<A6, _>(&ctx, BATCH6, |work| &mut work.key, |kernel, work, _, now| collect(kernel, work, now))
}

/// Bindings of IPv4.
#[classifier]
pub fn tc_release4(ctx: TcContext) -> i32 {
    all::<A4, _>(&ctx, release::BATCH4, |work| &mut work.external, release)
}

/// Bindings of IPv6.
#[classifier]
pub fn tc_release6(ctx: TcContext) -> i32 {
    all::<A6, _>(&ctx, release::BATCH6, |work| &mut work.external, release)
}

/// `place`: where `remove` looks for the key. It gets what the frame begins with, too: see [`HELD_DOWN`].
#[inline(always)]
fn all<A, K>(
    ctx: &TcContext,
    most: usize,
    place: impl Fn(&mut Work<A>) -> &mut K,
    remove: impl Fn(&Kernel, &Work<A>, u32, u64) -> bool,
) -> i32
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
    let mut held_down = 0;
    if !take_down(&mut skb, &mut held_down, HELD_DOWN) {
        return 0;
    }
    let (mut turn, mut removed) = (0, 0);
    while turn < most {
        if !take_down(&mut skb, place(work), START + turn * size_of::<K>()) {
            break;
        }
        removed += i32::from(remove(&kernel, work, held_down, now));
        turn += 1;
    }
    removed
}

/// Copies a key out of the frame, word by word. False: there is none.
#[inline(always)]
fn take_down<K>(skb: &mut Skb, key: &mut K, start: usize) -> bool {
    let words = core::ptr::from_mut(key).cast::<u32>();
    let mut place = 0;
    while place < size_of::<K>() / 4 {
        let Some(word) = skb.at::<[u8; 4]>(start + place * 4) else {
            return false;
        };
        // SAFETY: `at` checked the bounds; a key is that many words, each of which may have any value.
        unsafe { words.add(place).write_volatile(u32::from_ne_bytes(word.as_ptr().read())) }
        place += 1;
    }
    true
}
