//! The tests under another kernel: Debian's own, booted by QEMU's software emulation (build
//! machines have no KVM), everything in an initramfs. The kernel is unpacked, never installed.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::apt::{Suites, View};
use crate::build::{self, Profile};
use crate::libtest::Tally;
use crate::setup::{self, Set};
use crate::sh::{cargo, command, quoted, run, say, search_path, target_dir};

const IMAGE: &str = include_str!("../vm/image.sh");
const INIT: &str = include_str!("../vm/init.sh");
/// A hung guest must not hang CI. Emulation is some 20 times slower than the machine, and beside others three times as slow as that.
const TIMEOUT_SECONDS: &str = "3000";
/// The image is there twice while the guest unpacks it, and what does not fit is left out without a word.
const MEMORY_MB: &str = "4096";

#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Which of Debian's kernels
    #[arg(long, default_value = "6.1")]
    pub(crate) kernel: String,
    /// Run this shell command in the guest instead of the tests
    #[arg(long)]
    pub(crate) exec: Option<String>,
    /// Only tests whose name contains this
    pub(crate) filter: Option<String>,
    /// Only these test binaries; none named: all
    #[arg(skip)]
    pub(crate) only: &'static [&'static str],
}

/// Boots, runs every test of the `tests` crate, and fails as they do.
pub(crate) fn main(options: &Options) -> Result<Tally> {
    if std::env::consts::ARCH != "x86_64" {
        bail!("vm-test boots Debian's amd64 kernels and copies this machine's tools into them: x86_64 only");
    }
    setup::ensure(&[Set::Build, Set::Test, Set::Vm])?;
    let agent = build::agent(Profile::Dev)?;
    let image = Image::prepare(&options.kernel)?;
    let programs = test_binaries(options.exec.is_some())?;
    let script = image.dir.join("vmrun.sh");
    fs::write(&script, guest_script(options))?;
    let mut files = vec![(script, "vmrun.sh".to_owned()), (agent, format!("bin/{}", build::AGENT))];
    files.extend(programs.into_iter().map(|(name, path)| (path, name)));
    image.add(&files)?;
    say(format!("booting Linux {} (emulated; tests run one by one)", options.kernel));
    match image.boot()? {
        (0, tally) if tally.is_empty() && options.exec.is_none() => {
            bail!("no test ran under Linux {}", options.kernel)
        }
        (0, tally) => Ok(tally),
        (status, tally) => bail!("{tally} (status {status})\n{}", tally.complaints()),
    }
}

/// What the guest's init runs.
fn guest_script(options: &Options) -> String {
    let tests = match options.only {
        [] => "/tests/*".to_owned(),
        only => only.iter().map(|name| format!("/tests/{name}")).collect::<Vec<_>>().join(" "),
    };
    let filter = options.filter.as_deref().map(quoted).unwrap_or_default();
    let environment = format!(
        "export TELECLUSTER_WORKER_BIN=/bin/{} TELECLUSTER_VM={} RUST_BACKTRACE=1\ncd /tmp\n",
        build::AGENT,
        quoted(&options.kernel)
    );
    let body = options.exec.clone().unwrap_or_else(|| {
        format!(
            "failed=\nfor test in {tests}; do\n  echo \"==> $test\"\n  \
             \"$test\" --test-threads=1 {filter} || {{\n    echo \"==> again: $test\"\n    \
             \"$test\" --test-threads=1 {filter} || failed=\"$failed $test\"\n  }}\ndone\n\
             [ -z \"$failed\" ] || {{ echo \"failed:$failed\"; exit 1; }}"
        )
    });
    format!("{environment}{body}\n")
}

/// Each integration test of the `tests` crate as `tests/NAME`, and for a command of one's own each bench as
/// `benches/NAME`; with its path here.
fn test_binaries(benches: bool) -> Result<Vec<(String, PathBuf)>> {
    say("building the tests");
    let mut build = cargo(["test", "--package", "telecluster-tests", "--no-run", "--message-format=json"]);
    if benches {
        build.args(["--tests", "--benches"]);
    }
    let messages = build.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    if !messages.status.success() {
        // The compiler's words are in the JSON; say them by building once more without it.
        run(&mut cargo(["test", "--package", "telecluster-tests", "--no-run"]))?;
    }
    Ok(executables(&String::from_utf8_lossy(&messages.stdout)))
}

