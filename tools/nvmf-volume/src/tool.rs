//! Running programs of util-linux, e2fsprogs and xfsprogs.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};

use crate::error::Error;
use crate::lock::VolumeLock;

/// Of what a program says, this much is kept for a message.
const MAX_SAID_BYTES: usize = 1000;

/// A program and the Debian package with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tool {
    pub program: &'static str,
    pub package: &'static str,
}

pub(crate) struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    /// The end of what was said on either stream.
    pub said: String,
}

impl Tool {
    /// Runs it to its end. With a lock, the program holds that too, as its standard input: a mkfs whose starter is killed still
    /// keeps others from the device.
    pub fn run<S: AsRef<OsStr>>(
        &self,
        lock: Option<&VolumeLock>,
        arguments: impl IntoIterator<Item = S>,
    ) -> Result<Ended, Error> {
        let started = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => Error::MissingTool {
                program: self.program,
                package: self.package,
            },
            _ => Error::system("run", Path::new(self.program))(error),
        };
        let stdin = match lock {
            Some(lock) => Stdio::from(lock.for_child()?),
            None => Stdio::from(File::open("/dev/null").map_err(started)?),
        };
        let output = Command::new(self.program)
            .args(arguments)
            .env("LC_ALL", "C")
            .stdin(stdin)
            .output()
            .map_err(started)?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let said = format!("{} {}", stdout.trim(), stderr.trim());
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut from = said.len().saturating_sub(MAX_SAID_BYTES);
        while !said.is_char_boundary(from) {
            from += 1;
        }
        Ok(Ended {
            status: output.status,
            stdout,
            said: said[from..].to_owned(),
        })
    }

    /// The error for an end that was not foreseen.
    pub fn failed(&self, device: &Path, ended: &Ended) -> Error {
        Error::Tool {
            program: self.program,
            device: device.to_owned(),
            status: ended.status.to_string(),
            said: ended.said.clone(),
        }
    }
}
