//! `telecluster-worker check`: what this host can do, and what may be in the way. Nothing is changed.
//!
//! Features are tried, never guessed from the kernel's version.

use std::{fs, io, net::TcpListener, path::Path, sync::Arc};

use aya::{
    maps::MapType,
    programs::{ProgramType, SchedClassifier, TcAttachType},
    sys::{is_map_supported, is_program_supported},
};
use serde::Serialize;

use crate::{
    config::{Config, Dataplane, Ovs as OvsSetting},
    engine::Options,
    kernel::{
        ACCEPT_LOCAL, Kernel as _, KernelError,
        host::HostKernel,
        iptables::Iptables,
        links::Observed,
        netdev,
        netlink::NetlinkKernel,
        ovs::{Ovs, Presence},
        xdp::Xdp,
    },
    kinds::roles::{Holder, Roles},
    model::roles::{Role, RoleSource},
    permissions::Permissions,
    start,
};

/// How one check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    /// The worker works, some of it does not.
    Limited,
    /// Someone should look: it may be in the way.
    Conflict,
    /// The worker cannot work.
    Missing,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Limited => "limited",
            Self::Conflict => "conflict",
            Self::Missing => "MISSING",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do about it.
    pub hint: Option<&'static str>,
}

impl Check {
    fn new(name: &'static str, state: State, found: impl Into<String>) -> Self {
        Self { name, state, found: found.into(), hint: None }
    }

    fn hint(mut self, hint: &'static str) -> Self {
        self.hint = Some(hint).filter(|_| self.state != State::Ok);
        self
    }
}

/// Everything that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    pub checks: Vec<Check>,
}

impl Report {
    /// Nothing is missing without which the worker cannot work.
    pub fn usable(&self) -> bool {
        self.checks.iter().all(|check| check.state != State::Missing)
    }

    /// A line for each check, hints below them.
    pub fn table(&self) -> String {
        let width = self.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
        let mut text = String::new();
        for Check { name, state, found, hint } in &self.checks {
            text.push_str(&format!("{:8}  {name:width$}  {found}\n", state.word()));
            if let Some(hint) = hint {
                text.push_str(&format!("{:8}  {:width$}  -> {hint}\n", "", ""));
            }
        }
        text
    }

    pub fn json(&self) -> String {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        value["usable"] = self.usable().into();
        format!("{value:#}\n")
    }
}

/// Looks at everything.
pub fn report(config: &Config) -> Report {
    let programs = config.dataplane == Dataplane::Ebpf;
    // Without programs there is iptables, unless they are insisted on.
    let lacking = if programs { State::Missing } else { State::Limited };
    let ebpf = [bpf(lacking), hash_maps(lacking), tcx(), bpffs(lacking)];
    let iptables = iptables();
    let mut checks = vec![permissions(Permissions::current(), programs), kernel()];
    checks.push(dataplane(config.dataplane, &ebpf, &iptables));
    checks.extend(ebpf);
    checks.extend([
        xdp(config),
        tun(),
        vlans(),
        ovs(config),
        iptables,
        forward_policy(Iptables::default().forward_policy().as_deref()),
    ]);
    checks.extend([bridge_netfilter(), forwarding(), own_forwards(), port(config), state_dir(config)]);
    match look(config) {
        Ok(observed) => checks.extend(roles(&start::options(config), &observed)),
        Err(error) => {
            checks.push(Check::new("interfaces", State::Missing, chain(&error)).hint("run as root"))
        }
    }
    Report { checks }
}

fn permissions(found: io::Result<Permissions>, programs: bool) -> Check {
    const NAME: &str = "permissions";
    match found {
        Ok(permissions) if permissions.missing(programs).is_empty() && permissions.cap_net_raw => {
            Check::new(NAME, State::Ok, if permissions.root { "root" } else { "capabilities" })
        }
        Ok(permissions) if permissions.missing(programs).is_empty() => {
            Check::new(NAME, State::Limited, "no CAP_NET_RAW: ping and traceroute will not work")
                .hint("give the process CAP_NET_RAW")
        }
        Ok(permissions) => Check::new(NAME, State::Missing, permissions.missing(programs).join(", "))
            .hint("run as root, or give the process these capabilities"),
        Err(error) => Check::new(NAME, State::Missing, error.to_string()).hint("mount /proc"),
    }
}

fn kernel() -> Check {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Check::new("kernel", State::Ok, format!("Linux {}", release.trim()))
}

