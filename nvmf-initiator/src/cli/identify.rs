//! `id-ctrl` and `id-ns`: the fields of two structures of Identify, by their names in the specification.

use std::fmt::Write as _;

use nvme_proto::wire::identify::{IdentifyController, IdentifyNamespace};
use serde_json::{Map, Value};
use zerocopy::little_endian::U128;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A field: its name, its value, and how people like to read it.
struct Field {
    name: &'static str,
    value: Value,
    text: String,
}

fn number(name: &'static str, value: &(impl Into<u64> + Copy)) -> Field {
    let value: u64 = (*value).into();
    Field {
        name,
        value: value.into(),
        text: value.to_string(),
    }
}

/// In hexadecimal for people; nothing set is a plain 0, as nvme-cli has it.
fn bits(name: &'static str, value: &(impl Into<u64> + Copy)) -> Field {
    let value: u64 = (*value).into();
    Field {
        name,
        value: value.into(),
        text: match value {
            0 => "0".to_owned(),
            value => format!("{value:#x}"),
        },
    }
}

fn words(name: &'static str, value: &impl ToString) -> Field {
    Field {
        name,
        text: value.to_string(),
        value: value.to_string().into(),
    }
}

/// Numbers that JSON readers would round.
fn wide(name: &'static str, value: &U128) -> Field {
    words(name, &value.get())
}

fn hex(name: &'static str, value: &(impl IntoBytes + Immutable)) -> Field {
    let digits = value.as_bytes().iter().map(|byte| format!("{byte:02x}"));
    words(name, &digits.collect::<String>())
}

/// Fields that are called as in the specification: how to show them, and which.
macro_rules! fields {
    ($of:ident: $($show:ident($($name:ident),+)),+ $(,)?) => {
        [$($($show(stringify!($name), &$of.$name)),+),+]
    };
}

fn render(title: &str, fields: Vec<Field>, json: bool) -> String {
    if json {
        let map: Map<String, Value> = fields
            .into_iter()
            .map(|field| (field.name.to_owned(), field.value))
            .collect();
        return format!("{:#}\n", Value::Object(map));
    }
    let mut text = format!("{title}:\n");
    for field in fields {
        let _ = writeln!(text, "{:9} : {}", field.name, field.text);
    }
    text
}

/// Identify Controller.
pub(super) fn controller(data: &[u8], json: bool) -> String {
    let id = IdentifyController::ref_from_bytes(data).expect("the caller has 4096 bytes");
    let nqn_end = id
        .subnqn
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(id.subnqn.len());
    let subnqn = String::from_utf8_lossy(&id.subnqn[..nqn_end])
        .escape_default()
        .to_string();
    let ieee = u32::from_le_bytes([id.ieee[0], id.ieee[1], id.ieee[2], 0]);
    let mut fields = Vec::from(fields![id:
        bits(vid, ssvid),
        words(sn, mn, fr),
        number(rab),
    ]);
    fields.push(Field {
        name: "ieee",
        value: ieee.into(),
        text: format!("{ieee:06x}"),
    });
    fields.extend(fields![id:
        bits(cmic),
        number(mdts),
        bits(cntlid, ver, rtd3r, rtd3e, oaes, ctratt, rrls),
        number(cntrltype),
    ]);
    fields.push(words("fguid", &uuid::Uuid::from_bytes(id.fguid)));
    fields.extend(fields![id:
        number(crdt1, crdt2, crdt3),
        bits(nvmsr, vwci, mec, oacs),
        number(acl, aerl),
        bits(frmw, lpa),
        number(elpe, npss),
        bits(avscc, apsta),
        number(wctemp, cctemp, mtfa, hmpre, hmmin),
        wide(tnvmcap, unvmcap),
        bits(rpmbs),
        number(edstt, dsto, fwug, kas),
        bits(hctma),
        number(mntmt, mxtmt),
        bits(sanicap),
        number(hmminds, hmmaxd, nsetidmax, endgidmax, anatt),
        bits(anacap),
        number(anagrpmax, nanagrpid, pels),
    ]);
    fields.push(number("domainid", &id.domain_identifier));
    fields.extend(fields![id:
        wide(megcap),
        bits(sqes, cqes),
        number(maxcmd, nn),
        bits(oncs, fuses, fna, vwc),
        number(awun, awupf, icsvscc, nwpc, acwu),
        bits(cdfs, sgls),
        number(mnan),
        wide(maxdna),
        number(maxcna),
    ]);
    fields.push(words("subnqn", &subnqn));
    fields.extend(fields![id:
        number(ioccsz, iorcsz, icdoff),
        bits(fcatt),
        number(msdbd),
        bits(ofcs),
        number(dctype),
    ]);
    render("NVME Identify Controller", fields, json)
}

