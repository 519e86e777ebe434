//! What commands print: as nvme-cli words it for people, and JSON for programs.

use std::fmt::Write as _;

use nvme_proto::wire::log::{Eflags, Treq};
use serde_json::{Value, json};

use crate::core::discovery::{DiscoveryLog, DiscoveryRecord, Specific};
use crate::daemon::api::{ControllerStatus, NamespaceStatus};

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// What `connect` says: one line for each namespace, the device first.
pub(super) fn connected(status: &ControllerStatus, json: bool) -> String {
    if json {
        return pretty(&json!(status));
    }
    let mut text = String::new();
    for ns in &status.namespaces {
        if ns.problem.is_some() && ns.device.is_none() {
            continue;
        }
        let _ = match &ns.device {
            Some(device) => {
                let path = || device.display().to_string();
                writeln!(
                    text,
                    "{} ({}, {} namespace {})",
                    ns.uri.clone().unwrap_or_else(path),
                    ns.block,
                    status.name,
                    ns.nsid
                )
            }
            None => writeln!(text, "{} namespace {} (no device)", status.name, ns.nsid),
        };
    }
    if status.namespaces.is_empty() {
        let _ = writeln!(text, "{} (no namespaces)", status.name);
    }
    text
}

/// What `disconnect` says.
pub(super) fn disconnected(names: &[String], json: bool) -> String {
    if json {
        return pretty(&json!({ "disconnected": names }));
    }
    match names.len() {
        1 => format!("disconnected {}\n", names[0]),
        count => format!("disconnected {count} controllers\n"),
    }
}

/// What `list` says.
pub(super) fn list(controllers: &[ControllerStatus], json: bool) -> String {
    if json {
        // What nvme-cli's users read, and what there is to know here.
        let devices = controllers.iter().flat_map(devices).collect::<Vec<_>>();
        return pretty(&json!({ "Devices": devices, "controllers": controllers }));
    }
    let mut rows = vec![
        [
            "Device",
            "Name",
            "NSID",
            "Size",
            "Format",
            "Form",
            "State",
            "Subsystem",
        ]
        .map(str::to_owned),
    ];
    for controller in controllers {
        for ns in &controller.namespaces {
            rows.push(row(controller, ns));
        }
        if controller.namespaces.is_empty() {
            let none = || "-".to_owned();
            let (name, state) = (controller.name.clone(), controller.state.clone());
            rows.push([
                none(),
                name,
                none(),
                none(),
                none(),
                none(),
                state,
                controller.subnqn.clone(),
            ]);
        }
    }
    table(&rows)
}

/// The devices of a controller, under the names that `nvme list -o json` gives to the same things. Its UsedBytes is left out: that
/// changes with every write, and would have to be asked for.
fn devices(controller: &ControllerStatus) -> impl Iterator<Item = Value> {
    // What has a URI is a socket.
    let disks = controller.namespaces.iter().filter(|ns| ns.uri.is_none());
    disks.filter_map(|ns| {
        let blocks = ns.size_bytes / u64::from(ns.block_bytes.max(1));
        Some(json!({
            "NameSpace": ns.nsid,
            "DevicePath": ns.device.as_ref()?,
            "Firmware": controller.firmware,
            "ModelNumber": controller.model,
            "SerialNumber": controller.serial,
            "MaximumLBA": blocks,
            "PhysicalSize": ns.size_bytes,
            "SectorSize": ns.block_bytes,
        }))
    })
}

fn row(controller: &ControllerStatus, ns: &NamespaceStatus) -> [String; 8] {
    let format = format!(
        "{} B{}",
        ns.block_bytes,
        if ns.read_only { ", read only" } else { "" }
    );
    [
        ns.device
            .as_ref()
            .map_or("-".to_owned(), |device| device.display().to_string()),
        controller.name.clone(),
        ns.nsid.to_string(),
        size(ns.size_bytes),
        format,
        ns.block.clone(),
        ns.problem
            .clone()
            .unwrap_or_else(|| controller.state.clone()),
        controller.subnqn.clone(),
    ]
}

/// Columns as wide as their widest cell.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// In powers of 1000, as nvme-cli counts.
fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{value:.2} {}", UNITS[unit])
    }
}

/// What `discover` says.
pub(super) fn discovered(logs: &[DiscoveryLog], json: bool) -> String {
    if json {
        let log = |log: &DiscoveryLog| {
            json!({
                "address": log.address.to_string(),
                "genctr": log.genctr,
                "records": log.records.iter().map(record_json).collect::<Vec<_>>(),
            })
        };
        // As nvme-cli has it for one log; with referrals, all of them.
        return match logs {
            [one] => pretty(&log(one)),
            all => pretty(&Value::Array(all.iter().map(log).collect())),
        };
    }
    let mut text = String::new();
    for log in logs {
        if logs.len() > 1 {
            let _ = writeln!(text, "Discovery service {}", log.address);
        }
        let count = log.records.len();
        let _ = writeln!(
            text,
            "\nDiscovery Log Number of Records {count}, Generation counter {}",
            log.genctr
        );
        for (index, record) in log.records.iter().enumerate() {
            let _ = writeln!(text, "=====Discovery Log Entry {index}======");
            for (name, value) in record_fields(record) {
                let _ = writeln!(text, "{:8} {value}", format!("{name}:"));
            }
        }
    }
    text
}

