//! What `discover` and `connect-all` go by: the command line, or the files in `/etc/nvme`.

use std::path::{Path, PathBuf};

use clap::Parser as _;

use super::args::{Cli, Command, ConnectAllArgs, DiscoverArgs, PortArgs};
use super::{host, usage, wrong_flag};
use crate::address::{DISCOVERY_NQN, Transport};
use crate::config::{read_config_json, read_discovery_conf};
use crate::daemon::api::Failure;
use crate::host::HostIdentity;
use crate::options::{ConnectOptions, OptionError, Target};

/// A discovery service to follow, or a controller to connect.
pub(super) struct Source {
    pub host: HostIdentity,
    pub target: Target,
    /// Whether it is a discovery service.
    pub discovery: bool,
}

/// The service that the command line names, or every one in `discovery.conf`.
pub(super) fn to_discover(etc: &Path, args: &DiscoverArgs) -> Result<Vec<Source>, Failure> {
    let options = ConnectOptions::default();
    let sources = match args.port.traddr {
        Some(_) => vec![service(etc, args, &args.port, &options)?],
        None => from_conf(etc, &args.port, &options)?,
    };
    if sources.is_empty() {
        return Err(usage(format!(
            "no address: give --traddr, or put services into {}",
            conf_path(etc).display()
        )));
    }
    Ok(sources)
}

/// The service that the command line names, or all that `config.json` and `discovery.conf` have.
pub(super) fn to_connect(etc: &Path, args: &ConnectAllArgs) -> Result<Vec<Source>, Failure> {
    let options = args.association.options(&ConnectOptions::default());
    if args.port.traddr.is_some() {
        let target =
            discovery_target(&args.port, args.nqn.as_deref(), options).map_err(wrong_flag)?;
        return Ok(vec![Source {
            host: host(etc, &args.port)?,
            target,
            discovery: true,
        }]);
    }
    let config = match &args.config {
        Some(path) => path.clone(),
        None => etc.join("config.json"),
    };
    let mut sources = match config.as_os_str() == "none" {
        true => Vec::new(),
        false => from_config(etc, &args.port, &config, args.config.is_some())?,
    };
    sources.extend(from_conf(etc, &args.port, &options)?);
    if sources.is_empty() {
        return Err(usage(format!(
            "nothing to connect: give --traddr, or name controllers in {} or {}",
            config.display(),
            conf_path(etc).display()
        )));
    }
    Ok(sources)
}

fn conf_path(etc: &Path) -> PathBuf {
    etc.join("discovery.conf")
}

fn service(
    etc: &Path,
    args: &DiscoverArgs,
    who: &PortArgs,
    options: &ConnectOptions,
) -> Result<Source, Failure> {
    let options = args.association.options(options);
    let port = PortArgs {
        hostnqn: args.port.hostnqn.clone().or(who.hostnqn.clone()),
        hostid: args.port.hostid.clone().or(who.hostid.clone()),
        ..args.port.clone()
    };
    Ok(Source {
        host: host(etc, &port)?,
        target: discovery_target(&port, args.nqn.as_deref(), options).map_err(wrong_flag)?,
        discovery: true,
    })
}

/// The controllers of a `config.json`; one that the user named must be there.
fn from_config(
    etc: &Path,
    who: &PortArgs,
    path: &Path,
    is_named: bool,
) -> Result<Vec<Source>, Failure> {
    let configured = match read_config_json(path).map_err(usage)? {
        Some(configured) => configured,
        None if is_named => return Err(usage(format!("there is no {}", path.display()))),
        None => Vec::new(),
    };
    let source = |configured: crate::config::ConfiguredTarget| {
        // Who connects: the command line before the file, the file before this host's own identity.
        let who = PortArgs {
            hostnqn: who.hostnqn.clone().or(configured.hostnqn),
            hostid: who.hostid.clone().or(configured.hostid),
            ..who.clone()
        };
        Ok(Source {
            host: host(etc, &who)?,
            target: configured.target,
            discovery: configured.discovery,
        })
    };
    configured.into_iter().map(source).collect()
}

/// The lines of `discovery.conf`, each read as arguments of `discover`, on top of what the command line asks for.
fn from_conf(etc: &Path, who: &PortArgs, options: &ConnectOptions) -> Result<Vec<Source>, Failure> {
    let path = conf_path(etc);
    let lines = read_discovery_conf(&path)
        .map_err(usage)?
        .unwrap_or_default();
    let source = |words: Vec<String>| {
        let wrong = |what: &dyn std::fmt::Display| {
            usage(format!("{}: {}: {what}", path.display(), words.join(" ")))
        };
        let line = ["nvmf-initiator", "discover"]
            .into_iter()
            .chain(words.iter().map(String::as_str));
        let parsed = Cli::try_parse_from(line).map_err(|error| {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            wrong(&first.trim_start_matches("error: "))
        });
        let args = match parsed? {
            Cli {
                command: Command::Discover(args),
                ..
            } if args.port.traddr.is_some() => args,
            _ => return Err(wrong(&"no service: --traddr is missing")),
        };
        service(etc, &args, who, options).map_err(|failure| wrong(&failure))
    };
    lines.into_iter().map(source).collect()
}

fn discovery_target(
    port: &PortArgs,
    nqn: Option<&str>,
    options: ConnectOptions,
) -> Result<Target, OptionError> {
    let subnqn = nqn.unwrap_or(DISCOVERY_NQN).to_owned();
    let target = Target {
        address: port.address(Transport::discovery_port)?,
        subnqn,
        options,
    };
    target.validate()?;
    Ok(target)
}