/// Identify Namespace of the NVM command set.
pub(super) fn namespace(data: &[u8], json: bool) -> String {
    let id = IdentifyNamespace::ref_from_bytes(data).expect("the caller has 4096 bytes");
    let mut fields = Vec::from(fields![id:
        bits(nsze, ncap, nuse, nsfeat),
        number(nlbaf),
        bits(flbas, mc, dpc, dps, nmic, rescap, fpi, dlfeat),
        number(nawun, nawupf, nacwu, nabsn, nabo, nabspf, noiob),
        wide(nvmcap),
        number(npwg, npwa, npdg, npda, nows, mssrl, mcl, msrc, anagrpid),
        bits(nsattr),
        number(nvmsetid, endgid),
        hex(nguid, eui64),
    ]);
    let in_use = id.format();
    let formats: Vec<Value> = id.lbaf[..=usize::from(id.nlbaf).min(id.lbaf.len() - 1)]
        .iter()
        .map(|format| serde_json::json!({ "ms": format.ms.get(), "ds": format.lbads, "rp": format.rp & 3 }))
        .collect();
    let text = match in_use.block_size_bytes() {
        // What a controller answers for a namespace that it has not.
        _ if data.iter().all(|byte| *byte == 0) => "none: there is no active namespace".to_owned(),
        None => format!(
            "{} formats; that in use has an impossible block size",
            formats.len()
        ),
        Some(bytes) => format!(
            "{} formats; in use: blocks of {bytes} bytes, {} bytes of metadata",
            formats.len(),
            in_use.ms.get()
        ),
    };
    fields.push(Field {
        name: "lbafs",
        value: Value::Array(formats),
        text,
    });
    render("NVME Identify Namespace", fields, json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn controller_fields_are_named() {
        let mut id = IdentifyController::zeroed();
        id.nn.set(1024);
        id.oncs.set(0x5f);
        id.subnqn[..3].copy_from_slice(b"nqn");
        let text = controller(id.as_bytes(), false);
        assert!(
            text.contains("nn        : 1024\n") && text.contains("oncs      : 0x5f\n"),
            "{text}"
        );
        let value: Value = serde_json::from_str(&controller(id.as_bytes(), true)).unwrap();
        assert_eq!(
            (&value["nn"], &value["subnqn"]),
            (&Value::from(1024), &Value::from("nqn"))
        );
    }

    #[test]
    fn namespace_formats_are_listed() {
        let mut id = IdentifyNamespace::zeroed();
        id.nsze.set(2048);
        id.nlbaf = 1;
        id.lbaf[0].lbads = 9;
        id.lbaf[1].lbads = 12;
        let text = namespace(id.as_bytes(), false);
        assert!(
            text.contains("nsze      : 0x800\n")
                && text.contains("2 formats; in use: blocks of 512"),
            "{text}"
        );
        let value: Value = serde_json::from_str(&namespace(id.as_bytes(), true)).unwrap();
        assert_eq!(value["lbafs"][1]["ds"], 12);
        // A controller that claims more formats than the structure holds must not end this program.
        id.nlbaf = 255;
        namespace(id.as_bytes(), true);
    }
}
