//! `id-ctrl` and `id-ns`: the fields of two structures of Identify, by their names in the specification.

use std::fmt::Write as _;

use nvme_proto::wire::identify::{IdentifyController, IdentifyNamespace};
use serde_json::{Map, Value};
use zerocopy::FromBytes;

/// A field: its name, its value, and how people like to read it.
struct Field {
    name: &'static str,
    value: Value,
    text: String,
}

fn number(name: &'static str, value: impl Into<u64>) -> Field {
    let value = value.into();
    Field {
        name,
        value: value.into(),
        text: value.to_string(),
    }
}

/// In hexadecimal for people; nothing set is a plain 0, as nvme-cli has it.
fn bits(name: &'static str, value: impl Into<u64>) -> Field {
    let value = value.into();
    Field {
        name,
        value: value.into(),
        text: match value {
            0 => "0".to_owned(),
            value => format!("{value:#x}"),
        },
    }
}

fn words(name: &'static str, value: String) -> Field {
    Field {
        name,
        text: value.clone(),
        value: value.into(),
    }
}

/// Numbers that JSON readers would round.
fn wide(name: &'static str, value: u128) -> Field {
    Field {
        name,
        value: value.to_string().into(),
        text: value.to_string(),
    }
}

fn hex(name: &'static str, bytes: &[u8]) -> Field {
    words(
        name,
        bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
    )
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
    let fields = vec![
        bits("vid", id.vid.get()),
        bits("ssvid", id.ssvid.get()),
        words("sn", id.sn.to_string()),
        words("mn", id.mn.to_string()),
        words("fr", id.fr.to_string()),
        number("rab", id.rab),
        Field {
            name: "ieee",
            value: ieee.into(),
            text: format!("{ieee:06x}"),
        },
        bits("cmic", id.cmic),
        number("mdts", id.mdts),
        bits("cntlid", id.cntlid.get()),
        bits("ver", id.ver.get()),
        bits("rtd3r", id.rtd3r.get()),
        bits("rtd3e", id.rtd3e.get()),
        bits("oaes", id.oaes.get()),
        bits("ctratt", id.ctratt.get()),
        bits("rrls", id.rrls.get()),
        number("cntrltype", id.cntrltype),
        words("fguid", uuid::Uuid::from_bytes(id.fguid).to_string()),
        number("crdt1", id.crdt1.get()),
        number("crdt2", id.crdt2.get()),
        number("crdt3", id.crdt3.get()),
        bits("nvmsr", id.nvmsr),
        bits("vwci", id.vwci),
        bits("mec", id.mec),
        bits("oacs", id.oacs.get()),
        number("acl", id.acl),
        number("aerl", id.aerl),
        bits("frmw", id.frmw),
        bits("lpa", id.lpa),
        number("elpe", id.elpe),
        number("npss", id.npss),
        bits("avscc", id.avscc),
        bits("apsta", id.apsta),
        number("wctemp", id.wctemp.get()),
        number("cctemp", id.cctemp.get()),
        number("mtfa", id.mtfa.get()),
        number("hmpre", id.hmpre.get()),
        number("hmmin", id.hmmin.get()),
        wide("tnvmcap", id.tnvmcap.get()),
        wide("unvmcap", id.unvmcap.get()),
        bits("rpmbs", id.rpmbs.get()),
        number("edstt", id.edstt.get()),
        number("dsto", id.dsto),
        number("fwug", id.fwug),
        number("kas", id.kas.get()),
        bits("hctma", id.hctma.get()),
        number("mntmt", id.mntmt.get()),
        number("mxtmt", id.mxtmt.get()),
        bits("sanicap", id.sanicap.get()),
        number("hmminds", id.hmminds.get()),
        number("hmmaxd", id.hmmaxd.get()),
        number("nsetidmax", id.nsetidmax.get()),
        number("endgidmax", id.endgidmax.get()),
        number("anatt", id.anatt),
        bits("anacap", id.anacap),
        number("anagrpmax", id.anagrpmax.get()),
        number("nanagrpid", id.nanagrpid.get()),
        number("pels", id.pels.get()),
        number("domainid", id.domain_identifier.get()),
        wide("megcap", id.megcap.get()),
        bits("sqes", id.sqes),
        bits("cqes", id.cqes),
        number("maxcmd", id.maxcmd.get()),
        number("nn", id.nn.get()),
        bits("oncs", id.oncs.get()),
        bits("fuses", id.fuses.get()),
        bits("fna", id.fna),
        bits("vwc", id.vwc),
        number("awun", id.awun.get()),
        number("awupf", id.awupf.get()),
        number("icsvscc", id.icsvscc),
        number("nwpc", id.nwpc),
        number("acwu", id.acwu.get()),
        bits("cdfs", id.cdfs.get()),
        bits("sgls", id.sgls.get()),
        number("mnan", id.mnan.get()),
        wide("maxdna", id.maxdna.get()),
        number("maxcna", id.maxcna.get()),
        words("subnqn", subnqn),
        number("ioccsz", id.ioccsz.get()),
        number("iorcsz", id.iorcsz.get()),
        number("icdoff", id.icdoff.get()),
        bits("fcatt", id.fcatt),
        number("msdbd", id.msdbd),
        bits("ofcs", id.ofcs.get()),
        number("dctype", id.dctype),
    ];
    render("NVME Identify Controller", fields, json)
}

