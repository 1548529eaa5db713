//! `cargo bench -p offshoot-benches --bench stream [SECONDS]`: what it asks stands in `src/question/stream.rs`.

fn main() -> std::process::ExitCode {
    offshoot_benches::bench("stream")
}
