//! A corpus is kept as one text file for each target, an input a line in hexadecimal, and unpacked into a folder for libFuzzer.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

fn unpack(file: &Path, folder: &Path) -> Result<(), String> {
    let text = fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    for (n, line) in text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.starts_with('#'))
    {
        let input = nvme_proto_fuzz::from_hex(line).ok_or(format!(
            "{}:{}: not hexadecimal",
            file.display(),
            n + 1
        ))?;
        let path = folder.join(format!("kept-{n}"));
        fs::write(&path, input).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

fn pack(folder: &Path, file: &Path) -> Result<(), String> {
    let mut inputs = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))? {
        let path = entry.map_err(|error| error.to_string())?.path();
        inputs.push(fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?);
    }
    inputs.sort_by(|a, b| (a.len(), a).cmp(&(b.len(), b)));
    let mut text = String::new();
    for input in inputs {
        for byte in input {
            write!(text, "{byte:02x}").expect("strings take everything");
        }
        text.push('\n');
    }
    fs::write(file, text).map_err(|error| format!("{}: {error}", file.display()))
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let result = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["unpack", file, folder] => unpack(Path::new(file), Path::new(folder)),
        ["pack", folder, file] => pack(Path::new(folder), Path::new(file)),
        _ => Err("corpus unpack FILE FOLDER | corpus pack FOLDER FILE".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("corpus: {error}");
            ExitCode::FAILURE
        }
    }
}
