//! `/network/status`: the machine that the worker runs on, in figures.

use std::{io, path::PathBuf, time::SystemTime};

use axum::{Json, extract::State};
use nix::sys::statvfs::statvfs;
use procfs::Current as _;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App,
    error::{Refusal, Refusals},
    health::{self, Verdict},
};
use crate::{
    error::{Code, Error},
    model::roles::RolesView,
    permissions::Permissions,
};

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(network_status))
}

/// How much of memory or disk may be in use before someone should look, in percent.
const FULL: f64 = 95.0;

/// The verdict over worker and machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Level {
    Healthy,
    /// It works, and someone should look.
    Warning,
    /// The worker cannot do its work.
    Critical,
    /// The machine cannot be looked at.
    Error,
}

/// The machine in figures.
#[derive(Debug, Serialize, ToSchema)]
pub struct MachineStatus {
    status: Level,
    /// Why it is not healthy.
    problems: Vec<String>,
    /// Now, RFC 3339.
    #[schema(format = DateTime)]
    timestamp: String,
    /// Seconds since the machine started.
    uptime: u64,
    /// Seconds since the worker started.
    worker_uptime: u64,
    system_info: SystemInfo,
    network_info: NetworkInfo,
    /// Null when it does not answer.
    dataplane: Option<DataplaneInfo>,
    /// Which link is the uplink, and so on. Null when the kernel does not answer.
    roles: Option<RolesView>,
}

/// What does the NAT.
#[derive(Debug, Serialize, ToSchema)]
struct DataplaneInfo {
    /// ebpf or iptables.
    backend: String,
    /// Why it is this one.
    reason: String,
    /// What it does not do as the eBPF programs do it.
    differences: Vec<String>,
    /// The ports of the fast path and of bridges with VLANs, and whether programs are in their drivers (native XDP).
    xdp: Vec<XdpInfo>,
    /// Packets that were sent on there.
    xdp_packets: u64,
}

/// A program in the driver of an interface.
#[derive(Debug, Serialize, ToSchema)]
struct XdpInfo {
    #[schema(example = "ens3")]
    interface: String,
    mode: XdpModeInfo,
    /// Why it is this one.
    reason: String,
}

#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum XdpModeInfo {
    /// In the driver; everything else behind it.
    Native,
    /// Behind the driver.
    Off,
}

/// Sizes in bytes.
#[derive(Debug, Default, Clone, PartialEq, Serialize, ToSchema)]
struct SystemInfo {
    hostname: String,
    /// System and kernel release.
    #[schema(example = "Linux 6.12.43")]
    platform: String,
    #[schema(example = "x86_64")]
    architecture: String,
    cpu_count: usize,
    memory_total: u64,
    memory_available: u64,
    disk_usage: DiskUsage,
}

/// The file system that the worker's state is on. Sizes in bytes.
#[derive(Debug, Default, Clone, PartialEq, Serialize, ToSchema)]
struct DiskUsage {
    path: String,
    total: u64,
    used: u64,
    free: u64,
    percent: f64,
}

#[derive(Debug, Default, Clone, PartialEq, Serialize, ToSchema)]
struct NetworkInfo {
    interface_count: usize,
    bridge_count: usize,
    /// TCP and UDP sockets of the host, both families, listening ones too.
    network_connections: usize,
    network_io: NetworkIo,
}

/// Sums over all interfaces but loopback, since they were made.
#[derive(Debug, Default, Clone, PartialEq, Serialize, ToSchema)]
struct NetworkIo {
    bytes_sent: u64,
    bytes_recv: u64,
    packets_sent: u64,
    packets_recv: u64,
    errin: u64,
    errout: u64,
    dropin: u64,
    dropout: u64,
}

/// What is read from `/proc`.
#[derive(Debug, Default, Clone, PartialEq)]
struct Machine {
    uptime: u64,
    system: SystemInfo,
    connections: usize,
    io: NetworkIo,
}

