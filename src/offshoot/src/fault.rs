//! Fault points: places at which a test can make something go wrong.
//!
//! `OFFSHOOT_FAULT=stage:action` makes the named stage `kill` (SIGKILL itself), `stop` (SIGSTOP
//! itself), `exit` (with code 3), `panic` or `hang` (block for ever). Without the feature
//! `fault-points` this is nothing at all.
//!
//! | stage | where |
//! |---|---|
//! | `S3` | a new process, told who it is, its environment set, before anything else is prepared |
//! | `S5` | a new process, having said that it is ready |
//! | `S8` | a process whose isolate has ended, having said so |

/// Does here what the environment says.
#[cfg(feature = "fault-points")]
pub(crate) fn point(stage: &str) {
    let Ok(wanted) = std::env::var("OFFSHOOT_FAULT") else {
        return;
    };
    let Some((at, action)) = wanted.split_once(':') else {
        return;
    };
    if at != stage {
        return;
    }
    let signal = |number| {
        if let Ok(this) = offshoot_sys::pidfd::Pidfd::open(offshoot_sys::process::id()) {
            let _ = this.signal(number);
        }
    };
    match action {
        "kill" => signal(offshoot_sys::signal::SIGKILL),
        "stop" => signal(offshoot_sys::signal::SIGSTOP),
        "exit" => std::process::exit(3),
        "panic" => panic!("fault point {stage}"),
        "hang" => loop {
            std::thread::park();
        },
        other => panic!("unknown action `{other}` in OFFSHOOT_FAULT"),
    }
}

/// Nothing.
#[cfg(not(feature = "fault-points"))]
pub(crate) fn point(_: &str) {}
