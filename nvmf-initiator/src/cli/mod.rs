//! The command line: what each command does, and what it says.

mod args;
mod identify;
mod show;

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use nvme_proto::wire::Nsid;
use nvme_proto::wire::identify::Cns;
use nvme_proto::wire::log::SubsystemType;
use nvmf_io::cpu::CoreList;
use tracing_subscriber::EnvFilter;

use crate::address::{DEFAULT_DISCOVERY_PORT, DEFAULT_IO_PORT, DISCOVERY_NQN, NvmeUrl, check_nqn};
use crate::config::{read_config_json, read_discovery_conf};
use crate::control::runtime;
use crate::core::association::Association;
use crate::core::discovery::{Discovered, follow};
use crate::core::error::ConnectError;
use crate::daemon::api::{ConnectRequest, Failure, FailureKind, Reply, Request, Selection};
use crate::daemon::client::{self, Absent};
use crate::daemon::node::failure_of;
use crate::daemon::serve::DaemonOptions;
use crate::daemon::{RunDir, keeper, serve};
use crate::host::{ETC_NVME, HostFiles, HostIdentity};
use crate::options::{ConnectOptions, OptionError, Target};
use args::{
    Cli, Command, ConnectAllArgs, ConnectArgs, ControllerArgs, DaemonArgs, DisconnectArgs,
    DiscoverArgs, IdCtrlArgs, IdNsArgs, OutputArgs, PortArgs,
};

type Done = Result<(), Failure>;

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let serves = matches!(cli.command, Command::Daemon(_) | Command::Keeper);
    log(cli.verbose + u8::from(serves));
    let run = RunDir::new(&cli.run_dir);
    let result = match &cli.command {
        Command::Connect(args) => connect(&run, args),
        Command::ConnectAll(args) => connect_all(&run, args),
        Command::Disconnect(args) => disconnect(&run, args),
        Command::Discover(args) => discover(args),
        Command::List(output) => list(&run, *output),
        Command::IdCtrl(args) => id_ctrl(&run, args),
        Command::IdNs(args) => id_ns(&run, args),
        Command::Daemon(args) => daemon(&run, args),
        Command::Keeper => keeper::run(&run).map_err(|error| FailureKind::System.because(error)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("nvmf-initiator: {failure}");
            ExitCode::from(failure.kind.exit_code())
        }
    }
}

fn log(verbose: u8) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}

fn usage(error: impl ToString) -> Failure {
    FailureKind::Usage.because(error)
}

fn host(port: &PortArgs) -> Result<HostIdentity, Failure> {
    HostFiles::default()
        .identity(port.hostnqn.as_deref(), port.hostid.as_deref())
        .map_err(usage)
}

/// Runs what waits for the network, without a daemon.
fn wait_for<T>(work: impl Future<Output = T>) -> Result<T, Failure> {
    let runtime = runtime().map_err(|error| FailureKind::System.because(error))?;
    Ok(runtime.block_on(work))
}

/// Prints; a reader that has seen enough is no failure.
fn print(text: &str) -> Done {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(FailureKind::Other.because(error))
        }
        _ => Ok(()),
    }
}

fn unexpected(reply: &Reply) -> Failure {
    FailureKind::Other.because(format!("the daemon answered something else: {reply:?}"))
}

// --- attaching ---------------------------------------------------------------------------------------------------------

fn connect(run: &RunDir, args: &ConnectArgs) -> Done {
    let request = ConnectRequest {
        target: args.target().map_err(usage)?,
        host: host(&args.port)?,
        block: args.block.block.name().to_owned(),
    };
    let text = connect_one(run, request, args.output)?;
    print(&text)
}