/// Which data plane a start would take, as far as can be told without loading anything.
fn dataplane(setting: Dataplane, ebpf: &[Check], iptables: &Check) -> Check {
    const NAME: &str = "data plane";
    let obstacle = ebpf.iter().find(|check| check.state != State::Ok);
    let with_iptables = |why: String| match iptables.state {
        State::Ok => Check::new(NAME, State::Ok, format!("iptables: {why}")),
        State::Limited | State::Conflict | State::Missing => {
            Check::new(NAME, State::Missing, format!("none: {why}, and iptables is {}", iptables.found))
                .hint("install iptables, or set DATAPLANE=auto")
        }
    };
    match (setting, obstacle) {
        (Dataplane::Iptables, _) => with_iptables("DATAPLANE is iptables".to_owned()),
        (Dataplane::Auto | Dataplane::Ebpf, None) => Check::new(NAME, State::Ok, "eBPF"),
        (Dataplane::Auto, Some(check)) => with_iptables(format!("{}: {}", check.name, check.found)),
        (Dataplane::Ebpf, Some(check)) => {
            Check::new(NAME, State::Missing, format!("eBPF is asked for; {}: {}", check.name, check.found))
                .hint("DATAPLANE=auto takes iptables instead")
        }
    }
}

fn bpf(lacking: State) -> Check {
    const NAME: &str = "eBPF programs";
    match is_program_supported(ProgramType::SchedClassifier) {
        Ok(true) => Check::new(NAME, State::Ok, "traffic control programs load"),
        Ok(false) => Check::new(NAME, lacking, "the kernel has no traffic control programs")
            .hint("a kernel with CONFIG_NET_CLS_BPF and CONFIG_BPF_SYSCALL"),
        Err(error) => Check::new(NAME, lacking, chain(&error)).hint("CAP_BPF, or run as root"),
    }
}

fn hash_maps(state: State) -> Check {
    const NAME: &str = "eBPF maps";
    let mut absent = Vec::new();
    for kind in [MapType::Hash, MapType::LruHash, MapType::LpmTrie, MapType::PerCpuArray] {
        match is_map_supported(kind) {
            Ok(true) => {}
            Ok(false) => absent.push(format!("{kind:?}")),
            // Not asked for its maps at all: the kernel may well have them.
            Err(error) => return Check::new(NAME, state, chain(&error)).hint("CAP_BPF, or run as root"),
        }
    }
    match absent.is_empty() {
        true => Check::new(NAME, State::Ok, "hash, LRU, longest prefix, per processor"),
        false => {
            Check::new(NAME, state, format!("the kernel has no {}", absent.join(", "))).hint("a newer kernel")
        }
    }
}

fn tcx() -> Check {
    const NAME: &str = "attachment";
    match SchedClassifier::query_tcx("lo", TcAttachType::Ingress) {
        Ok(_) => Check::new(NAME, State::Ok, "TCX"),
        Err(_) => Check::new(NAME, State::Ok, "clsact (no TCX here)"),
    }
}

/// Where the fast path could be in drivers; what a driver gives up for it is only seen when it is tried.
fn xdp(config: &Config) -> Check {
    const NAME: &str = "XDP";
    let wishes = &config.xdp;
    if wishes.are_off() {
        return Check::new(NAME, State::Ok, "off");
    }
    let able = |name: &str, index: u32| {
        // What every machine has and nobody means.
        wishes.of(name) != Xdp::Off && netdev::abilities(index).ok().flatten().is_some_and(|able| able.native)
    };
    let Ok(interfaces) = nix::net::if_::if_nameindex() else {
        return Check::new(NAME, State::Limited, format!("{wishes}; the interfaces cannot be listed"));
    };
    if !matches!(netdev::abilities(1), Ok(Some(_))) {
        return Check::new(
            NAME,
            State::Ok,
            format!("{wishes}; this kernel does not tell which drivers have it"),
        );
    }
    let names: Vec<String> = (interfaces.iter())
        .filter_map(|interface| Some((interface.name().to_str().ok()?, interface.index())))
        .filter(|(name, index)| able(name, *index))
        .map(|(name, _)| name.to_owned())
        .collect();
    match names.is_empty() {
        true => Check::new(NAME, State::Ok, format!("{wishes}; no driver here has it")),
        false => Check::new(NAME, State::Ok, format!("{wishes}; drivers of {} have it", names.join(", "))),
    }
}

fn bpffs(lacking: State) -> Check {
    const NAME: &str = "BPF file system";
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    match mounts.lines().any(|mount| mount.split(' ').nth(2) == Some("bpf")) {
        true => Check::new(NAME, State::Ok, "mounted"),
        false => Check::new(NAME, lacking, "not mounted: nothing survives the worker")
            .hint("mount -t bpf bpf /sys/fs/bpf"),
    }
}

fn tun() -> Check {
    const NAME: &str = "TUN and TAP";
    match fs::File::open("/dev/net/tun") {
        Ok(_) => Check::new(NAME, State::Ok, "/dev/net/tun"),
        Err(error) => {
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => "run as root",
                _ => "modprobe tun",
            };
            Check::new(NAME, State::Limited, format!("/dev/net/tun: {error}")).hint(hint)
        }
    }
}

