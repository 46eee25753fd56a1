//! Other namespaces, which are read again only when something was heard of them.

use telecluster_worker::{
    engine::Change,
    error::Code,
    kernel::{Kernel as _, netlink::NetlinkKernel},
    model::VethSpec,
};

use crate::{
    essence,
    lab::{Lab, Named, eventually, in_namespace, run, veth},
};

/// What a kernel that has looked before sees of other namespaces is what one sees that looks for the first time.
#[test]
fn other_namespaces_are_seen_as_by_a_first_look() {
    in_namespace(|| async {
        let (one, two, three) = (Named::new(), Named::new(), Named::new());
        let all = [&one, &two, &three];
        let kernel = NetlinkKernel::open().unwrap();
        kernel.observe().await.unwrap();
        let in_one = |line: &str| format!("ip netns exec {} {line}", one.0);
        let in_two = |line: &str| format!("ip netns exec {} {line}", two.0);
        for line in [
            // Nothing leads there.
            in_one("ip link add alone type veth peer name lonely"),
            in_one("ip link set alone up"),
            in_one("ip addr add 10.3.0.1/24 dev alone"),
            // An end that goes from one to the other, and home.
            "ip link add a0 type veth peer name a1".to_owned(),
            format!("ip link set a1 netns {}", one.0),
            in_one("ip link set a1 up"),
            in_one(&format!("ip link set a1 netns {}", two.0)),
            in_two("ip link set a1 name b1"),
            in_two(&format!("ip link set b1 netns {}", std::process::id())),
            // A pair between the two.
            "ip link add c0 type veth peer name c1".to_owned(),
            format!("ip link set c0 netns {}", one.0),
            format!("ip link set c1 netns {}", two.0),
            in_one("ip link set c0 up"),
            in_two("ip addr add 2001:db8::1/64 dev c1 nodad"),
            in_two(&format!("ip link set c1 netns {}", three.0)),
            // The name stays, the namespace does not.
            format!("ip netns del {}", one.0),
            format!("ip netns add {}", one.0),
            in_one("ip link add d0 type bridge"),
            in_one("ip link del d0"),
        ] {
            let words: Vec<_> = line.split(' ').collect();
            run(words[0], &words[1..]);
            eventually(&line, async || {
                let known = essence(kernel.observe().await.unwrap(), &all);
                known == essence(NetlinkKernel::open().unwrap().observe().await.unwrap(), &all)
            })
            .await;
        }
    });
}

/// A name for the worker's own namespace is no other place, and what happens there goes on being heard when the namespace
/// has a number in itself.
#[test]
fn the_workers_own_namespace_may_have_a_name() {
    in_namespace(|| async {
        let own = Named::of_this_thread();
        let kernel = NetlinkKernel::open().unwrap();
        run("ip", &["netns", "set", &own.0, "auto"]);
        let observed = kernel.observe().await.unwrap();
        assert!(observed.namespaces.iter().all(|namespace| namespace.name != own.0));
        run("ip", &["link", "add", "a0", "type", "bridge"]);
        let observed = kernel.observe().await.unwrap();
        assert!(observed.link("a0").is_some());
        // It is told to leave the name out, instead of having two places for one link.
        let lab = Lab::new().await;
        let spec = VethSpec { namespace2: Some(own.name()), ..veth("v1", "v2", [None, None]) };
        assert_eq!(lab.code(Change::CreateVeth(spec)).await, Code::WrongKind);
    });
}
