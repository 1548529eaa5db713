//! `cargo bench -p offshoot-benches --bench burst [SECONDS]`: what it asks stands in `src/question/burst.rs`.

fn main() -> std::process::ExitCode {
    offshoot_benches::bench("burst")
}