fn vlans() -> Check {
    const NAME: &str = "VLAN links";
    match Path::new("/proc/net/vlan").exists() {
        true => Check::new(NAME, State::Ok, "8021q"),
        false => Check::new(NAME, State::Limited, "8021q is not loaded; the kernel loads it when it has it")
            .hint("modprobe 8021q; VLANs of bridge ports do not need it"),
    }
}

fn ovs(config: &Config) -> Check {
    const NAME: &str = "Open vSwitch";
    let lacking = match config.ovs {
        OvsSetting::Auto => State::Limited,
        OvsSetting::Require => State::Missing,
    };
    match Ovs::new(&config.ovs_socket).observe() {
        Presence::Present(bridges) => {
            Check::new(NAME, State::Ok, format!("answers; {} bridges", bridges.len()))
        }
        Presence::Absent => Check::new(
            NAME,
            lacking,
            format!("nobody listens at {}; Linux bridges stand in", config.ovs_socket.display()),
        )
        .hint("install openvswitch-switch, or set OVS_SOCKET"),
        Presence::Broken(reason) => Check::new(NAME, lacking, reason).hint("look at ovsdb-server"),
    }
}

fn iptables() -> Check {
    const NAME: &str = "iptables";
    match ["/usr/sbin", "/sbin"].iter().any(|dir| Path::new(dir).join("iptables-restore").exists()) {
        true => {
            Check::new(NAME, State::Ok, "iptables-restore, for firewall rules and the fallback of the NAT")
        }
        false => Check::new(NAME, State::Limited, "not installed: no firewall rules, no fallback of the NAT")
            .hint("install iptables"),
    }
}

fn forward_policy(policy: Option<&str>) -> Check {
    const NAME: &str = "forwarded packets";
    match policy {
        Some("DROP" | "REJECT") => Check::new(
            NAME,
            State::Conflict,
            "the packet filter drops what no rule names (Docker sets it so)",
        )
        .hint("allow the inside networks: POST /nat/firewall, chain FORWARD, ACCEPT"),
        Some(policy) => Check::new(NAME, State::Ok, format!("the packet filter's policy is {policy}")),
        None => Check::new(NAME, State::Ok, "no packet filter of iptables"),
    }
}

fn bridge_netfilter() -> Check {
    const NAME: &str = "bridge-netfilter";
    match fs::read_to_string("/proc/sys/net/bridge/bridge-nf-call-iptables").as_deref().map(str::trim) {
        Ok("1") => Check::new(NAME, State::Conflict, "frames within a bridge also pass iptables")
            .hint("sysctl net.bridge.bridge-nf-call-iptables=0, unless somebody relies on it"),
        Ok(_) => Check::new(NAME, State::Ok, "off"),
        Err(_) => Check::new(NAME, State::Ok, "not loaded"),
    }
}

/// Whether the host itself reaches its forwards over IPv4; over IPv6 nothing is needed.
fn own_forwards() -> Check {
    const NAME: &str = "the host's own way to its forwards";
    match fs::read_to_string(ACCEPT_LOCAL) {
        Ok(text) if text.trim() == "1" => Check::new(NAME, State::Ok, "open"),
        Ok(_) => match fs::OpenOptions::new().write(true).open(ACCEPT_LOCAL) {
            Ok(_) => {
                Check::new(NAME, State::Ok, "opened with the first rule (net.ipv4.conf.lo.accept_local)")
            }
            Err(error) => {
                Check::new(NAME, State::Limited, format!("net.ipv4.conf.lo.accept_local is 0: {error}"))
                    .hint("sysctl net.ipv4.conf.lo.accept_local=1")
            }
        },
        Err(error) => Check::new(NAME, State::Limited, format!("{ACCEPT_LOCAL}: {error}")),
    }
}

fn forwarding() -> Check {
    let on = |path: &str| match fs::read_to_string(path).as_deref().map(str::trim) {
        Ok("0") => "off",
        Ok(_) => "on",
        Err(_) => "not there",
    };
    let (v4, v6) = (on("/proc/sys/net/ipv4/ip_forward"), on("/proc/sys/net/ipv6/conf/all/forwarding"));
    Check::new("forwarding", State::Ok, format!("IPv4 {v4}, IPv6 {v6}; the first rule switches it on"))
}

fn port(config: &Config) -> Check {
    const NAME: &str = "API port";
    match TcpListener::bind(config.listen) {
        Ok(_) => Check::new(NAME, State::Ok, format!("{} is free", config.listen)),
        Err(error) => Check::new(NAME, State::Conflict, format!("{}: {error}", config.listen))
            .hint("a worker may be running already; else choose another with PORT and HOST"),
    }
}