/// Connects through the daemon and says what came of it. Namespaces without a device are a failure, but only after the others
/// were named.
fn connect_one(
    run: &RunDir,
    request: ConnectRequest,
    output: OutputArgs,
) -> Result<String, Failure> {
    match client::ask(run, Request::Connect(request), Absent::Start)? {
        Some(Reply::Connected(status)) => {
            let problems: Vec<_> = status
                .namespaces
                .iter()
                .filter_map(|ns| Some(format!("namespace {}: {}", ns.nsid, ns.problem.as_ref()?)))
                .collect();
            let text = show::connected(&status, output.is_json());
            if problems.is_empty() {
                return Ok(text);
            }
            print(&text)?;
            Err(FailureKind::System.because(problems.join("; ")))
        }
        Some(other) => Err(unexpected(&other)),
        None => Err(FailureKind::Other.because("the daemon is gone")),
    }
}

/// A discovery service to follow, or a controller to connect.
struct Source {
    host: HostIdentity,
    target: Target,
    discovery: bool,
}

fn connect_all(run: &RunDir, args: &ConnectAllArgs) -> Done {
    let mut failures = Vec::new();
    for Source {
        host,
        target,
        discovery,
    } in sources(args)?
    {
        let targets = if !discovery {
            vec![target]
        } else {
            match wait_for(follow(&target, &host))? {
                Ok(discovered) => subsystems(&discovered, &target, &mut failures),
                Err(error) => {
                    failures.push(failure_of(&error));
                    continue;
                }
            }
        };
        for target in targets {
            let request = ConnectRequest {
                target,
                host: host.clone(),
                block: args.block.block.name().to_owned(),
            };
            match connect_one(run, request, args.output) {
                Ok(text) => print(&text)?,
                Err(failure) if failure.kind == FailureKind::Busy => {
                    if !args.quiet {
                        eprintln!("nvmf-initiator: {failure}");
                    }
                }
                Err(failure) => failures.push(failure),
            }
        }
    }
    let Some(last) = failures.pop() else {
        return Ok(());
    };
    for failure in failures {
        eprintln!("nvmf-initiator: {failure}");
    }
    Err(last)
}

/// The subsystems that can be connected, each way to them once.
fn subsystems(discovered: &Discovered, asked: &Target, failures: &mut Vec<Failure>) -> Vec<Target> {
    failures.extend(discovered.failed.iter().map(|(_, error)| failure_of(error)));
    let mut targets: Vec<Target> = Vec::new();
    for record in discovered.logs.iter().flat_map(|log| &log.records) {
        if record.subtype != SubsystemType::NVM {
            continue;
        }
        match record.target(asked) {
            Some(target) if !targets.contains(&target) => targets.push(target),
            Some(_) => {}
            None => tracing::info!(
                ?record,
                "left out: this initiator connects over TCP without TLS"
            ),
        }
    }
    targets
}

fn sources(args: &ConnectAllArgs) -> Result<Vec<Source>, Failure> {
    let options = args.association.options(&ConnectOptions::default());
    if args.port.traddr.is_some() {
        let target = discovery_target(&args.port, args.nqn.as_deref(), options).map_err(usage)?;
        return Ok(vec![Source {
            host: host(&args.port)?,
            target,
            discovery: true,
        }]);
    }
    let mut sources = Vec::new();
    if args.config != Path::new("none") {
        for configured in read_config_json(&args.config)
            .map_err(usage)?
            .unwrap_or_default()
        {
            let hostnqn = args
                .port
                .hostnqn
                .as_deref()
                .or(configured.hostnqn.as_deref());
            let hostid = args.port.hostid.as_deref().or(configured.hostid.as_deref());
            let host = HostFiles::default()
                .identity(hostnqn, hostid)
                .map_err(usage)?;
            sources.push(Source {
                host,
                target: configured.target,
                discovery: configured.discovery,
            });
        }
    }
    for line in conf_lines()? {
        let target = discovery_target(
            &line.port,
            line.nqn.as_deref(),
            line.association.options(&options),
        );
        sources.push(Source {
            host: host(&line.port)?,
            target: target.map_err(usage)?,
            discovery: true,
        });
    }
    if sources.is_empty() {
        return Err(usage(format!(
            "nothing to connect: give --traddr, or name controllers in {} or {ETC_NVME}/discovery.conf",
            args.config.display()
        )));
    }
    Ok(sources)
}

