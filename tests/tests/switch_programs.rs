//! The loaded VLAN programs on veth ports of a real bridge: the same stories as on the host.

use telecluster_tests::{
    sandbox,
    switch::{
        kernel::{OwnFilter, Programs, load},
        play, stories,
    },
};

#[test]
fn every_story_holds_on_real_ports() {
    sandbox::run(|| {
        let plane = load();
        for story in stories::all() {
            let mut programs = Programs::new(&plane, &story.ports);
            play(&story, &mut programs);
            programs.remove();
        }
    });
}

/// What differs is named in the story, with the reason.
#[test]
fn the_kernels_own_filter_tells_the_same_stories() {
    if !sandbox::run(OwnFilter::exists) {
        assert!(std::env::var_os("TELECLUSTER_VM").is_none(), "the kernels of the VMs have a VLAN filter");
        eprintln!("this kernel's bridge has no VLAN filter: compared in the VM only");
        return;
    }
    for story in stories::all() {
        if story.kernel == stories::Kernel::Same {
            sandbox::run(|| play(&story, &mut OwnFilter::new(&story.ports)));
        }
    }
}