/// The integration tests and benches among cargo's messages.
fn executables(messages: &str) -> Vec<(String, PathBuf)> {
    let parsed = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    parsed
        .filter_map(|message| {
            let directory = match message["target"]["kind"][0].as_str()? {
                "test" => "tests",
                "bench" => "benches",
                _ => return None,
            };
            let name = message["target"]["name"].as_str()?;
            Some((format!("{directory}/{name}"), message["executable"].as_str()?.into()))
        })
        .collect()
}

/// A kernel and its initramfs in `target/vm/KERNEL`.
struct Image {
    dir: PathBuf,
    busybox: PathBuf,
    script: PathBuf,
}

impl Image {
    /// From the cache when it was made by this recipe, else from Debian's packages.
    fn prepare(kernel: &str) -> Result<Self> {
        if !kernel.split('.').all(|part| !part.is_empty() && part.chars().all(|c| c.is_ascii_digit())) {
            bail!("--kernel {kernel}: a version such as 6.1 or 6.12 is expected");
        }
        let dir = target_dir().join("vm").join(kernel);
        let image = Self { busybox: dir.join("busybox/bin/busybox"), script: dir.join("image.sh"), dir };
        let stamp = image.dir.join("recipe");
        let recipe = format!("{IMAGE}\n{INIT}");
        if fs::read_to_string(&stamp).is_ok_and(|made_by| made_by == recipe) {
            return Ok(image);
        }
        fs::create_dir_all(&image.dir)?;
        fs::write(&image.script, IMAGE)?;
        let init = image.dir.join("init.sh");
        fs::write(&init, INIT)?;
        image.fetch(kernel)?;
        say("building the initramfs");
        let mut build = image.bash(&["base"]);
        build.arg(image.dir.join("kernel")).arg(&image.busybox).arg(&init).arg(&image.dir);
        run(&mut build)?;
        fs::write(stamp, recipe)?;
        Ok(image)
    }

    fn fetch(&self, kernel: &str) -> Result<()> {
        let tree = self.dir.join("kernel");
        if tree.is_dir() && self.busybox.is_file() {
            return Ok(());
        }
        let (suites, parts) = packages(kernel);
        let view = View::open(suites)?;
        let fetch = || -> Result<()> {
            for dir in [&tree, &self.dir.join("busybox")] {
                let _ = fs::remove_dir_all(dir);
            }
            let found: Vec<String> = parts
                .iter()
                .map(|part| {
                    newest(view.names(&name_pattern(part, kernel))?)
                        .with_context(|| format!("no linux-{part}-{kernel}*-cloud-amd64 in {suites:?}"))
                })
                .collect::<Result<_>>()?;
            View::open(Suites::Stable)?.unpack("busybox-static", &self.dir.join("busybox"))?;
            // Last: its directory says that all is there.
            let unpacking = self.dir.join("kernel.new");
            let _ = fs::remove_dir_all(&unpacking);
            for package in &found {
                view.unpack(package, &unpacking)?;
            }
            Ok(fs::rename(&unpacking, &tree)?)
        };
        fetch().or_else(|error| {
            say(format!("{error:#}; again with fresh lists"));
            view.refresh()?;
            fetch()
        })
    }

    /// Packs what changes from run to run.
    fn add(&self, files: &[(PathBuf, String)]) -> Result<()> {
        let mut extra = self.bash(&["extra"]);
        extra.arg(&self.busybox).arg(&self.dir);
        extra.args(files.iter().map(|(from, to)| format!("{}:{to}", from.display())));
        run(&mut extra)?;
        let mut initrd = fs::read(self.dir.join("base.cpio"))?;
        initrd.extend(fs::read(self.dir.join("extra.cpio"))?);
        Ok(fs::write(self.dir.join("initrd"), initrd)?)
    }