/// The lines of discovery.conf, read as arguments of `discover`.
fn conf_lines() -> Result<Vec<DiscoverArgs>, Failure> {
    let path = Path::new(ETC_NVME).join("discovery.conf");
    let lines = read_discovery_conf(&path)
        .map_err(usage)?
        .unwrap_or_default();
    lines
        .into_iter()
        .map(|words| {
            let line = words.join(" ");
            let words = ["nvmf-initiator".to_owned(), "discover".to_owned()]
                .into_iter()
                .chain(words);
            match Cli::try_parse_from(words) {
                Ok(Cli {
                    command: Command::Discover(args),
                    ..
                }) => Ok(args),
                Ok(_) => Err(usage(format!(
                    "{}: {line}: not arguments of discover",
                    path.display()
                ))),
                Err(error) => Err(usage(format!("{}: {line}: {error}", path.display()))),
            }
        })
        .collect()
}

fn discovery_target(
    port: &PortArgs,
    nqn: Option<&str>,
    options: ConnectOptions,
) -> Result<Target, OptionError> {
    let subnqn = nqn.unwrap_or(DISCOVERY_NQN).to_owned();
    let target = Target {
        address: port.address(DEFAULT_DISCOVERY_PORT)?,
        subnqn,
        options,
    };
    target.validate()?;
    Ok(target)
}

fn disconnect(run: &RunDir, args: &DisconnectArgs) -> Done {
    let what = match (&args.what.nqn, &args.what.device) {
        (Some(nqn), _) => Selection::Nqn(nqn.clone()),
        (None, Some(device)) => Selection::Device(device.clone()),
        (None, None) => Selection::All,
    };
    let is_all = what == Selection::All;
    match client::ask(
        run,
        Request::Disconnect {
            what,
            force: args.force,
        },
        Absent::Accept,
    )? {
        Some(Reply::Disconnected(names)) => {
            print(&show::disconnected(&names, args.output.is_json()))
        }
        Some(other) => Err(unexpected(&other)),
        None if is_all => print(&show::disconnected(&[], args.output.is_json())),
        None => Err(FailureKind::NotFound.because("nothing is connected")),
    }
}

// --- looking -----------------------------------------------------------------------------------------------------------

fn discover(args: &DiscoverArgs) -> Done {
    let asked = if args.port.traddr.is_some() {
        let options = args.association.options(&ConnectOptions::default());
        vec![(
            host(&args.port)?,
            discovery_target(&args.port, args.nqn.as_deref(), options).map_err(usage)?,
        )]
    } else {
        let lines = conf_lines()?;
        if lines.is_empty() {
            return Err(usage(format!(
                "no address: give --traddr, or put services into {ETC_NVME}/discovery.conf"
            )));
        }
        let targets = lines.iter().map(|line| {
            let options = line.association.options(&ConnectOptions::default());
            let target =
                discovery_target(&line.port, line.nqn.as_deref(), options).map_err(usage)?;
            Ok((host(&line.port)?, target))
        });
        targets.collect::<Result<_, Failure>>()?
    };
    let mut logs = Vec::new();
    for (host, target) in asked {
        let discovered = match args.no_referrals {
            false => wait_for(follow(&target, &host))?,
            true => {
                wait_for(crate::core::discovery::read_log(&target, &host))?.map(|log| Discovered {
                    logs: vec![log],
                    failed: Vec::new(),
                })
            }
        };
        let discovered = discovered.map_err(|error| failure_of(&error))?;
        for (address, error) in &discovered.failed {
            eprintln!("nvmf-initiator: referral to {address} not followed: {error}");
        }
        logs.extend(discovered.logs);
    }
    print(&show::discovered(&logs, args.output.is_json()))
}

