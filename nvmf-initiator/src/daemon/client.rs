//! The command line's end of the daemon's socket.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::RunDir;
use super::api::{Envelope, Failure, FailureKind, Reply, Request, VERSION};
use super::keeper;

/// How long a daemon may take to be there: one that died is started again by its keeper, after a pause.
const START_LIMIT: Duration = Duration::from_secs(40);
/// How often it is looked for meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Asks the daemon. `Ok(None)` when there is none and none shall be started for it.
pub fn ask(run: &RunDir, request: Request, start: bool) -> Result<Option<Reply>, Failure> {
    let Some(stream) = reach(run, start)? else {
        return Ok(None);
    };
    let broken = |error: io::Error| {
        let log = run.log();
        FailureKind::Other.because(format!(
            "the daemon broke off: {error}; {} may say why",
            log.display()
        ))
    };
    let mut line = serde_json::to_vec(&Envelope {
        version: VERSION,
        request,
    })
    .expect("requests have a JSON form");
    line.push(b'\n');
    (&stream).write_all(&line).map_err(broken)?;
    let mut answer = String::new();
    BufReader::new(&stream)
        .read_line(&mut answer)
        .map_err(broken)?;
    if answer.is_empty() {
        return Err(broken(io::ErrorKind::UnexpectedEof.into()));
    }
    match serde_json::from_str(&answer) {
        Ok(Reply::Failed(failure)) => Err(failure),
        Ok(reply) => Ok(Some(reply)),
        Err(error) => Err(broken(io::Error::new(io::ErrorKind::InvalidData, error))),
    }
}

fn reach(run: &RunDir, start: bool) -> Result<Option<UnixStream>, Failure> {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let error = match UnixStream::connect(run.socket()) {
            Ok(stream) => return Ok(Some(stream)),
            Err(error) => error,
        };
        if !matches!(
            error.kind(),
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
        ) {
            let remedy = "run as the user who started the daemon, usually root";
            let message = format!("{}: {error}; {remedy}", run.socket().display());
            return Err(FailureKind::System.because(message));
        }
        if !somebody_is_there(run) {
            if !start {
                return Ok(None);
            }
            start_keeper(run)?;
        } else if Instant::now() >= deadline {
            let message = format!(
                "the daemon does not come up; {} may say why",
                run.log().display()
            );
            return Err(FailureKind::Other.because(message));
        } else {
            std::thread::sleep(LOOK_EVERY);
        }
    }
}

/// Whether a daemon or a keeper has the lock.
fn somebody_is_there(run: &RunDir) -> bool {
    run.lock().exists() && matches!(keeper::lock(run), Ok(None))
}

/// Starts a keeper, which starts a daemon, and waits for the daemon's word.
fn start_keeper(run: &RunDir) -> Result<(), Failure> {
    let failed = |what: &str, error: io::Error| {
        let message =
            format!("cannot start the daemon: {what}: {error}; run as root, or give --run-dir");
        FailureKind::System.because(message)
    };
    run.create()
        .map_err(|error| failed(&run.path().display().to_string(), error))?;
    let log = File::options().create(true).append(true).open(run.log());
    let log = log.map_err(|error| failed(&run.log().display().to_string(), error))?;
    let program = std::env::current_exe().map_err(|error| failed("this program", error))?;
    let mut keeper = Command::new(program)
        .arg("--run-dir")
        .arg(run.path())
        .arg("keeper")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(|error| failed("this program", error))?;
    let mut word = String::new();
    if let Some(stdout) = keeper.stdout.take() {
        // Nothing at all comes when another keeper was faster; then its daemon is looked for.
        let _ = BufReader::new(stdout).read_line(&mut word);
    }
    match word.trim() {
        "ready" | "" => Ok(()),
        why => Err(FailureKind::System.because(format!("the daemon did not start: {why}"))),
    }
}