/// The machine in figures
#[utoipa::path(
    get, path = "/network/status", tag = "network",
    responses((status = 200, description = "The machine, now", body = MachineStatus), Refusals),
)]
async fn network_status(State(app): State<App>) -> Result<Json<MachineStatus>, Refusal> {
    let measured = app.engine.measurements(0).await;
    let permissions = Permissions::current()
        .map_err(|why| Error::new(Code::Internal, format!("/proc/self/status: {why}")))?;
    let (verdict, problems) = health::judge(&measured, permissions);
    let state_dir = app.options.state_dir.clone();
    // /proc/net is long on a busy machine.
    let machine = tokio::task::spawn_blocking(move || Machine::read(state_dir)).await;
    let machine = machine.unwrap_or_else(|error| Err(io::Error::other(error)));
    let (status, problems) = judge(verdict, problems, &machine);
    let Machine { uptime, system, connections, io } = machine.unwrap_or_default();
    let (interface_count, bridge_count) =
        measured.as_ref().map(|measured| (measured.interfaces, measured.bridges)).unwrap_or_default();
    let roles = app.engine.roles().await.ok();
    let dataplane = measured.ok().map(|measured| DataplaneInfo {
        backend: measured.backend.to_owned(),
        reason: measured.backend_reason,
        differences: measured.backend_differences.iter().map(|text| (*text).to_owned()).collect(),
        xdp_packets: measured.xdp.packets,
        xdp: (measured.xdp.ports.into_iter())
            .map(|(interface, native, reason)| XdpInfo {
                interface,
                mode: if native { XdpModeInfo::Native } else { XdpModeInfo::Off },
                reason,
            })
            .collect(),
    });
    Ok(Json(MachineStatus {
        status,
        problems,
        timestamp: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        uptime,
        worker_uptime: app.started.elapsed().as_secs(),
        system_info: system,
        network_info: NetworkInfo {
            interface_count,
            bridge_count,
            network_connections: connections,
            network_io: io,
        },
        dataplane,
        roles,
    }))
}

fn judge(verdict: Verdict, mut problems: Vec<String>, machine: &io::Result<Machine>) -> (Level, Vec<String>) {
    let mut level = match verdict {
        Verdict::Healthy => Level::Healthy,
        Verdict::Degraded => Level::Warning,
        Verdict::Unhealthy => Level::Critical,
    };
    match machine {
        Ok(Machine { system: SystemInfo { memory_total, memory_available, disk_usage, .. }, .. }) => {
            let used = percent(memory_total.saturating_sub(*memory_available), *memory_total);
            if used >= FULL {
                problems.push(format!("{used} % of the memory is in use"));
                level = level.max(Level::Warning);
            }
            if disk_usage.percent >= FULL {
                problems.push(format!(
                    "{} % of the disk under {} is in use",
                    disk_usage.percent, disk_usage.path
                ));
                level = level.max(Level::Warning);
            }
        }
        Err(error) => {
            problems.push(format!("the machine cannot be looked at: {error}"));
            level = level.max(Level::Error);
        }
    }
    (level, problems)
}

impl Machine {
    fn read(state_dir: PathBuf) -> io::Result<Self> {
        let kernel = nix::sys::utsname::uname()?;
        let text = |value: &std::ffi::OsStr| value.to_string_lossy().into_owned();
        let memory = procfs::Meminfo::current().map_err(io::Error::other)?;
        let cpus = procfs::CpuInfo::current().map_err(io::Error::other)?;
        let uptime = procfs::Uptime::current().map_err(io::Error::other)?;
        Ok(Self {
            uptime: uptime.uptime_duration().as_secs(),
            system: SystemInfo {
                hostname: text(kernel.nodename()),
                platform: format!("{} {}", text(kernel.sysname()), text(kernel.release())),
                architecture: text(kernel.machine()),
                cpu_count: cpus.num_cores(),
                memory_total: memory.mem_total,
                // Since Linux 3.14; free memory is the least that it can be.
                memory_available: memory.mem_available.unwrap_or(memory.mem_free),
                disk_usage: DiskUsage::of(state_dir)?,
            },
            connections: connections()?,
            io: NetworkIo::read()?,
        })
    }
}

impl DiskUsage {
    /// Of the file system of a path, or of the nearest directory above it that is there.
    fn of(mut path: PathBuf) -> io::Result<Self> {
        let stat = loop {
            match statvfs(&path) {
                Err(nix::errno::Errno::ENOENT) if path.pop() => {}
                stat => break stat?,
            }
        };
        let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
        let (total, free, available) =
            (bytes(stat.blocks()), bytes(stat.blocks_free()), bytes(stat.blocks_available()));
        let used = total.saturating_sub(free);
        Ok(Self {
            path: path.display().to_string(),
            total,
            used,
            free: available,
            // As df: of what is not reserved for root.
            percent: percent(used, used.saturating_add(available)),
        })
    }
}

