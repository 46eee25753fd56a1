//! The engine on the host: the vectors, and what needs a hand on the tables.

use telecluster_tests::{host::Host, vectors};

#[test]
fn every_vector_holds_on_the_host() {
    for vector in vectors::all() {
        vectors::play(&vector, &mut Host::default());
    }
}
