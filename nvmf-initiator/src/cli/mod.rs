//! The command line: what each command does, and what it says.

mod args;
mod identify;
mod show;
mod sources;

use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser as _;
use nvme_proto::wire::Nsid;
use nvme_proto::wire::identify::Cns;
use nvme_proto::wire::log::SubsystemType;
use nvmf_io::cpu::CoreList;
use tracing_subscriber::EnvFilter;

use crate::address::{NvmeUrl, Transport};
use crate::control::runtime;
use crate::core::association::Association;
use crate::core::discovery::{Discovered, follow};
use crate::core::error::ConnectError;
use crate::daemon::api::{ConnectRequest, Failure, FailureKind, Reply, Request, Selection};
use crate::daemon::client::{self, Absent};
use crate::daemon::serve::DaemonOptions;
use crate::daemon::{RunDir, keeper, serve};
use crate::host::{HostFiles, HostIdentity};
use crate::options::{NamespaceUrl, OptionError, Target};
use args::{
    Cli, Command, ConnectAllArgs, ConnectArgs, ControllerArgs, DaemonArgs, DisconnectArgs,
    DiscoverArgs, IdCtrlArgs, IdNsArgs, OutputArgs, PortArgs,
};
use sources::{Source, to_connect, to_discover};

type Done = Result<(), Failure>;

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let serves = matches!(cli.command, Command::Daemon(_) | Command::Keeper { .. });
    log(cli.verbose + u8::from(serves));
    let (run, etc) = (RunDir::new(&cli.run_dir), cli.etc_nvme.as_path());
    let result = match &cli.command {
        Command::Connect(args) => connect(&run, etc, args),
        Command::ConnectAll(args) => connect_all(&run, etc, args),
        Command::Disconnect(args) => disconnect(&run, args),
        Command::Discover(args) => discover(etc, args),
        Command::List(output) => list(&run, *output),
        Command::IdCtrl(args) => id_ctrl(&run, etc, args),
        Command::IdNs(args) => id_ns(&run, etc, args),
        Command::Daemon(args) => daemon(&run, args),
        Command::Keeper { adopt } => {
            keeper::run(&run, *adopt).map_err(|error| FailureKind::System.because(error))
        }
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

/// Of options that the command line gave, which calls them by their flags.
fn wrong_flag(error: OptionError) -> Failure {
    usage(error.calling(args::flag))
}

fn host(etc: &Path, port: &PortArgs) -> Result<HostIdentity, Failure> {
    let files = HostFiles {
        etc_nvme: etc.to_owned(),
        ..HostFiles::default()
    };
    files
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
    put(text.as_bytes())
}

fn put(bytes: &[u8]) -> Done {
    let mut stdout = io::stdout();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(FailureKind::Other.because(format!("writing the output: {error}")))
        }
        _ => Ok(()),
    }
}

/// A device as the daemon can look it up, which may run in another folder.
fn absolute(device: &str) -> String {
    let path = Path::new(device);
    match std::path::absolute(path) {
        Ok(path) if device.contains('/') && !device.contains(':') => path.display().to_string(),
        _ => device.to_owned(),
    }
}

fn unexpected(reply: &Reply) -> Failure {
    FailureKind::Other.because(format!("the daemon answered something else: {reply:?}"))
}

// --- attaching ---------------------------------------------------------------------------------------------------------

