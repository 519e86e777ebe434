//! The command line's end of the daemon's socket.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::RunDir;
use super::api::{Envelope, Failure, FailureKind, Reply, Request, VERSION};
use super::keeper;

/// How long a daemon may take to be there: one that died is started again by its keeper, after a pause.
const START_LIMIT: Duration = Duration::from_secs(40);
/// How often it is looked for meanwhile.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What to do where no daemon is there to be asked.
#[derive(Debug, Clone, Copy)]
pub enum Absent<'a> {
    /// Nothing: the answer is that there is none.
    Accept,
    /// Start one: this program is the initiator.
    Start,
    /// Start one with this program, which is the initiator.
    StartProgram(&'a Path),
}

/// Asks the daemon. `Ok(None)` when there is none and none shall be started for it.
pub fn ask(run: &RunDir, request: Request, start: Absent<'_>) -> Result<Option<Reply>, Failure> {
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
    let answer = loop {
        let Some(stream) = reach(run, start, START_LIMIT)? else {
            return Ok(None);
        };
        match exchange(&stream, &line) {
            Ok(answer) => break answer,
            // One that ends in order, as an idle one does, takes its socket away first and leaves nothing behind: it did not do this.
            Err(_) if !run.socket().exists() => {}
            Err(error) => return Err(broken(error)),
        }
    };
    match serde_json::from_str(&answer) {
        Ok(Reply::Failed(failure)) => Err(failure),
        Ok(reply) => Ok(Some(reply)),
        Err(error) => Err(broken(io::Error::new(io::ErrorKind::InvalidData, error))),
    }
}

/// One line there and one line back.
fn exchange(mut stream: &UnixStream, line: &[u8]) -> io::Result<String> {
    stream.write_all(line)?;
    let mut answer = String::new();
    match BufReader::new(stream).read_line(&mut answer)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(answer),
    }
}

fn reach(run: &RunDir, start: Absent<'_>, limit: Duration) -> Result<Option<UnixStream>, Failure> {
    let deadline = Instant::now() + limit;
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
        let is_starting = somebody_is_there(run);
        if let (false, Absent::Accept) = (is_starting, start) {
            return Ok(None);
        }
        if Instant::now() >= deadline {
            let message = format!(
                "the daemon does not come up; {} may say why",
                run.log().display()
            );
            return Err(FailureKind::Other.because(message));
        }
        match start {
            _ if is_starting => std::thread::sleep(LOOK_EVERY),
            Absent::Accept => {}
            Absent::Start => {
                let own = std::env::current_exe().map_err(not_started("this program"))?;
                start_keeper(run, &own)?;
            }
            Absent::StartProgram(program) => start_keeper(run, program)?,
        }
    }
}

/// Whether a daemon or a keeper has the lock.
fn somebody_is_there(run: &RunDir) -> bool {
    run.lock().exists() && matches!(keeper::lock(run), Ok(None))
}

fn not_started(what: &str) -> impl FnOnce(io::Error) -> Failure {
    move |error| {
        let message =
            format!("cannot start the daemon: {what}: {error}; run as root, or give --run-dir");
        FailureKind::System.because(message)
    }
}

/// Starts a keeper, which starts a daemon, and waits for the daemon's word.
fn start_keeper(run: &RunDir, program: &Path) -> Result<(), Failure> {
    run.create()
        .map_err(not_started(&run.path().display().to_string()))?;
    let log = File::options().create(true).append(true).open(run.log());
    let log = log.map_err(not_started(&run.log().display().to_string()))?;
    let mut keeper = Command::new(program)
        .arg("--run-dir")
        .arg(run.path())
        .arg("keeper")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .map_err(not_started(&program.display().to_string()))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// What becomes of a request to a daemon that ends without an answer, after `last`.
    fn ask_one_that_ends(last: impl Fn(&RunDir) + Sync) -> Result<Option<Reply>, Failure> {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::new(folder.path());
        let listener = UnixListener::bind(run.socket()).unwrap();
        std::thread::scope(|threads| {
            threads.spawn(|| {
                let (stream, _) = { listener }.accept().unwrap();
                last(&run);
                drop(stream);
            });
            ask(&run, Request::List, Absent::Accept)
        })
    }

    #[test]
    fn a_daemon_that_ends_in_order_is_asked_no_more_and_one_that_dies_is_an_error() {
        let in_order = ask_one_that_ends(|run| std::fs::remove_file(run.socket()).unwrap());
        assert!(in_order.unwrap().is_none());
        let died = ask_one_that_ends(|_| {}).unwrap_err();
        assert!(died.message.contains("broke off"), "{died}");
    }

    #[test]
    fn a_program_that_starts_nothing_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunDir::new(folder.path());
        let program = Absent::StartProgram(Path::new("true"));
        let failure = reach(&run, program, LOOK_EVERY).unwrap_err();
        assert!(failure.message.contains("does not come up"), "{failure}");
        assert!(reach(&run, Absent::Accept, LOOK_EVERY).unwrap().is_none());
    }
}
