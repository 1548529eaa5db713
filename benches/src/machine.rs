//! On what it was measured, and when.

use std::fs;
use std::time::SystemTime;

/// What has to be said beside a figure.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Machine {
    /// The processor, by its own name.
    pub processor: String,
    /// How many cores this process may use.
    pub cores: usize,
    /// The memory of the machine, in GiB.
    pub memory_gib: u64,
    /// The kernel.
    pub kernel: String,
    /// Whether the processor is a virtual one, whose wake-ups are slow.
    pub virtual_machine: bool,
    /// The day, in UTC, as 2026-01-31.
    pub date: String,
    /// The version of Offshoot.
    pub version: &'static str,
    /// How it was compiled.
    pub profile: &'static str,
    /// What part of the cores others kept busy meanwhile, from 0 to 1, if it was measured.
    pub busy: Option<f64>,
}

impl Machine {
    /// This one, now.
    pub fn here() -> Machine {
        let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = info.lines().find(|line| line.starts_with(name));
            line.and_then(|line| Some(line.split_once(':')?.1.trim().to_owned()))
        };
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory = memory
            .split_whitespace()
            .nth(1)
            .and_then(|kib| kib.parse::<u64>().ok());
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let flags = field("flags").unwrap_or_default();
        Machine {
            processor: field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cores: offshoot_sys::limits::usable_cores(),
            memory_gib: (memory.unwrap_or(0) + (1 << 19)) >> 20,
            kernel: format!("Linux {}", kernel.trim()),
            virtual_machine: flags.split(' ').any(|flag| flag == "hypervisor"),
            date: today(),
            version: env!("CARGO_PKG_VERSION"),
            profile: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            },
            busy: None,
        }
    }

    /// A line for people.
    pub fn line(&self) -> String {
        let Machine {
            processor,
            cores,
            memory_gib,
            kernel,
            date,
            version,
            ..
        } = self;
        let kind = match self.virtual_machine {
            true => "virtual machine, ",
            false => "",
        };
        let debug = match self.profile {
            "debug" => ", a DEBUG build",
            _ => "",
        };
        format!(
            "{kind}{cores} cores of {processor}, {memory_gib} GiB, {kernel}; {date}, Offshoot {version}{debug}"
        )
    }
}

/// The day in UTC.
fn today() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let days = since.map_or(0, |since| since.as_secs() / 86_400);
    date(days)
}

/// The date of a day since 1970, by the calendar's cycles of 400 years (146,097 days) that begin
/// with a March.
fn date(days: u64) -> String {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let in_year = day - (365 * year + year / 4 - year / 100);
    let from_march = (5 * in_year + 2) / 153;
    let day = in_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 {
        from_march + 3
    } else {
        from_march - 9
    };
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

/// How busy the machine is with other things: what its cores did, less what this process did.
#[derive(Debug)]
pub struct Others {
    machine: (u64, u64),
    own: u64,
}

impl Others {
    /// Begins to watch.
    pub fn watch() -> Others {
        Others {
            machine: machine_ticks(),
            own: own_ticks(),
        }
    }

    /// The part of all cores that others have kept busy since, from 0 to 1.
    #[allow(clippy::cast_precision_loss)] // A part has two digits.
    pub fn part(&self) -> Option<f64> {
        let (busy, all) = machine_ticks();
        let (busy, all) = (busy - self.machine.0, all - self.machine.1);
        let others = busy.saturating_sub(own_ticks().saturating_sub(self.own));
        (all > 0).then(|| others as f64 / all as f64)
    }
}

/// What all cores have done, and that and what they could have done, in ticks.
fn machine_ticks() -> (u64, u64) {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = line
        .split_whitespace()
        .skip(1)
        .take(8)
        .filter_map(|ticks| ticks.parse().ok())
        .collect();
    let all: u64 = ticks.iter().sum();
    // The fourth and fifth are idle and waiting for a disk.
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    (all - idle, all)
}

/// What this process and those of its children that it has reaped have done, in ticks.
fn own_ticks() -> u64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name, which may hold blanks, in its brackets.
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields
        .split_whitespace()
        .skip(11)
        .take(4)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let dates = [0, 59, 11_016, 19_782, 20_513].map(date);
        let wanted = [
            "1970-01-01",
            "1970-03-01",
            "2000-02-29",
            "2024-02-29",
            "2026-03-01",
        ];
        assert_eq!(dates, wanted);
    }

    #[test]
    fn this_machine_is_described_in_one_line() {
        let line = Machine::here().line();
        assert!(line.contains("Linux ") && !line.contains('\n'), "{line}");
    }
}
