//! What is wrong with a configuration, and where.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// One mistake: where it was made, in which key, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file; `None` for the command line.
    pub file: Option<PathBuf>,
    /// The line in the file, from 1.
    pub line: Option<usize>,
    /// The key or flag at fault.
    pub key: String,
    /// What is wrong with it and what to do.
    pub message: String,
}

impl Problem {
    /// File, line and key, as far as they are known.
    pub fn place(&self) -> String {
        let mut place = String::new();
        if let Some(file) = &self.file {
            place = file.display().to_string();
            if let Some(line) = self.line {
                place = format!("{place}:{line}");
            }
        }
        match (place.is_empty(), self.key.is_empty()) {
            (_, true) => place,
            (true, false) => self.key.clone(),
            (false, false) => format!("{place}: {}", self.key),
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place() {
            place if place.is_empty() => f.write_str(&self.message),
            place => write!(f, "{place}: {}", self.message),
        }
    }
}

/// All mistakes of one configuration; never empty where it is returned as an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Collects problems while one source is read, and knows how to name places in it.
pub struct Collector<'a> {
    source: Option<(&'a Path, &'a str)>,
    problems: Vec<Problem>,
}

/// A place in the source: a key, and for a file the bytes that its value takes.
#[derive(Clone, Debug)]
pub struct Place {
    /// The key or flag.
    pub key: String,
    /// The value's bytes in the file.
    pub span: Option<Range<usize>>,
}

impl Place {
    /// A place on the command line, or one of a file that has no value (a missing key).
    pub fn key(key: impl Into<String>) -> Self {
        Place {
            key: key.into(),
            span: None,
        }
    }

    /// A value in a file.
    pub fn at(key: impl Into<String>, span: Range<usize>) -> Self {
        Place {
            key: key.into(),
            span: Some(span),
        }
    }
}

impl<'a> Collector<'a> {
    /// For the command line.
    pub fn for_command_line() -> Self {
        Collector {
            source: None,
            problems: Vec::new(),
        }
    }

    /// For the file `path` with the content `text`.
    pub fn for_file(path: &'a Path, text: &'a str) -> Self {
        Collector {
            source: Some((path, text)),
            problems: Vec::new(),
        }
    }

    /// Notes a problem.
    pub fn push(&mut self, place: &Place, message: impl Into<String>) {
        let line = match (&self.source, &place.span) {
            (Some((_, text)), Some(span)) => Some(line_of(text, span.start)),
            _ => None,
        };
        self.problems.push(Problem {
            file: self.source.map(|(path, _)| path.to_owned()),
            line,
            key: place.key.clone(),
            message: message.into(),
        });
    }

    /// `result`'s value, or `None` with its error noted.
    pub fn ok<T, E: fmt::Display>(&mut self, place: &Place, result: Result<T, E>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.push(place, error.to_string());
                None
            }
        }
    }

    /// `value` if nothing was noted.
    pub fn finish<T>(self, value: T) -> Result<T, Problems> {
        if self.problems.is_empty() {
            Ok(value)
        } else {
            Err(Problems(self.problems))
        }
    }
}

/// The line, from 1, that byte `offset` of `text` lies in.
pub fn line_of(text: &str, offset: usize) -> usize {
    let before = &text.as_bytes()[..offset.min(text.len())];
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}
