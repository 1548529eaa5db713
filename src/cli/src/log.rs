//! What the runtime logs, on the standard error, as `OFFSHOOT_LOG` asks for it.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Installs the subscriber. Runs in every process of the tree, since `main` runs in the first only.
pub(crate) fn install() {
    let filter = EnvFilter::builder()
        // What goes wrong is in the reports already; these are for who looks for a reason.
        .with_default_directive(LevelFilter::OFF.into())
        .with_env_var("OFFSHOOT_LOG")
        .from_env_lossy();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Otherwise it prints, by what panics, that it cannot print.
        .log_internal_errors(false);
    // A process that has one already keeps it.
    let _ = subscriber.try_init();
}