    /// Runs the guest, shows what it says, and answers with the status of its script and what its
    /// tests counted.
    fn boot(&self) -> Result<(i32, Tally)> {
        // The emulator goes when we go, also by a signal that we cannot catch: `timeout` with us, the emulator
        // with `timeout`. To be told of a parent's death is not inherited.
        let mut qemu = command("setpriv", ["--pdeathsig", "KILL", "timeout", "-k", "5", TIMEOUT_SECONDS]);
        qemu.args(["setpriv", "--pdeathsig", "KILL"]);
        qemu.args([
            "qemu-system-x86_64",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            MEMORY_MB,
        ]);
        qemu.args(["-nographic", "-nodefaults", "-no-reboot", "-serial", "stdio"]);
        qemu.args(["-append", "console=ttyS0 panic=-1 oops=panic quiet"]);
        qemu.arg("-kernel").arg(self.dir.join("vmlinuz")).arg("-initrd").arg(self.dir.join("initrd"));
        let mut qemu =
            qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start QEMU")?;
        let console = qemu.stdout.take().context("QEMU has no console")?;
        let (mut status, mut boot, mut tally) = (None, Some(String::new()), Tally::default());
        for line in BufReader::new(console).split(b'\n') {
            let line = String::from_utf8_lossy(&line?).replace('\r', "");
            // The firmware's screen control is for nobody, unless the guest never comes up.
            if let (Some(_), Some((_, booted))) = (&boot, line.split_once("VM-BOOTED ")) {
                println!("    Linux {booted}");
                boot = None;
                continue;
            }
            tally.add(&line);
            match (exit_code(&line), &mut boot) {
                (Some(code), _) => status = Some(code),
                (None, Some(early)) => early.push_str(&format!("    {line}\n")),
                (None, None) => println!("    {line}"),
            }
        }
        print!("{}", boot.unwrap_or_default());
        let ended = qemu.wait()?;
        let status = status
            .with_context(|| format!("the guest gave no result (QEMU: {ended}); its last words are above"))?;
        Ok((status, tally))
    }

    fn bash(&self, args: &[&str]) -> Command {
        let mut bash = command("bash", [&self.script]);
        bash.args(args).env("PATH", search_path());
        bash
    }
}

fn exit_code(line: &str) -> Option<i32> {
    line.split_once("VM-EXIT-CODE:")?.1.trim().parse().ok()
}

/// Where a kernel is packaged, and in how many packages: one until Debian split the image from its modules.
fn packages(kernel: &str) -> (Suites, &'static [&'static str]) {
    let major = kernel.split('.').next().and_then(|number| number.parse().ok()).unwrap_or(0);
    if major < 7 { (Suites::Stable, &["image"]) } else { (Suites::Next, &["binary", "modules"]) }
}

/// Signed images and unsigned ones share the prefix; names roll with every update.
fn name_pattern(part: &str, kernel: &str) -> String {
    format!(r"^linux-{part}-{}(\.[0-9]+)*([-+][a-z0-9.]+)*-cloud-amd64$", kernel.replace('.', r"\."))
}

/// The highest version among package names, number by number.
fn newest(names: Vec<String>) -> Option<String> {
    let numbers = |name: &str| -> Vec<u32> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).collect()
    };
    names.into_iter().max_by_key(|name| numbers(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_kernel_is_chosen_by_number_not_by_letter() {
        let names = ["linux-image-6.12.9+deb12-cloud-amd64", "linux-image-6.12.90+deb12.1-cloud-amd64"];
        assert_eq!(newest(names.map(str::to_owned).to_vec()).as_deref(), Some(names[1]));
        assert_eq!(newest(Vec::new()), None);
    }

    #[test]
    fn integration_tests_are_found_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"x"},"executable":"/t/x"}
{"reason":"compiler-artifact","target":{"kind":["test"],"name":"nat"},"executable":"/t/nat-1"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executables(messages), [("tests/nat".to_owned(), PathBuf::from("/t/nat-1"))]);
    }

    #[test]
    fn the_guests_status_is_read_from_its_console() {
        assert_eq!(exit_code("VM-EXIT-CODE:3"), Some(3));
        assert_eq!(exit_code("test result: ok"), None);
    }
}
