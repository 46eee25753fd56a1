//! Benches of this repository: `tests/benches`, which print their table and need only the worker.

use anyhow::Result;

use super::{Measured, Options};
use crate::build::{self, Profile};
use crate::setup::{self, Set};
use crate::sh::{cargo, output_beside, say, shown};

pub(super) fn measure(name: &str, options: &Options) -> Result<Measured> {
    setup::ensure(&[Set::Build, Set::Test])?;
    let agent = build::agent(Profile::Release)?;
    let mut bench = cargo(["bench", "--quiet", "-p", "telecluster-tests", "--bench", name, "--"]);
    bench.env("TELECLUSTER_WORKER_BIN", agent).args(options.quick.then_some("--quick")).args(&options.args);
    say(shown(&bench));
    Ok(Measured { table: output_beside(&mut bench)?, done: Ok(()) })
}