/// Identify Namespace of the NVM command set.
pub(super) fn namespace(data: &[u8], json: bool) -> String {
    let id = IdentifyNamespace::ref_from_bytes(data).expect("the caller has 4096 bytes");
    let mut fields = vec![
        bits("nsze", id.nsze.get()),
        bits("ncap", id.ncap.get()),
        bits("nuse", id.nuse.get()),
        bits("nsfeat", id.nsfeat),
        number("nlbaf", id.nlbaf),
        bits("flbas", id.flbas),
        bits("mc", id.mc),
        bits("dpc", id.dpc),
        bits("dps", id.dps),
        bits("nmic", id.nmic),
        bits("rescap", id.rescap),
        bits("fpi", id.fpi),
        bits("dlfeat", id.dlfeat),
        number("nawun", id.nawun.get()),
        number("nawupf", id.nawupf.get()),
        number("nacwu", id.nacwu.get()),
        number("nabsn", id.nabsn.get()),
        number("nabo", id.nabo.get()),
        number("nabspf", id.nabspf.get()),
        number("noiob", id.noiob.get()),
        wide("nvmcap", id.nvmcap.get()),
        number("npwg", id.npwg.get()),
        number("npwa", id.npwa.get()),
        number("npdg", id.npdg.get()),
        number("npda", id.npda.get()),
        number("nows", id.nows.get()),
        number("mssrl", id.mssrl.get()),
        number("mcl", id.mcl.get()),
        number("msrc", id.msrc),
        number("anagrpid", id.anagrpid.get()),
        bits("nsattr", id.nsattr),
        number("nvmsetid", id.nvmsetid.get()),
        number("endgid", id.endgid.get()),
        hex("nguid", &id.nguid.0),
        hex("eui64", &id.eui64.0),
    ];
    let in_use = id.format();
    let formats: Vec<Value> = id.lbaf[..=usize::from(id.nlbaf).min(id.lbaf.len() - 1)]
        .iter()
        .map(|format| serde_json::json!({ "ms": format.ms.get(), "ds": format.lbads, "rp": format.rp & 3 }))
        .collect();
    let text = format!(
        "{} formats; in use: blocks of {} bytes, {} bytes of metadata",
        formats.len(),
        in_use
            .block_size_bytes()
            .map_or("an impossible number of".to_owned(), |bytes| bytes
                .to_string()),
        in_use.ms.get()
    );
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
    use zerocopy::IntoBytes;

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
