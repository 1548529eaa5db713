//! Faults by a builder, for those who do not want to write them into the environment.

use crate::fault::STAGES;
use std::time::Duration;

/// Something that is to go wrong at a stage of the runtime; given to [`Builder::faults`](crate::Builder::faults). With the feature `fault-points` only.
///
/// The stages, where each is, and which of them can fail: `src/fault.rs` of this crate has the table. `S1` to `S8` are those of a process from its fork to
/// its end, `thread`, `fork`, `bind` and so on the steps of the runtime that ask the system for something.
///
/// ```standalone_crate
/// use offshoot::testing::Fault;
///
/// # fn main() -> Result<(), offshoot::Error> {
/// let none = Fault::at("thread").of("worker").fail(12); // ENOMEM
/// let fresh = offshoot::Builder::new().reserve_threads(0);
/// let result = fresh.faults([none]).run(async || {
///     offshoot::nursery(async |nursery| nursery.spawn("worker").await.map(drop)).await
/// });
/// assert!(result.unwrap_err().is_spawn());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a fault happens in trees that it is given to"]
pub struct Fault {
    stage: &'static str,
    name: Option<String>,
    times: Option<u32>,
    action: String,
}

impl Fault {
    /// At this stage; SIGKILL of the process that comes to it, unless something else is said.
    ///
    /// # Panics
    /// If there is no such stage.
    pub fn at(stage: &str) -> Fault {
        let known = STAGES.iter().find(|known| **known == stage);
        let Some(stage) = known else {
            panic!("there is no stage `{stage}`; there are {STAGES:?}");
        };
        Fault {
            stage,
            name: None,
            times: None,
            action: "kill".to_owned(),
        }
    }

    /// Only where an isolate of this name is concerned.
    pub fn of(mut self, isolate: impl Into<String>) -> Fault {
        self.name = Some(isolate.into());
        self
    }

    /// Only so many times, in each process.
    pub fn times(mut self, times: u32) -> Fault {
        self.times = Some(times);
        self
    }

    /// The process kills itself by SIGKILL.
    pub fn kill(self) -> Fault {
        self.doing("kill".to_owned())
    }

    /// The process stops itself by SIGSTOP.
    pub fn stop(self) -> Fault {
        self.doing("stop".to_owned())
    }

    /// The process exits with this code.
    pub fn exit(self, code: i32) -> Fault {
        self.doing(format!("exit={code}"))
    }

    /// A panic.
    pub fn panic(self) -> Fault {
        self.doing("panic".to_owned())
    }

    /// The thread never comes back.
    pub fn hang(self) -> Fault {
        self.doing("hang".to_owned())
    }

    /// The thread comes back later, to the millisecond.
    pub fn delay(self, by: Duration) -> Fault {
        self.doing(format!("delay={}", by.as_millis().min(i32::MAX as u128)))
    }

    /// The system says this, by the number of its error; where the stage can fail.
    pub fn fail(self, errno: i32) -> Fault {
        self.doing(format!("fail={errno}"))
    }

    fn doing(mut self, action: String) -> Fault {
        self.action = action;
        self
    }

    /// As the environment has it.
    pub(crate) fn text(&self) -> String {
        let mut text = self.stage.to_owned();
        if let Some(name) = &self.name {
            text.push_str(&format!("@{name}"));
        }
        if let Some(times) = self.times {
            text.push_str(&format!("*{times}"));
        }
        format!("{text}:{}", self.action)
    }
}
