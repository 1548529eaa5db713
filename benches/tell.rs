//! `cargo bench -p offshoot-benches --bench tell [SECONDS]`: what it asks stands in `src/question/tell.rs`.

fn main() -> std::process::ExitCode {
    offshoot_benches::bench("tell")
}
