//! `cargo bench -p offshoot-benches --bench bulk [SECONDS]`: what it asks stands in `src/question/bulk.rs`.

fn main() -> std::process::ExitCode {
    offshoot_benches::bench("bulk")
}
