//! `cargo bench -p offshoot-benches --bench memory [SECONDS]`: what it asks stands in `src/question/memory.rs`.

fn main() -> std::process::ExitCode {
    offshoot_benches::bench("memory")
}
