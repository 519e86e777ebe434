//! Finding out which namespaces a controller has, and what they are.

use nvme_proto::wire::Nsid;
use nvme_proto::wire::identify::flags::{Nsattr, Nsfeat};
use nvme_proto::wire::identify::{
    Cns, Csi, Descriptor, IdentifyNamespace, NamespaceList, descriptors,
};
use uuid::Uuid;
use zerocopy::FromBytes;

use super::association::Association;
use super::error::{AdminError, ConnectError};
use super::namespace::{CommandBounds, NamespaceIdentity, NamespaceInfo};

/// More namespaces than this on one controller are not followed: a controller that lists them without end would keep
/// us busy for ever.
const MAX_NAMESPACES: usize = 4096;

/// Which namespaces of a controller are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// All of them.
    All,
    /// One.
    Only(Nsid),
}

/// The active namespaces, in the order of their NSIDs.
pub(crate) async fn scan(
    association: &Association,
    which: Which,
) -> Result<Vec<NamespaceInfo>, ConnectError> {
    let nsids = match which {
        Which::All => active(association).await?,
        Which::Only(nsid) => vec![nsid],
    };
    let bounds = association.command_bounds().await?;
    let mut found = Vec::with_capacity(nsids.len());
    for nsid in nsids {
        match namespace(association, &bounds, nsid).await {
            Ok(Some(info)) => found.push(info),
            Ok(None) => {}
            // One that cannot be used must not keep the others from being used.
            Err(ConnectError::Unusable(why)) => tracing::warn!(%nsid, why, "namespace left out"),
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

async fn active(association: &Association) -> Result<Vec<Nsid>, ConnectError> {
    let mut nsids: Vec<Nsid> = Vec::new();
    loop {
        let after = nsids.last().copied().unwrap_or(Nsid::NONE);
        let data = association
            .identify_raw(Cns::ACTIVE_NAMESPACES, after)
            .await
            .map_err(|source| ConnectError::Admin {
                command: "Identify (active namespaces)",
                source,
            })?;
        let list = NamespaceList::ref_from_bytes(&data).expect("4096 bytes, as asked for");
        let before = nsids.len();
        for nsid in list.iter() {
            if nsid <= nsids.last().copied().unwrap_or(Nsid::NONE) {
                return Err(ConnectError::Unusable(
                    "its list of active namespaces is not in rising order".into(),
                ));
            }
            nsids.push(nsid);
        }
        if nsids.len() - before < NamespaceList::MAX_ENTRIES {
            return Ok(nsids);
        }
        if nsids.len() >= MAX_NAMESPACES {
            tracing::warn!(
                limit = MAX_NAMESPACES,
                "the controller has more namespaces than are followed"
            );
            return Ok(nsids);
        }
    }
}

/// What the namespace is; `None` when it is not active (any more).
async fn namespace(
    association: &Association,
    bounds: &CommandBounds,
    nsid: Nsid,
) -> Result<Option<NamespaceInfo>, ConnectError> {
    let data = match association.identify_raw(Cns::NAMESPACE, nsid).await {
        Ok(data) => data,
        // It may have gone since the list was read.
        Err(AdminError::Status(status)) if !status.is_path_error() => {
            tracing::debug!(%nsid, %status, "Identify Namespace refused");
            return Ok(None);
        }
        Err(source) => {
            return Err(ConnectError::Admin {
                command: "Identify Namespace",
                source,
            });
        }
    };
    let id = IdentifyNamespace::ref_from_bytes(&data).expect("4096 bytes, as asked for");
    if id.ncap.get() == 0 {
        return Ok(None);
    }
    let format = id.format();
    let block_bytes = match format.block_size_bytes() {
        Some(bytes @ 512..=65536) => bytes,
        _ => {
            return Err(ConnectError::Unusable(format!(
                "namespace {nsid}: blocks of 2^{} bytes",
                format.lbads
            )));
        }
    };
    if format.ms.get() != 0 {
        return Err(ConnectError::Unusable(format!(
            "namespace {nsid}: its format has {} bytes of metadata per block, which this host does not transfer",
            format.ms.get()
        )));
    }
    let blocks = id.nsze.get();
    if blocks.checked_mul(block_bytes.into()).is_none() {
        return Err(ConnectError::Unusable(format!(
            "namespace {nsid}: {blocks} blocks are more than 2^64 bytes"
        )));
    }
    let identity = identity(association, nsid, id).await?;
    let nsfeat = Nsfeat::from_bits_retain(id.nsfeat);
    let preferred = if nsfeat.contains(Nsfeat::OPTIMAL_IO) {
        u32::from(id.npwg.get()) + 1
    } else {
        1
    };
    Ok(Some(NamespaceInfo {
        nsid,
        identity,
        block_bytes,
        blocks,
        physical_block_bytes: block_bytes.saturating_mul(preferred),
        read_only: Nsattr::from_bits_retain(id.nsattr).contains(Nsattr::WRITE_PROTECTED),
        volatile_cache: association.has_volatile_cache(),
        limits: bounds.limits(block_bytes),
    }))
}

async fn identity(
    association: &Association,
    nsid: Nsid,
    id: &IdentifyNamespace,
) -> Result<NamespaceIdentity, ConnectError> {
    let mut identity = NamespaceIdentity {
        uuid: None,
        nguid: (!id.nguid.is_none()).then(|| Uuid::from_bytes(id.nguid.0)),
        eui64: (!id.eui64.is_none()).then(|| u64::from_be_bytes(id.eui64.0)),
    };
    let data = match association
        .identify_raw(Cns::NAMESPACE_DESCRIPTORS, nsid)
        .await
    {
        Ok(data) => data,
        // Controllers before version 1.3 do not have it.
        Err(AdminError::Status(_)) => return Ok(identity),
        Err(source) => {
            return Err(ConnectError::Admin {
                command: "Identify (namespace descriptors)",
                source,
            });
        }
    };
    for descriptor in descriptors(&data) {
        match descriptor {
            Descriptor::Uuid(uuid) => {
                identity.uuid = (!uuid.is_none()).then(|| Uuid::from_bytes(uuid.0))
            }
            Descriptor::Nguid(nguid) => {
                identity.nguid = (!nguid.is_none()).then(|| Uuid::from_bytes(nguid.0))
            }
            Descriptor::Eui64(eui64) => {
                identity.eui64 = (!eui64.is_none()).then(|| u64::from_be_bytes(eui64.0))
            }
            Descriptor::Csi(Csi::NVM) => {}
            Descriptor::Csi(csi) => {
                return Err(ConnectError::Unusable(format!(
                    "namespace {nsid}: I/O command set {}",
                    csi.0
                )));
            }
        }
    }
    Ok(identity)
}
