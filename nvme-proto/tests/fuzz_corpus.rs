//! Replays the corpus of the fuzz targets, and every input that once broke one, in the ordinary tests.

#[path = "../../fuzz/src/controller.rs"]
mod controller;
#[path = "../../fuzz/src/decoder.rs"]
mod decoder;
#[path = "../../fuzz/src/hex.rs"]
mod hex;
#[path = "../../fuzz/src/host.rs"]
mod host;
#[path = "../../fuzz/src/input.rs"]
mod input;
#[path = "tcp/support/raw.rs"]
#[allow(dead_code)]
mod raw;

use std::path::Path;

/// Runs every line of `fuzz/corpus/TARGET.hex` and `fuzz/regressions/TARGET.hex`; the one at work is printed on failure.
fn replay(target: &str, run: fn(&[u8])) {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let mut inputs = 0;
    for folder in ["corpus", "regressions"] {
        let path = fuzz.join(folder).join(target).with_extension("hex");
        let text = std::fs::read_to_string(&path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for (n, line) in text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.starts_with('#'))
        {
            println!("{}:{}", path.display(), n + 1);
            run(&hex::from_hex(line).expect("hexadecimal"));
            inputs += 1;
        }
    }
    assert!(
        inputs > 20,
        "the corpus of {target} has only {inputs} inputs"
    );
}

#[test]
fn decoder_corpus() {
    replay("decoder", decoder::run);
}

#[test]
fn controller_corpus() {
    replay("controller", controller::run);
}

#[test]
fn host_corpus() {
    replay("host", host::run);
}
