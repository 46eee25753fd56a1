//! schemathesis, which tries everything that the OpenAPI document names: from PyPI, in a directory of its own below
//! `target/`, in one version.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::sh::{command, run, say, target_dir};

/// Another one may find other things; which is good, and not on the day of somebody's release.
const VERSION: &str = "4.32.5";

/// The program; installed when it is not there yet.
pub(crate) fn program() -> Result<PathBuf> {
    let dir = target_dir().join(format!("schemathesis-{VERSION}"));
    let program = dir.join("bin/st");
    let done = dir.join("installed");
    if done.is_file() {
        return Ok(program);
    }
    say(format!("schemathesis {VERSION} from PyPI, into {}", dir.display()));
    // Half an installation is begun again.
    let _ = fs::remove_dir_all(&dir);
    run(command("python3", ["-m", "venv"]).arg(&dir)).context("python3 -m venv: package python3-venv")?;
    let package = format!("schemathesis=={VERSION}");
    let arguments = ["install", "--quiet", "--disable-pip-version-check", &package];
    run(&mut command(dir.join("bin/pip"), arguments)).context("PyPI does not give schemathesis")?;
    fs::write(done, VERSION)?;
    Ok(program)
}