impl NetworkIo {
    fn read() -> io::Result<Self> {
        Ok(Self::sum(&std::fs::read("/proc/thread-self/net/dev")?))
    }

    /// As bytes: a name need not be text. It has no colon, and two lines of headings have no numbers.
    fn sum(table: &[u8]) -> Self {
        let mut sum = Self::default();
        for line in table.split(|byte| *byte == b'\n') {
            let mut parts = line.splitn(2, |byte| *byte == b':');
            let (Some(name), Some(numbers)) = (parts.next(), parts.next()) else { continue };
            let numbers = String::from_utf8_lossy(numbers);
            let numbers: Vec<u64> = numbers.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            // Received: bytes, packets, errors, drops, and four more; then the same, sent.
            let [br, pr, er, dr, _, _, _, _, bs, ps, es, ds, ..] = numbers[..] else { continue };
            if name.trim_ascii() == b"lo" {
                continue;
            }
            sum.bytes_recv += br;
            sum.packets_recv += pr;
            sum.errin += er;
            sum.dropin += dr;
            sum.bytes_sent += bs;
            sum.packets_sent += ps;
            sum.errout += es;
            sum.dropout += ds;
        }
        sum
    }
}

/// Lines of the socket tables; a family that the kernel does not have has none.
fn connections() -> io::Result<usize> {
    let mut count = 0;
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        match std::fs::read(format!("/proc/thread-self/net/{table}")) {
            Ok(text) => {
                count += text.split(|byte| *byte == b'\n').skip(1).filter(|line| !line.is_empty()).count()
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

/// To a tenth.
#[expect(clippy::cast_precision_loss, reason = "a tenth of a percent needs ten bits")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (part as f64 * 1000.0 / whole as f64).round() / 10.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory_processors_and_a_disk() {
        let machine = Machine::read("/no/such/directory".into()).unwrap();
        let SystemInfo { memory_total, memory_available, cpu_count, disk_usage, platform, .. } =
            machine.system;
        assert!(memory_total > memory_available && memory_available > 0);
        assert!(cpu_count > 0 && machine.uptime > 0);
        assert_eq!(disk_usage.path, "/");
        assert!(disk_usage.total >= disk_usage.used + disk_usage.free);
        assert!(platform.starts_with("Linux "), "{platform}");
    }

    #[test]
    fn what_interfaces_have_carried_is_summed_whatever_they_are_called() {
        let table = b"Inter-|   Receive  |  Transmit\n face |bytes packets errs\n    lo: 9 9 9 9 0 0 0 0 9 9 9 9 0 0 0 0\n\
            caf\xe9: 1 2 3 4 0 0 0 0 5 6 7 8 0 0 0 0\n  ens3:10 20 30 40 0 0 0 0 50 60 70 80 0 0 0 0\n";
        let sum =
            NetworkIo { bytes_recv: 11, packets_recv: 22, errin: 33, dropin: 44, ..NetworkIo::default() };
        let sum = NetworkIo { bytes_sent: 55, packets_sent: 66, errout: 77, dropout: 88, ..sum };
        assert_eq!(NetworkIo::sum(table), sum);
    }

    #[test]
    fn a_full_disk_or_memory_is_a_warning_and_never_hides_worse() {
        let full = Machine {
            system: SystemInfo {
                memory_total: 100,
                memory_available: 1,
                disk_usage: DiskUsage { percent: 97.0, ..DiskUsage::default() },
                ..SystemInfo::default()
            },
            ..Machine::default()
        };
        let (level, problems) = judge(Verdict::Healthy, vec![], &Ok(full.clone()));
        assert_eq!((level, problems.len()), (Level::Warning, 2));
        assert_eq!(judge(Verdict::Unhealthy, vec![], &Ok(full)).0, Level::Critical);
        let lost = Err(io::Error::other("no /proc"));
        assert_eq!(judge(Verdict::Healthy, vec![], &lost).0, Level::Error);
    }
}
