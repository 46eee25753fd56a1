//! The loaded programs: the same vectors as on the host, through the verifier and `BPF_PROG_TEST_RUN`.

use telecluster_tests::{kernel::Kernel, sandbox, vectors};

#[test]
fn every_vector_holds_in_the_kernel() {
    for vector in vectors::all() {
        sandbox::run(|| vectors::play(&vector, &mut Kernel::load()));
    }
}
