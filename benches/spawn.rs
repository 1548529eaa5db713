//! `cargo bench -p offshoot-benches --bench spawn [SECONDS]`: what it asks stands in `src/question/spawn.rs`.

fn main() -> std::process::ExitCode {
    offshoot_benches::bench("spawn")
}
