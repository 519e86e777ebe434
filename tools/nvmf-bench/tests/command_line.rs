//! The program as people and scripts see it: exit codes, what is said, and what is not touched.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

fn bench(words: &str, place: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nvmf-bench"));
    let place = place.to_str().unwrap();
    command.args(
        words
            .split_whitespace()
            .map(|word| word.replace("FILE", place)),
    );
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn run(words: &str, place: &Path) -> (i32, String, String) {
    said(bench(words, place).output().unwrap())
}

fn said(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let code = output.status.code().expect("not killed");
    (code, text(output.stdout), text(output.stderr))
}

#[test]
fn what_does_not_go_together_is_two_and_touches_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("disk");
    for (words, says) in [
        ("", "no job"),
        (
            "--filename FILE --rw write --size 1m --time-based",
            "--runtime",
        ),
        ("compare FILE FILE --rw read", "--workload"),
    ] {
        let (code, _, err) = run(words, &place);
        assert!(code == 2 && err.contains(says), "{words}: {code} {err}");
        assert!(!place.exists(), "{words}");
    }
}

#[test]
fn output_that_cannot_be_written_is_said_before_the_run_where_it_can_be() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("disk");
    let job = "--filename FILE --rw write --size 64k --quiet";
    for file in ["--output", "--svg", "--hdr-log"] {
        let (code, _, err) = run(&format!("{job} {file} FILE/no/folder"), &place);
        assert!(code == 3 && err.contains("no/folder"), "{code} {err}");
        assert!(!place.exists(), "{file}");
    }
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (code, _, err) = said(bench(job, &place).stdout(full).output().unwrap());
    assert_eq!(code, 3, "{err}");
    assert!(err.starts_with("nvmf-bench: writing the output: "), "{err}");
}

#[test]
fn a_job_behind_a_stonewall_finds_what_the_one_before_it_made() {
    let folder = tempfile::tempdir().unwrap();
    let (place, jobs) = (folder.path().join("disk"), folder.path().join("jobs.fio"));
    let text =
        "[global]\nfilename=FILE\nbs=4k\n[make]\nrw=write\nsize=256k\n[look]\nstonewall\nrw=read\n";
    fs::write(&jobs, text.replace("FILE", place.to_str().unwrap())).unwrap();
    let (code, out, err) = run(&format!("{} --quiet", jobs.display()), &place);
    assert_eq!(code, 0, "{err}");
    assert!(
        out.contains("make: rw=write") && out.contains("look: rw=read"),
        "{out}"
    );
}

#[test]
fn what_was_measured_is_shown_though_a_later_job_cannot_begin() {
    let folder = tempfile::tempdir().unwrap();
    let (place, jobs) = (folder.path().join("disk"), folder.path().join("jobs.fio"));
    let text = "[make]\nfilename=FILE\nrw=write\nsize=64k\n[look]\nstonewall\nfilename=FILE-that-is-missing\nrw=read\n";
    fs::write(&jobs, text.replace("FILE", place.to_str().unwrap())).unwrap();
    let (code, out, err) = run(&format!("{} --quiet", jobs.display()), &place);
    assert_eq!(code, 3, "{err}");
    assert!(
        out.contains("make: rw=write") && err.contains("job look: "),
        "{out}{err}"
    );
}

/// Waits until the job writes; the signal is taken from before that.
fn wait_for_writes(child: &mut Child, place: &Path) {
    let begin = Instant::now();
    while fs::metadata(place).map_or(0, |file| file.blocks()) == 0 {
        assert_eq!(child.try_wait().unwrap(), None, "it has ended");
        assert!(
            begin.elapsed() < Duration::from_secs(60),
            "nothing is written"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_interrupt_ends_the_run_with_what_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("disk");
    let words = "--filename FILE --rw write --size 64k --time-based --runtime 600 --rate-iops 100";
    let mut child = bench(words, &place).spawn().unwrap();
    wait_for_writes(&mut child, &place);
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let (code, out, err) = said(child.wait_with_output().unwrap());
    assert_eq!(code, 130, "{err}");
    assert!(
        out.contains("IOPS=") && err.contains("interrupted"),
        "{out}{err}"
    );
}
