//! Runs a step of the protocol's hot path for a tool that counts instructions: see `benches/instructions.sh`.
//!
//! `hot list` prints the steps; `hot NAME BATCHES` takes one so many times, and prints how many commands that were.

use std::process::ExitCode;

use nvmf_benches::hot::{BATCH, CASES, Counted, Pair};

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["list"] => {
            for (name, _, _) in CASES {
                println!("{name}");
            }
            ExitCode::SUCCESS
        }
        [name, batches] => {
            let case = CASES.iter().find(|(known, _, _)| *known == name);
            let (Some((_, flow, step)), Ok(batches)) = (case, batches.parse::<usize>()) else {
                eprintln!("hot: {name:?} is no step (see `hot list`), or {batches:?} no number");
                return ExitCode::from(2);
            };
            let mut pair = Pair::new();
            for _ in 0..batches {
                pair.run(*flow, *step, &mut Counted);
            }
            println!("{}", batches * BATCH);
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("usage: hot list | hot NAME BATCHES");
            ExitCode::from(2)
        }
    }
}
