//! `cargo bench -p offshoot-benches --bench teardown [SECONDS]`: what it asks stands in `src/question/teardown.rs`.

fn main() -> std::process::ExitCode {
    offshoot_benches::bench("teardown")
}
