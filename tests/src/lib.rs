//! What the tests of the whole worker share.
//!
//! | module | what |
//! |---|---|
//! | [`telecluster_vectors`] | frames, what becomes of them, and the engine on the host |
//! | [`kernel`] | the loaded programs through `BPF_PROG_TEST_RUN` |
//! | [`table`] | flows put into their table |
//! | [`driver`] | those for drivers and for traffic control, beside each other |
//! | [`drivers`] | a lab with the fast path in drivers |
//! | [`lab`] | hosts, worker and sockets in namespaces |
//! | [`netns`], [`sockets`] | one namespace, and what is asked of sockets in it |
//! | [`switch`] | frames through the ports of a bridge with VLANs: engine, programs, the kernel's own filter |
//! | [`behind`] | hosts behind narrow links |
//! | [`round`] | the host itself as a client of its own forwards |
//! | [`serving`] | a server that tells its callers who they are |
//! | [`ovs`] | Open vSwitch of a test's own |
//! | [`bare`] | programs in BPF's own instructions |
//! | [`sandbox`] | namespaces that vanish with the thread that made them |
//! | [`chaos`] | a host that changes all the time, and where its packets may be |
//! | [`conversation`] | one flow there and back, and a worker that masquerades it |
//! | [`machine`] | machines behind the ports of a bridge |
//! | [`objects`], [`strace`] | workloads, and system calls that fail meanwhile |
//! | [`faulty_iptables`] | calls of iptables that go wrong |
//! | [`dice`], [`damage`] | chance that can be repeated, and what it does to frames |
//! | [`tap`] | the far side of a TAP |
//! | [`traffic`] | many flows that notice every lost packet |

#![expect(clippy::panic, reason = "all of this crate is test code: a failure is a panic")]

pub use telecluster_vectors::{behind_any_hooks, frame, fuzz, host, vectors};

pub mod bare;
pub mod behind;
pub mod chaos;
pub mod conversation;
pub mod damage;
pub mod dice;
pub mod driver;
pub mod drivers;
pub mod faulty_iptables;
pub mod kernel;
pub mod lab;
pub mod machine;
pub mod netns;
pub mod objects;
pub mod ovs;
pub mod round;
pub mod sandbox;
pub mod serving;
pub mod sockets;
pub mod strace;
pub mod stranger;
pub mod switch;
pub mod table;
pub mod tap;
pub mod traffic;
