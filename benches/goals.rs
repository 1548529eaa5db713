//! `cargo bench -p offshoot-benches --bench goals [SECONDS]`: every goal, the measured ratio, pass or short.

fn main() -> std::process::ExitCode {
    offshoot_benches::bench_goals()
}
