//! `cargo bench -p offshoot-benches --bench call [SECONDS]`: what it asks stands in `src/question/call.rs`.

fn main() -> std::process::ExitCode {
    offshoot_benches::bench("call")
}