fn record_fields(record: &DiscoveryRecord) -> Vec<(&'static str, String)> {
    let mut fields = vec![
        ("trtype", record.trtype.to_string()),
        ("adrfam", record.adrfam.to_string()),
        ("subtype", record.subtype.to_string()),
        ("treq", treq(record.treq)),
        ("portid", record.portid.to_string()),
        ("trsvcid", record.trsvcid.clone()),
        ("subnqn", record.subnqn.clone()),
        ("traddr", record.traddr.clone()),
        ("eflags", eflags(record.eflags)),
    ];
    match &record.specific {
        Specific::Tcp(security) => fields.push(("sectype", security.to_string())),
        Specific::Rdma(rdma) => fields.extend([
            ("rdma_prtype", rdma.prtype_name().to_owned()),
            ("rdma_qptype", rdma.qptype_name().to_owned()),
            ("rdma_cms", rdma.cms_name().to_owned()),
            ("rdma_pkey", format!("{:#06x}", rdma.pkey)),
        ]),
        Specific::Unknown => {}
    }
    fields
}

fn record_json(record: &DiscoveryRecord) -> Value {
    let mut value = serde_json::Map::new();
    for (name, text) in record_fields(record) {
        value.insert(name.to_owned(), Value::String(text));
    }
    value.insert("portid".to_owned(), record.portid.into());
    Value::Object(value)
}

fn treq(treq: Treq) -> String {
    let secure = match treq.secure_channel() {
        Treq::SECURE_REQUIRED => "required",
        Treq::SECURE_NOT_REQUIRED => "not required",
        _ => "not specified",
    };
    let flow = if treq.can_disable_sq_flow_control() {
        ", sq flow control disable supported"
    } else {
        ""
    };
    format!("{secure}{flow}")
}

/// The first two as nvme-cli words them; it has no words for the third.
fn eflags(eflags: Eflags) -> String {
    if eflags.is_empty() {
        return "none".to_owned();
    }
    let words = [
        (
            Eflags::DUPLICATE_INFORMATION,
            "duplicate discovery information",
        ),
        (
            Eflags::PERSISTENT_CONNECTION,
            "explicit discovery connections",
        ),
        (Eflags::NO_CDC_CONNECTIVITY, "no CDC connectivity"),
    ];
    let set = words.iter().filter(|(flag, _)| eflags.contains(*flag));
    set.map(|(_, word)| *word).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::namespace::NamespaceIdentity;

    fn controller() -> ControllerStatus {
        ControllerStatus {
            name: "nvmf0".into(),
            subnqn: "nqn.x".into(),
            address: "tcp://h:1".into(),
            hostnqn: "nqn.h".into(),
            state: "live".into(),
            cntlid: 1,
            serial: "s".into(),
            model: "m".into(),
            firmware: "f".into(),
            queues: 2,
            namespaces: vec![NamespaceStatus {
                nsid: 1,
                identity: NamespaceIdentity::default(),
                size_bytes: 1 << 30,
                block_bytes: 512,
                read_only: true,
                block: "ublk".into(),
                device: Some("/dev/ublkb0".into()),
                uri: None,
                by_id: None,
                problem: None,
            }],
        }
    }

    #[test]
    fn connect_names_the_device_first() {
        assert_eq!(
            connected(&controller(), false),
            "/dev/ublkb0 (ublk, nvmf0 namespace 1)\n"
        );
        let mut other = controller();
        other.namespaces[0].uri = Some("nbd+unix:///n?socket=/s".into());
        other.namespaces[0].block = "nbd-socket".into();
        assert_eq!(
            connected(&other, false),
            "nbd+unix:///n?socket=/s (nbd-socket, nvmf0 namespace 1)\n"
        );
        let mut other = controller();
        other.namespaces[0].device = None;
        assert_eq!(connected(&other, false), "nvmf0 namespace 1 (no device)\n");
        other.namespaces.clear();
        assert_eq!(connected(&other, false), "nvmf0 (no namespaces)\n");
    }

    #[test]
    fn list_is_a_table_or_json() {
        let text = list(&[controller()], false);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].find("NSID"), lines[1].find("1  "), "{text}");
        assert!(
            lines[1].contains("1.07 GB") && lines[1].contains("512 B, read only"),
            "{text}"
        );
        let value: Value = serde_json::from_str(&list(&[controller()], true)).unwrap();
        assert_eq!(
            value["controllers"][0]["namespaces"][0]["device"],
            "/dev/ublkb0"
        );
        assert_eq!(
            value["Devices"],
            json!([{ "NameSpace": 1, "DevicePath": "/dev/ublkb0", "Firmware": "f", "ModelNumber": "m", "SerialNumber": "s",
                     "MaximumLBA": 2_097_152, "PhysicalSize": 1_073_741_824, "SectorSize": 512 }])
        );
        assert_eq!(list(&[], false).lines().count(), 1);
    }

    #[test]
    fn sizes_have_decimal_units() {
        assert_eq!(
            (size(999), size(1000), size(1_610_612_736)),
            ("999 B".into(), "1.00 kB".into(), "1.61 GB".into())
        );
    }
}
