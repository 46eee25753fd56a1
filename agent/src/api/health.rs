//! `/health`: whether the worker can do its work, from checks made now.

use std::{fs, time::SystemTime};

use axum::{
    Json,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    App,
    error::{Refusal, Refusals},
};
use crate::{engine::Measurements, error, permissions::Permissions};

pub fn router() -> OpenApiRouter<App> {
    OpenApiRouter::new().routes(routes!(health))
}

/// The verdict of all checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Healthy,
    /// It works, and someone should look.
    Degraded,
    /// It does not work. Answered with 503.
    Unhealthy,
}

/// Whether the worker can do its work.
#[derive(Debug, Serialize, ToSchema)]
pub struct Health {
    status: Verdict,
    /// Now, RFC 3339.
    #[schema(format = DateTime)]
    timestamp: String,
    version: &'static str,
    /// Seconds since the worker started.
    uptime: u64,
    /// Why it is not healthy.
    problems: Vec<String>,
    environment: Environment,
    permissions: Granted,
    /// Null when it does not answer.
    dataplane: Option<DataplaneHealth>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Environment {
    /// Kernel release.
    kernel: String,
    architecture: String,
    hostname: String,
    /// A BPF file system is where pins go.
    bpffs: bool,
}

#[derive(Debug, Serialize, ToSchema)]
struct Granted {
    root: bool,
    cap_net_admin: bool,
    cap_bpf: bool,
    cap_sys_admin: bool,
    cap_net_raw: bool,
}

#[derive(Debug, Serialize, ToSchema)]
struct DataplaneHealth {
    /// ebpf or iptables.
    backend: String,
    /// Why it is this one.
    reason: String,
    attachments: Vec<AttachmentHealth>,
    rules: usize,
    flows: usize,
    maps: Vec<MapHealth>,
}

#[derive(Debug, Serialize, ToSchema)]
struct AttachmentHealth {
    /// Index of the interface.
    ifindex: u32,
    /// tcx, clsact or iptables.
    mechanism: String,
}

#[derive(Debug, Serialize, ToSchema)]
struct MapHealth {
    map: String,
    entries: u64,
    capacity: u64,
}

/// Whether the worker can do its work
#[utoipa::path(
    get, path = "/health", tag = "root",
    responses(
        (status = 200, description = "It can", body = Health),
        Refusals,
        (status = 503, description = "It cannot", body = Health),
    ),
)]
async fn health(State(app): State<App>) -> Result<Response, Refusal> {
    let measured = app.engine.measurements(0).await;
    let permissions = Permissions::current()
        .map_err(|why| error::Error::new(error::Code::Internal, format!("/proc/self/status: {why}")))?;
    let (status, problems) = judge(&measured, permissions);
    let health = Health {
        status,
        timestamp: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        version: env!("CARGO_PKG_VERSION"),
        uptime: app.started.elapsed().as_secs(),
        problems,
        environment: Environment::now(),
        permissions: permissions.into(),
        dataplane: measured.ok().map(DataplaneHealth::from),
    };
    let code = match status {
        Verdict::Healthy | Verdict::Degraded => StatusCode::OK,
        Verdict::Unhealthy => StatusCode::SERVICE_UNAVAILABLE,
    };
    Ok((code, Json(health)).into_response())
}

/// How full a map may be before someone should look, in percent.
const PRESSURE: u64 = 90;