fn state_dir(config: &Config) -> Check {
    const NAME: &str = "state";
    let path = &config.state_dir;
    // The nearest directory above that is there: the rest is made at the first start.
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match nix::unistd::access(there, nix::unistd::AccessFlags::W_OK) {
        Ok(()) => Check::new(NAME, State::Ok, path.display().to_string()),
        Err(errno) => Check::new(NAME, State::Missing, format!("{}: {}", there.display(), errno.desc()))
            .hint("set STATE_DIR to a directory that can be written"),
    }
}

/// Every link of the host, as the worker would see it.
fn look(config: &Config) -> Result<Arc<Observed>, KernelError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| KernelError::other("look at the interfaces", error.to_string()))?;
    runtime.block_on(async {
        HostKernel::new(NetlinkKernel::open()?, Ovs::new(&config.ovs_socket)).observe().await
    })
}

/// The uplink, the link to the other servers, the two bridges.
fn roles(options: &Options, observed: &Observed) -> Vec<Check> {
    Roles::of(options, observed).holders().iter().map(role).collect()
}

fn role(holder: &Holder<'_>) -> Check {
    let (name, wrong, hint) = match holder.role {
        Role::Wan => ("uplink", State::Missing, "set WAN_INTERFACE to one of this host, or unset it"),
        Role::Lan => ("cluster link", State::Limited, "set LAN_INTERFACE to one of this host, or unset it"),
        Role::ExternalBridge => ("external bridge", State::Conflict, "set EXTERNAL_BRIDGE to a bridge"),
        Role::InternalBridge => ("internal bridge", State::Conflict, "set INTERNAL_BRIDGE to a bridge"),
    };
    if let Some(problem) = holder.problem() {
        return Check::new(name, wrong, problem).hint(hint);
    }
    let (link, setting) = (holder.name, holder.role.setting());
    match (holder.link, holder.role) {
        (None, Role::Wan) => {
            Check::new(name, State::Limited, "no IPv4 default route: rules have to name their interface")
                .hint("set WAN_INTERFACE")
        }
        (None, Role::Lan) => Check::new(name, State::Ok, "none found; LAN_INTERFACE would name it"),
        (None, Role::ExternalBridge | Role::InternalBridge) => {
            Check::new(name, State::Ok, format!("{link}, not there yet: POST /bridge/create makes it"))
        }
        (Some(_), _) => Check::new(
            name,
            State::Ok,
            match holder.source {
                RoleSource::Setting => format!("{link} ({setting})"),
                RoleSource::Usual => link.to_owned(),
                RoleSource::Detected => format!("{link} (detected)"),
            },
        ),
    }
}

/// An error with its causes, on one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_s_policy_is_a_conflict_and_nobody_s_is_none() {
        assert_eq!(forward_policy(Some("DROP")).state, State::Conflict);
        assert_eq!(forward_policy(Some("ACCEPT")).state, State::Ok);
        assert_eq!(forward_policy(None).state, State::Ok);
    }

    #[test]
    fn the_data_plane_is_iptables_where_programs_cannot_be() {
        let (fine, lacking) =
            (Check::new("x", State::Ok, "there"), Check::new("y", State::Limited, "not there"));
        let verdict = |setting, ebpf: &[&Check], iptables: &Check| {
            let ebpf: Vec<_> = ebpf.iter().map(|check| (*check).clone()).collect();
            let check = dataplane(setting, &ebpf, iptables);
            (check.state, check.found)
        };
        assert_eq!(verdict(Dataplane::Auto, &[&fine], &fine), (State::Ok, "eBPF".to_owned()));
        let fallback = (State::Ok, "iptables: y: not there".to_owned());
        assert_eq!(verdict(Dataplane::Auto, &[&fine, &lacking], &fine), fallback);
        assert_eq!(verdict(Dataplane::Auto, &[&lacking], &lacking).0, State::Missing);
        assert_eq!(verdict(Dataplane::Ebpf, &[&lacking], &fine).0, State::Missing);
        assert_eq!(verdict(Dataplane::Iptables, &[&fine], &fine).1, "iptables: DATAPLANE is iptables");
    }

    #[test]
    fn only_what_is_missing_makes_a_host_unusable() {
        let check = |state| Check::new("x", state, "found").hint("do this");
        let report = |states: &[State]| Report { checks: states.iter().map(|state| check(*state)).collect() };
        assert!(report(&[State::Ok, State::Limited, State::Conflict]).usable());
        assert!(!report(&[State::Ok, State::Missing]).usable());
        let table = report(&[State::Ok, State::Missing]).table();
        assert_eq!(table.lines().count(), 3, "a hint only where something is wrong: {table}");
        let json: serde_json::Value = serde_json::from_str(&report(&[State::Limited]).json()).unwrap();
        assert_eq!((&json["usable"], &json["checks"][0]["state"]), (&true.into(), &"limited".into()));
    }
}