fn connect(run: &RunDir, etc: &Path, args: &ConnectArgs) -> Done {
    let request = ConnectRequest {
        target: args.target().map_err(wrong_flag)?,
        host: host(etc, &args.port)?,
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

fn connect_all(run: &RunDir, etc: &Path, args: &ConnectAllArgs) -> Done {
    let mut failures = Vec::new();
    for Source {
        host,
        target,
        discovery,
    } in to_connect(etc, args)?
    {
        let targets = if !discovery {
            vec![target]
        } else {
            match wait_for(follow(&target, &host))? {
                Ok(discovered) => subsystems(&discovered, &target, &mut failures),
                Err(error) => {
                    failures.push(Failure::from(&error));
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
    failures.extend(
        discovered
            .failed
            .iter()
            .map(|(_, error)| Failure::from(error)),
    );
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
                "left out: this initiator connects without TLS, and over the transport that it asks on"
            ),
        }
    }
    targets
}

fn disconnect(run: &RunDir, args: &DisconnectArgs) -> Done {
    let what = match (&args.what.nqn, &args.what.device) {
        (Some(nqn), _) => Selection::Nqn(nqn.clone()),
        (None, Some(device)) => Selection::Device(absolute(device)),
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

fn discover(etc: &Path, args: &DiscoverArgs) -> Done {
    let mut logs = Vec::new();
    for Source { host, target, .. } in to_discover(etc, args)? {
        let discovered = match args.no_referrals {
            false => wait_for(follow(&target, &host))?,
            true => {
                wait_for(crate::core::discovery::read_log(&target, &host))?.map(|log| Discovered {
                    logs: vec![log],
                    failed: Vec::new(),
                })
            }
        };
        let discovered = discovered.map_err(|error| Failure::from(&error))?;
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

fn id_ctrl(run: &RunDir, etc: &Path, args: &IdCtrlArgs) -> Done {
    let data = identify(run, etc, &args.controller, None)?;
    if args.raw_binary {
        return put(&data);
    }
    print(&identify::controller(&data, args.output.is_json()))
}

fn id_ns(run: &RunDir, etc: &Path, args: &IdNsArgs) -> Done {
    let data = identify(run, etc, &args.controller, Some(args.namespace_id))?;
    if args.raw_binary {
        return put(&data);
    }
    print(&identify::namespace(&data, args.output.is_json()))
}

/// 4096 bytes of Identify: of a controller, or of a namespace.
fn identify(
    run: &RunDir,
    etc: &Path,
    of: &ControllerArgs,
    namespace: Option<Option<u32>>,
) -> Result<Vec<u8>, Failure> {
    let url = match &of.device {
        Some(device) if device.starts_with("nvme+") => {
            let url = device.parse().map_err(usage)?;
            NamespaceUrl::new(url, of.nqn.clone()).map_err(usage)?
        }
        None if of.port.traddr.is_none() => {
            let what = "give a device, nvme+tcp://HOST:PORT/NQN, or --traddr and --nqn";
            return Err(usage(format!("no address: {what}")));
        }
        Some(device) => return identify_attached(run, device, namespace),
        None => {
            let url = NvmeUrl {
                address: of.port.address(Transport::io_port).map_err(wrong_flag)?,
                nqn: of.nqn.clone(),
                query: Vec::new(),
            };
            NamespaceUrl::new(url, None).map_err(usage)?
        }
    };
    let who = PortArgs {
        hostnqn: of.port.hostnqn.clone().or(url.hostnqn),
        hostid: of.port.hostid.clone().or(url.hostid),
        ..of.port.clone()
    };
    let (host, target) = (host(etc, &who)?, url.target);
    let (cns, nsid) = match namespace {
        Some(nsid) => (Cns::NAMESPACE, Nsid(nsid.unwrap_or(url.nsid))),
        None => (Cns::CONTROLLER, Nsid::NONE),
    };
    let work = async {
        let association = Association::establish(&target, &host, target.options.kato_ms()).await?;
        let data = association.identify_raw(cns, nsid).await;
        association.shut_down().await;
        data.map_err(|source| ConnectError::Admin {
            command: "Identify",
            source,
        })
    };
    wait_for(work)?.map_err(|error| Failure::from(&error))
}

fn identify_attached(
    run: &RunDir,
    device: &str,
    namespace: Option<Option<u32>>,
) -> Result<Vec<u8>, Failure> {
    let request = Request::Identify {
        of: absolute(device),
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
