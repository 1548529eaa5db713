//! `cargo bench -p offshoot-benches --bench tree [SECONDS]`: what it asks stands in `src/question/tree.rs`.

fn main() -> std::process::ExitCode {
    offshoot_benches::bench("tree")
}
