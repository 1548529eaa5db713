//! What the runtime logs, on the standard error, as `OFFSHOOT_LOG` asks for it.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Says what should be logged.
const LOG: &str = "OFFSHOOT_LOG";

/// Checks what `OFFSHOOT_LOG` says.
///
/// # Errors
/// When it is neither a level nor directives, `target=level` with commas between. A name alone would be a target, and
/// is more likely a level that is misspelt.
pub(crate) fn check() -> Result<(), String> {
    let Some(text) = std::env::var_os(LOG) else {
        return Ok(());
    };
    let text = text.to_string_lossy();
    let is_directive = |one: &str| {
        let names_target = one.contains(['=', '[']) || one.starts_with("offshoot");
        one.is_empty() || names_target || one.parse::<LevelFilter>().is_ok()
    };
    if text.split(',').all(|one| is_directive(one.trim())) && EnvFilter::try_new(&*text).is_ok() {
        return Ok(());
    }
    Err(format!(
        "the environment variable {LOG} is `{text}`: set it to `off`, `error`, `warn`, `info`, `debug` or `trace`, to \
         directives like `offshoot=debug,warn`, or unset it"
    ))
}

/// Installs the subscriber. Runs in every process of the tree, since `main` runs in the first only.
pub(crate) fn install() {
    let filter = EnvFilter::builder()
        // What goes wrong is in the reports already; these are for who looks for a reason.
        .with_default_directive(LevelFilter::OFF.into())
        .with_env_var(LOG)
        .from_env_lossy();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Otherwise it prints, by what panics, that it cannot print.
        .log_internal_errors(false);
    // A process that has one already keeps it.
    let _ = subscriber.try_init();
}
