//! What users give to `docker volume create -o NAME=VALUE`.

use std::collections::BTreeMap;

use nvmf_rpc::reach::Transports;
use nvmf_rpc::types::Source;
use nvmf_volume::FsKind;
use nvmf_volume::filesystem::check_mkfs_options;

use crate::error::Error;

/// The longest name of a volume, which the pool bounds.
const MAX_NAME_BYTES: usize = 128;

/// What was asked for; what was left out is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// `size`: in bytes.
    pub size_bytes: Option<u64>,
    /// `fs`.
    pub fs: Option<FsKind>,
    /// `pool`.
    pub pool: Option<String>,
    /// `from`: `NAME` or `volume:NAME`, or `snapshot:NAME`.
    pub from: Option<Source>,
    /// `ro`.
    pub read_only: Option<bool>,
    /// `mkfs-options`, in words.
    pub mkfs_options: Option<Vec<String>>,
    /// `transport`.
    pub transports: Option<Transports>,
}

/// Reads options.
pub fn parse(given: &BTreeMap<String, String>) -> Result<Options, Error> {
    let mut options = Options::default();
    for (name, value) in given {
        match name.as_str() {
            "size" => options.size_bytes = Some(parse_size(value)?),
            "fs" => options.fs = Some(value.parse()?),
            "pool" => options.pool = Some(value.clone()),
            "from" => options.from = Some(parse_source(value)?),
            "ro" => options.read_only = Some(parse_flag(value)?),
            "mkfs-options" => {
                let words: Vec<_> = value.split_whitespace().map(str::to_owned).collect();
                check_mkfs_options(&words)?;
                options.mkfs_options = Some(words);
            }
            "transport" => {
                let transports = value.parse::<Transports>();
                let explain = |error| Error::Request(format!("option transport: {error}"));
                options.transports = Some(transports.map_err(explain)?);
            }
            other => {
                return Err(Error::Request(format!(
                    "unknown option '{other}'; there are size, fs, pool, from, ro, mkfs-options and transport"
                )));
            }
        }
    }
    if options.read_only == Some(true) && options.from.is_none() {
        let what = "option ro: a new volume is empty, and nothing could ever be written to it; use it with from=VOLUME or \
                    from=snapshot:SNAPSHOT, or mount a writable volume read-only with `-v NAME:/path:ro`";
        return Err(Error::Request(what.to_owned()));
    }
    Ok(options)
}

/// Checks a name: it becomes one of a file, and one in the pool.
pub fn check_name(name: &str) -> Result<(), Error> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let begins_well = name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    if begins_well && name.len() <= MAX_NAME_BYTES && name.bytes().all(plain) {
        return Ok(());
    }
    Err(Error::Request(format!(
        "'{name}' is no name for a volume: 1 to {MAX_NAME_BYTES} letters, digits, '.', '_' and '-', beginning with a letter or digit"
    )))
}

/// The size of a volume, in bytes.
pub fn parse_size(text: &str) -> Result<u64, Error> {
    nvmf_size::parse_nonzero(text).map_err(|error| Error::Request(format!("size: {error}")))
}

fn parse_source(text: &str) -> Result<Source, Error> {
    let (name, source) = match text.split_once(':') {
        Some(("snapshot", name)) => (name, Source::Snapshot(name.to_owned())),
        Some(("volume", name)) => (name, Source::Volume(name.to_owned())),
        _ => (text, Source::Volume(text.to_owned())),
    };
    check_name(name)?;
    Ok(source)
}

fn parse_flag(text: &str) -> Result<bool, Error> {
    match text {
        "" | "1" | "true" | "yes" => Ok(true),
        "0" | "false" | "no" => Ok(false),
        other => Err(Error::Request(format!(
            "option ro: '{other}' is neither true nor false"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Options, Error> {
        let pairs = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        parse(&pairs.collect())
    }

    #[test]
    fn all_options() {
        let options = read(&[
            ("size", "10G"),
            ("fs", "xfs"),
            ("pool", "fast"),
            ("from", "snapshot:monday"),
            ("ro", "true"),
            ("mkfs-options", "-i size=512  -m reflink=1"),
            ("transport", "rdma"),
        ]);
        let options = options.unwrap();
        assert_eq!(options.size_bytes, Some(10 << 30));
        assert_eq!(options.fs, Some(FsKind::Xfs));
        assert_eq!(options.transports, Some("rdma".parse().unwrap()));
        assert_eq!(options.from, Some(Source::Snapshot("monday".into())));
        assert_eq!(
            options.mkfs_options.unwrap(),
            ["-i", "size=512", "-m", "reflink=1"]
        );
        assert_eq!(read(&[]).unwrap(), Options::default());
        let of_volume = Some(Source::Volume("a".into()));
        assert_eq!(read(&[("from", "a")]).unwrap().from, of_volume);
        assert_eq!(read(&[("from", "volume:a")]).unwrap().from, of_volume);
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_what_would() {
        let refused = |name: &str, value: &str| read(&[(name, value)]).unwrap_err().to_string();
        assert!(refused("sise", "1").contains("size, fs, pool"));
        assert!(refused("fs", "btrfs").contains("ext4 and xfs"));
        assert!(refused("ro", "true").contains("from="));
        assert!(refused("ro", "maybe").contains("neither"));
        assert!(refused("transport", "fc").contains("rdma,tcp"));
        assert!(refused("from", "../x").contains("no name"));
        assert!(refused("mkfs-options", "-d file,name=/etc/passwd").contains("names a file"));
    }

    #[test]
    fn sizes_are_those_of_the_project_but_for_nothing() {
        let size = |text: &str| read(&[("size", text)]).map(|options| options.size_bytes);
        assert_eq!(size("2GiB").unwrap(), Some(2 << 30));
        assert_eq!(size("1Tb").unwrap(), Some(1 << 40));
        let refused = |text: &str| size(text).unwrap_err().to_string();
        assert!(refused("0").starts_with("size: \"0\" is no size here"));
        assert!(refused("1.5G").contains("\"1.5G\" is not a size: write bytes"));
    }

    #[test]
    fn names_that_could_be_paths_are_refused() {
        check_name("a1.b_c-d").unwrap();
        check_name(&"f".repeat(64)).unwrap();
        for name in ["", ".", "..", "a/b", "-a", "a b", "a\0", &"x".repeat(129)] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }
}
