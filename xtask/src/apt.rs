//! Debian's packages: the machine's own sources for most, and private views of other suites for
//! what bookworm has too old (QEMU, bpftool) and for kernels.
//!
//! A view has lists, cache and sources of its own under `target`: the machine's configuration is
//! read (for the mirror), never changed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::sh::{command, find, output, run, say, target_dir};

pub(crate) const BACKPORTS: &str = "bookworm-backports";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt here, and Debian or something made from it.
pub(crate) fn available() -> bool {
    find("apt-get").is_some() && find("dpkg").is_some()
}

/// Installs from the machine's own sources.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    say("apt-get update");
    // A broken third-party source must not stop us; a missing package will.
    if let Err(error) = run(&mut quiet(Command::new("apt-get"), &["update"])) {
        say(format!("{error:#}; going on with the lists that are there"));
    }
    say(format!("apt-get install {}", packages.join(" ")));
    let _quiet = NoServices::begin()?;
    let mut install = quiet(Command::new("apt-get"), &["install", "-y", "--no-install-recommends"]);
    run(install.args(packages))
}

/// While it lives, installing a package starts no service of it: we want its programs only.
struct NoServices {
    policy: Option<&'static Path>,
}

impl NoServices {
    /// What Debian's packages ask before they start anything (invoke-rc.d(8)).
    const POLICY: &'static str = "/usr/sbin/policy-rc.d";

    fn begin() -> Result<Self> {
        let policy = Path::new(Self::POLICY);
        // A policy of the administrator's stays as it is.
        if policy.exists() {
            return Ok(Self { policy: None });
        }
        fs::write(policy, "#!/bin/sh\nexit 101\n")?;
        fs::set_permissions(policy, fs::Permissions::from_mode(0o755))?;
        Ok(Self { policy: Some(policy) })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(policy) = self.policy {
            let _ = fs::remove_file(policy);
        }
    }
}

fn quiet(mut apt: Command, args: &[&str]) -> Command {
    apt.args(["-qq", "-o", "Dpkg::Use-Pty=0"]).args(args).env("DEBIAN_FRONTEND", "noninteractive");
    // dpkg's progress, four lines a package; complaints come on stderr.
    apt.stdout(Stdio::null());
    apt
}

/// What a view shows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Suites {
    /// bookworm and its backports; what is in there may be installed.
    Stable,
    /// The next release, for its kernels. Apart, so that nothing of it is ever installed here.
    Next,
}

impl Suites {
    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Stable => &["bookworm", BACKPORTS],
            Self::Next => &["forky"],
        }
    }

    fn dir(self) -> &'static str {
        match self {
            Self::Stable => "apt",
            Self::Next => "apt-next",
        }
    }
}

/// Suites of Debian, seen apart from the machine's own configuration.
#[derive(Debug)]
pub(crate) struct View {
    suites: Suites,
    dir: PathBuf,
}

impl View {
    /// Opens it; the lists are fetched the first time only (`refresh` fetches them anew).
    pub(crate) fn open(suites: Suites) -> Result<Self> {
        let view = Self { suites, dir: target_dir().join(suites.dir()) };
        let sources = view.dir.join("sources.list");
        if !sources.is_file() {
            view.refresh()?;
        }
        Ok(view)
    }

