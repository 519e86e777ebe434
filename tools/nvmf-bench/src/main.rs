//! Placeholder.
fn main() {
    eprintln!("not built yet");
    std::process::exit(1);
}
