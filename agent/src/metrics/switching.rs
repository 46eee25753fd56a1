//! Series of the VLAN filter: bounded by what is configured, a port times its VLANs.

use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;

use super::{Labels, counters, gauges};
use crate::{
    engine::{PortLabel, Switching},
    kernel::switch::DropCount,
};

pub(super) fn encode(out: &mut DescriptorEncoder<'_>, measured: &Switching) -> fmt::Result {
    let Switching { vlans, drops, not_learned, stations } = measured;
    let port = |label: &PortLabel| -> Labels {
        vec![("bridge", label.bridge.clone()), ("port", label.port.clone())]
    };
    let with = |label: &PortLabel, name: &'static str, value: String| -> Labels {
        let mut labels = port(label);
        labels.push((name, value));
        labels
    };
    let both = |pick: fn(&crate::kernel::switch::VlanCounters) -> (u64, u64)| {
        vlans.iter().flat_map(move |(label, counters)| {
            let (rx, tx) = pick(counters);
            let labels = |direction: &str| {
                let mut labels = with(label, "vlan", counters.vlan.to_string());
                labels.push(("direction", direction.to_owned()));
                labels
            };
            [(labels("rx"), rx), (labels("tx"), tx)]
        })
    };
    counters(
        out,
        "vlan_packets",
        "Frames of a VLAN that came in through a port (rx) or left through it (tx)",
        both(|counters| (counters.rx_packets, counters.tx_packets)),
    )?;
    counters(
        out,
        "vlan_bytes",
        "Bytes of these frames",
        both(|counters| (counters.rx_bytes, counters.tx_bytes)),
    )?;
    let drops = drops.iter().flat_map(|(label, reasons)| {
        reasons.iter().map(|DropCount { vlan, reason, count }| {
            let vlan = vlan.map_or_else(|| "none".to_owned(), |vlan| vlan.to_string());
            let mut labels = with(label, "vlan", vlan);
            labels.push(("reason", reason.name().to_owned()));
            (labels, *count)
        })
    });
    counters(
        out,
        "vlan_dropped_packets",
        "Frames that the VLAN filter dropped on a port; vlan is none where the port is not in the frame's",
        drops,
    )?;
    let not_learned = not_learned.iter().map(|(label, count)| (port(label), *count));
    counters(out, "vlan_not_learned", "Frames whose sender there was no room to remember", not_learned)?;
    let stations = stations.iter().map(|(label, count)| (port(label), *count));
    gauges(out, "vlan_stations", "Stations that are known on a port", stations)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use telecluster_common::vlan::VlanDrop;

    use super::*;
    use crate::{
        engine::Measurements,
        kernel::switch::VlanCounters,
        metrics::{HttpMetrics, render, tests::sample},
    };

    #[test]
    fn ports_have_series_by_vlan_and_by_reason() {
        let label = PortLabel { bridge: "br-vm".into(), port: "tap-vm1".into() };
        let counters =
            VlanCounters { port: 5, vlan: 100, rx_packets: 1, rx_bytes: 60, tx_packets: 2, tx_bytes: 120 };
        let switching = Switching {
            vlans: vec![(label.clone(), counters)],
            drops: vec![(
                label.clone(),
                vec![
                    DropCount { vlan: None, reason: VlanDrop::NotMember, count: 3 },
                    DropCount { vlan: Some(100), reason: VlanDrop::SamePort, count: 6 },
                ],
            )],
            not_learned: vec![(label.clone(), 4)],
            stations: vec![(label, 5)],
        };
        let measured = Measurements { switching, ..sample() };
        let text = render(measured, &HttpMetrics::default(), Duration::ZERO).unwrap();
        for line in [
            r#"telecluster_vlan_packets_total{bridge="br-vm",port="tap-vm1",vlan="100",direction="rx"} 1"#,
            r#"telecluster_vlan_bytes_total{bridge="br-vm",port="tap-vm1",vlan="100",direction="tx"} 120"#,
            r#"telecluster_vlan_dropped_packets_total{bridge="br-vm",port="tap-vm1",vlan="none",reason="not_member"} 3"#,
            r#"telecluster_vlan_dropped_packets_total{bridge="br-vm",port="tap-vm1",vlan="100",reason="same_port"} 6"#,
            r#"telecluster_vlan_not_learned_total{bridge="br-vm",port="tap-vm1"} 4"#,
            r#"telecluster_vlan_stations{bridge="br-vm",port="tap-vm1"} 5"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nis not in\n{text}");
        }
    }
}