    pub(crate) fn refresh(&self) -> Result<()> {
        let suites = self.suites.names();
        say(format!("package lists of {}", suites.join(" and ")));
        for dir in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.dir.join(dir))?;
        }
        let mirror = mirror().context("no Debian mirror in /etc/apt/sources.list or sources.list.d")?;
        let signed =
            if Path::new(KEYRING).is_file() { format!("[signed-by={KEYRING}] ") } else { String::new() };
        let lines: String =
            suites.iter().map(|suite| format!("deb {signed}{mirror} {suite} main\n")).collect();
        let new = self.dir.join("sources.list.new");
        fs::write(&new, lines)?;
        run(&mut quiet(self.apt_with("apt-get", &new), &["update"]))?;
        // Named so only now: a view without lists is not opened by the next run.
        Ok(fs::rename(new, self.dir.join("sources.list"))?)
    }

    /// Installs on the machine, from backports where they have it.
    pub(crate) fn install(&self, packages: &[&str]) -> Result<()> {
        say(format!("apt-get install -t {BACKPORTS} {}", packages.join(" ")));
        let args = ["install", "-y", "--no-install-recommends", "-t", BACKPORTS];
        run(quiet(self.apt("apt-get"), &args).args(packages))
    }

    /// Fetches a package and unpacks it into `into`; nothing is installed.
    pub(crate) fn unpack(&self, package: &str, into: &Path) -> Result<()> {
        say(format!("fetching {package}"));
        let debs = self.dir.join("debs");
        // An earlier version of the same package must not be taken for the new one.
        let _ = fs::remove_dir_all(&debs);
        fs::create_dir_all(&debs)?;
        let mut download = quiet(self.apt("apt-get"), &["download"]);
        // The directory belongs to us, so apt's sandbox user could not write it.
        output(download.args(["-o", "APT::Sandbox::User=root", package]).current_dir(&debs))?;
        let Some(deb) = fs::read_dir(&debs)?.next() else {
            bail!("apt-get download {package} left no file");
        };
        fs::create_dir_all(into)?;
        run(command("dpkg", ["-x"]).arg(deb?.path()).arg(into))?;
        Ok(fs::remove_dir_all(debs)?)
    }

    /// Names of packages that match a regular expression.
    pub(crate) fn names(&self, pattern: &str) -> Result<Vec<String>> {
        let found = output(self.apt("apt-cache").args(["search", "--names-only", pattern]))?;
        Ok(found.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect())
    }

    fn apt(&self, program: &str) -> Command {
        self.apt_with(program, &self.dir.join("sources.list"))
    }

    fn apt_with(&self, program: &str, sources: &Path) -> Command {
        let mut apt = Command::new(program);
        let option = |name: &str, value: &Path| format!("{name}={}", value.display());
        for option in [
            option("Dir::State::lists", &self.dir.join("lists")),
            option("Dir::Cache", &self.dir.join("cache")),
            option("Dir::Etc::sourcelist", sources),
            option("Dir::Etc::sourceparts", Path::new("/dev/null")),
        ] {
            apt.args(["-o", &option]);
        }
        apt
    }
}

/// The mirror that this machine itself uses for Debian.
fn mirror() -> Option<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let parts = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    files.extend(parts.map(|entry| entry.path()).filter(|path| {
        path.extension().is_some_and(|extension| extension == "list" || extension == "sources")
    }));
    files.iter().filter_map(|file| fs::read_to_string(file).ok()).find_map(|text| mirror_in(&text))
}

/// The archive of a sources file in either of apt's formats: the address whose path ends in
/// `/debian`, as the archive's does on every mirror (security and third parties differ), or the
/// list of mirrors that Debian's cloud images come with.
fn mirror_in(text: &str) -> Option<String> {
    let lines = text.lines().map(str::trim);
    let relevant = lines.filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"));
    let mut words = relevant.flat_map(str::split_whitespace);
    let is_archive = |word: &str| {
        let path = word.trim_end_matches('/');
        word.contains(":/") && (path.ends_with("/debian") || path.ends_with("/mirrors/debian.list"))
    };
    words.find(|word| is_archive(word)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_found_in_the_new_format() {
        let text =
            "Types: deb\n# URIs: http://old/debian\nURIs: http://mirror.example/debian\nSuites: bookworm\n";
        assert_eq!(mirror_in(text).as_deref(), Some("http://mirror.example/debian"));
    }

    #[test]
    fn the_mirror_is_found_in_the_old_format_and_others_are_not_taken_for_it() {
        let text = "# deb http://gone/debian x main\ndeb https://third.example/apt stable main\n\
                    deb http://s.example/debian-security bookworm-security main\n\
                    deb [arch=amd64] http://m.example/debian/ bookworm main\n";
        assert_eq!(mirror_in(text).as_deref(), Some("http://m.example/debian/"));
    }
}