pub(super) fn judge(
    measured: &error::Result<Measurements>,
    permissions: Permissions,
) -> (Verdict, Vec<String>) {
    let programs = !measured.as_ref().is_ok_and(|measured| measured.backend == "iptables");
    let mut problems: Vec<String> =
        permissions.missing(programs).iter().map(|capability| format!("{capability} is missing")).collect();
    let mut verdict = if problems.is_empty() { Verdict::Healthy } else { Verdict::Unhealthy };
    let measured = match measured {
        Ok(measured) => measured,
        Err(why) => {
            problems.push(why.to_string());
            return (Verdict::Unhealthy, problems);
        }
    };
    let enabled = measured.rules.iter().filter(|(rule, _)| rule.enabled).count();
    if enabled > 0 && measured.attachments.is_empty() {
        problems.push(format!("{enabled} rules, and the programs are attached nowhere"));
        verdict = Verdict::Unhealthy;
    }
    for map in &measured.pressure {
        // u128: the product of two counts must not wrap
        if u128::from(map.entries) * 100 >= u128::from(map.capacity) * u128::from(PRESSURE)
            && map.capacity > 0
        {
            problems.push(format!("map {} holds {} of {} entries", map.map, map.entries, map.capacity));
            verdict = if verdict == Verdict::Healthy { Verdict::Degraded } else { verdict };
        }
    }
    let drifted = measured.drift.iter().map(|(object, problem)| format!("{object}: {problem}"));
    for problem in drifted.chain(measured.overlaps.iter().cloned()) {
        problems.push(problem);
        verdict = if verdict == Verdict::Healthy { Verdict::Degraded } else { verdict };
    }
    (verdict, problems)
}

impl Environment {
    fn now() -> Self {
        let file =
            |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        Self {
            kernel: file("/proc/sys/kernel/osrelease"),
            architecture: std::env::consts::ARCH.to_owned(),
            hostname: file("/proc/sys/kernel/hostname"),
            bpffs: file("/proc/self/mounts").lines().any(|mount| mount.split(' ').nth(2) == Some("bpf")),
        }
    }
}

impl From<Permissions> for Granted {
    fn from(permissions: Permissions) -> Self {
        let Permissions { root, cap_net_admin, cap_bpf, cap_sys_admin, cap_net_raw } = permissions;
        Self { root, cap_net_admin, cap_bpf, cap_sys_admin, cap_net_raw }
    }
}

impl From<Measurements> for DataplaneHealth {
    fn from(measured: Measurements) -> Self {
        let attachments = (measured.attachments.iter())
            .map(|at| AttachmentHealth { ifindex: at.uplink, mechanism: at.mechanism.to_owned() })
            .collect();
        let maps = (measured.pressure.iter())
            .map(|map| MapHealth { map: map.map.to_owned(), entries: map.entries, capacity: map.capacity })
            .collect();
        Self {
            backend: measured.backend.to_owned(),
            reason: measured.backend_reason,
            attachments,
            rules: measured.rules.len(),
            flows: measured.flows.total,
            maps,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        error::{Code, Error},
        kernel::dataplane::MapPressure,
        metrics::tests::sample,
    };

    fn all() -> Permissions {
        Permissions { root: true, cap_net_admin: true, cap_bpf: true, cap_sys_admin: true, cap_net_raw: true }
    }

    #[test]
    fn a_worker_that_can_work_is_healthy() {
        assert_eq!(judge(&Ok(sample()), all()), (Verdict::Healthy, vec![]));
    }

    #[test]
    fn a_data_plane_that_does_not_answer_is_unhealthy() {
        let (verdict, problems) = judge(&Err(Error::new(Code::DataplaneDown, "no programs")), all());
        assert_eq!((verdict, problems.len()), (Verdict::Unhealthy, 1));
    }

    #[test]
    fn rules_without_programs_are_unhealthy() {
        let measured = Measurements { attachments: vec![], ..sample() };
        assert_eq!(judge(&Ok(measured), all()).0, Verdict::Unhealthy);
    }

    #[test]
    fn an_object_that_cannot_be_put_right_is_degraded_and_named() {
        let drift = vec![("port/ens9".to_owned(), "there is no interface ens9".to_owned())];
        let (verdict, problems) = judge(&Ok(Measurements { drift, ..sample() }), all());
        assert_eq!(
            (verdict, problems),
            (Verdict::Degraded, vec!["port/ens9: there is no interface ens9".into()])
        );
    }

    #[test]
    fn a_full_map_is_degraded_and_a_missing_capability_unhealthy() {
        let pressure = vec![MapPressure { map: "flow4", entries: 90, capacity: 100 }];
        let full = Measurements { pressure, ..sample() };
        assert_eq!(judge(&Ok(full.clone()), all()).0, Verdict::Degraded);
        let weak = Permissions { cap_net_admin: false, ..all() };
        let (verdict, problems) = judge(&Ok(full), weak);
        assert_eq!((verdict, problems.len()), (Verdict::Unhealthy, 2));
    }
}
