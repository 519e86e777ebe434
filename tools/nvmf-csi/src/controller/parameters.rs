//! What a StorageClass may say.

use std::collections::HashMap;

use nvmf_rpc::reach::{LABEL_TRANSPORT, Transports};
use nvmf_rpc::types::{Labels, Provisioning};
use nvmf_volume::FsKind;
use nvmf_volume::filesystem::check_mkfs_options;
use tonic::Status;

use crate::Result;
use crate::attributes::{FS_TYPE, MKFS_OPTIONS, TRANSPORT};

/// Parameters with this prefix are the sidecars' own.
const SIDECARS: &str = "csi.storage.k8s.io/";

/// The parameters, read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters {
    /// `target`.
    pub target: Option<String>,
    /// `pool`.
    pub pool: Option<String>,
    /// `fsType`, where capabilities name none.
    pub fs: Option<FsKind>,
    /// `mkfsOptions`, in words.
    pub mkfs_options: String,
    /// `blockSize`: 512 or 4096.
    pub block_size: Option<u32>,
    /// `provisioning`: `thin` or `thick`.
    pub provisioning: Provisioning,
    /// `transport`: `tcp`, `rdma`, or both with a comma.
    pub transports: Option<Transports>,
}

impl Parameters {
    /// What the parameters say on a volume for whoever attaches it.
    pub fn label(&self, labels: &mut Labels) {
        if let Some(transports) = &self.transports {
            labels.insert(LABEL_TRANSPORT.to_owned(), transports.to_string());
        }
    }
}

/// Reads parameters. Unknown ones are refused, so that a typing mistake never turns into a default.
pub fn read(given: &HashMap<String, String>) -> Result<Parameters> {
    let mut parameters = Parameters::default();
    for (name, value) in given {
        let invalid = |why: String| Status::invalid_argument(format!("parameter {name}: {why}"));
        match name.as_str() {
            "target" => parameters.target = Some(value.clone()),
            "pool" => parameters.pool = Some(value.clone()),
            FS_TYPE => {
                let fs = value
                    .parse::<FsKind>()
                    .map_err(|error| invalid(error.to_string()))?;
                parameters.fs = Some(fs);
            }
            MKFS_OPTIONS => {
                let words: Vec<_> = value.split_whitespace().map(str::to_owned).collect();
                check_mkfs_options(&words).map_err(|error| invalid(error.to_string()))?;
                parameters.mkfs_options = words.join(" ");
            }
            "blockSize" => {
                parameters.block_size = match value.as_str() {
                    "512" => Some(512),
                    "4096" => Some(4096),
                    _ => return Err(invalid(format!("'{value}' is neither 512 nor 4096"))),
                };
            }
            "provisioning" => {
                parameters.provisioning = match value.as_str() {
                    "thin" => Provisioning::Thin,
                    "thick" => Provisioning::Thick,
                    _ => return Err(invalid(format!("'{value}' is neither thin nor thick"))),
                };
            }
            TRANSPORT => {
                let transports = value.parse::<Transports>();
                let transports = transports.map_err(|error| invalid(error.to_string()))?;
                parameters.transports = Some(transports);
            }
            name if name.starts_with(SIDECARS) => {}
            _ => {
                let known = "there are target, pool, fsType, mkfsOptions, blockSize, provisioning and transport";
                return Err(invalid(format!("unknown; {known}")));
            }
        }
    }
    Ok(parameters)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(pairs: &[(&str, &str)]) -> Result<Parameters> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        read(&pairs.iter().map(owned).collect())
    }

    #[test]
    fn all_parameters() {
        let parameters = given(&[
            ("target", "east"),
            ("pool", "fast"),
            ("fsType", "xfs"),
            ("mkfsOptions", " -i  size=512 "),
            ("blockSize", "512"),
            ("provisioning", "thick"),
            ("transport", "rdma,tcp"),
            ("csi.storage.k8s.io/pvc/name", "data"),
        ]);
        assert_eq!(
            parameters.unwrap(),
            Parameters {
                target: Some("east".into()),
                pool: Some("fast".into()),
                fs: Some(FsKind::Xfs),
                mkfs_options: "-i size=512".into(),
                block_size: Some(512),
                provisioning: Provisioning::Thick,
                transports: Some("rdma,tcp".parse().unwrap()),
            }
        );
        assert_eq!(given(&[]).unwrap(), Parameters::default());
    }

    #[test]
    fn mistakes_are_found() {
        for wrong in [
            ("fstype", "xfs"),
            ("fsType", "btrfs"),
            ("blockSize", "1024"),
            ("provisioning", "fat"),
            ("transport", "fc"),
            ("mkfsOptions", "-d file,name=/etc/passwd"),
        ] {
            assert!(given(&[wrong]).is_err(), "{wrong:?}");
        }
    }
}