fn list(run: &RunDir, output: OutputArgs) -> Done {
    match client::ask(run, Request::List, Absent::Accept)? {
        Some(Reply::List(controllers)) => print(&show::list(&controllers, output.is_json())),
        Some(other) => Err(unexpected(&other)),
        None => print(&show::list(&[], output.is_json())),
    }
}

fn id_ctrl(run: &RunDir, args: &IdCtrlArgs) -> Done {
    let data = identify(run, &args.controller, None)?;
    if args.raw_binary {
        return io::stdout()
            .write_all(&data)
            .map_err(|error| FailureKind::Other.because(error));
    }
    print(&identify::controller(&data, args.output.is_json()))
}

fn id_ns(run: &RunDir, args: &IdNsArgs) -> Done {
    let data = identify(run, &args.controller, Some(args.namespace_id))?;
    if args.raw_binary {
        return io::stdout()
            .write_all(&data)
            .map_err(|error| FailureKind::Other.because(error));
    }
    print(&identify::namespace(&data, args.output.is_json()))
}

/// 4096 bytes of Identify: of a controller, or of a namespace.
fn identify(
    run: &RunDir,
    of: &ControllerArgs,
    namespace: Option<Option<u32>>,
) -> Result<Vec<u8>, Failure> {
    let url = of
        .device
        .as_deref()
        .filter(|device| device.starts_with("nvme+"))
        .map(str::parse::<NvmeUrl>);
    let target = match (url.transpose().map_err(usage)?, &of.device) {
        (Some(url), _) => Some((url.address, url.nqn.or(of.nqn.clone()))),
        (None, Some(device)) => return identify_attached(run, device, namespace),
        (None, None) => Some((
            of.port.address(DEFAULT_IO_PORT).map_err(usage)?,
            of.nqn.clone(),
        )),
    };
    let Some((address, Some(subnqn))) = target else {
        return Err(usage(crate::address::AddressError::NoNqn));
    };
    check_nqn(&subnqn).map_err(usage)?;
    let target = Target {
        address,
        subnqn,
        options: ConnectOptions::default(),
    };
    let host = host(&of.port)?;
    let (cns, nsid) = match namespace {
        Some(nsid) => (Cns::NAMESPACE, Nsid(nsid.unwrap_or(1))),
        None => (Cns::CONTROLLER, Nsid::NONE),
    };
    let work = async {
        let association = Association::establish(&target, &host, 0).await?;
        let data = association.identify_raw(cns, nsid).await;
        association.shut_down().await;
        data.map_err(|source| ConnectError::Admin {
            command: "Identify",
            source,
        })
    };
    wait_for(work)?.map_err(|error| failure_of(&error))
}

fn identify_attached(
    run: &RunDir,
    device: &str,
    namespace: Option<Option<u32>>,
) -> Result<Vec<u8>, Failure> {
    let request = Request::Identify {
        of: device.to_owned(),
        namespace: namespace.is_some(),
        nsid: namespace.flatten(),
    };
    match client::ask(run, request, Absent::Accept)? {
        Some(Reply::Identify(digits)) => digits
            .as_bytes()
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
            .collect::<Option<Vec<u8>>>()
            .filter(|data| data.len() == nvme_proto::wire::identify::IDENTIFY_DATA_BYTES)
            .ok_or_else(|| {
                FailureKind::Other.because("the daemon sent something else than 4096 bytes")
            }),
        Some(other) => Err(unexpected(&other)),
        None => Err(FailureKind::NotFound.because(format!("{device}: nothing is connected"))),
    }
}

// --- the daemon --------------------------------------------------------------------------------------------------------

fn daemon(run: &RunDir, args: &DaemonArgs) -> Done {
    let cores = args
        .cores
        .as_deref()
        .map(str::parse::<CoreList>)
        .transpose()
        .map_err(usage)?;
    let options = DaemonOptions {
        shards: args.shards,
        cores,
        busy_poll: std::time::Duration::from_micros(args.busy_poll.into()),
        kept: args.kept,
    };
    serve::run(run, &options).map_err(|error| FailureKind::System.because(error))
}
