//! smoke
use telecluster_worker::kernel::bpf::{BpfDataPlane, Options};
#[test]
fn load() {
    let dir = std::path::PathBuf::from(format!("/sys/fs/bpf/tctest-{}", std::process::id()));
    let r = BpfDataPlane::load(&Options { directory: dir.clone(), flow_capacity: 1024, log_level: 3 });
    match r {
        Err(e) => {
            panic!("{e}");
        }
        Ok((_d, o)) => {
            for (n, p) in o.programs() {
                let i = p.info().unwrap();
                println!("{n} verified {:?} size {:?}", i.verified_instruction_count(), i.size_translated());
            }
        }
    }
}
