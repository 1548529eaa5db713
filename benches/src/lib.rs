//! What the benches share: samples, and a table that a person can read.
//!
//! Every bench measures Offshoot and its floor in the same run, interleaved in rounds, because the
//! speed of a shared machine drifts. Read the ratios; the microseconds are this machine's.

use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Samples by row, in the order in which the rows first came.
#[derive(Default)]
pub struct Table {
    order: Vec<String>,
    rows: BTreeMap<String, Histogram<u64>>,
}

impl Table {
    /// Adds one sample to a row.
    pub fn add(&mut self, row: &str, sample: Duration) {
        self.add_nanos(row, u64::try_from(sample.as_nanos()).unwrap_or(u64::MAX));
    }

    /// Adds one sample in nanoseconds to a row.
    ///
    /// # Panics
    /// Never: the histogram grows.
    pub fn add_nanos(&mut self, row: &str, nanos: u64) {
        if !self.rows.contains_key(row) {
            self.order.push(row.to_owned());
            let histogram = Histogram::new(3).expect("three digits are allowed");
            self.rows.insert(row.to_owned(), histogram);
        }
        if let Some(histogram) = self.rows.get_mut(row) {
            // It grows by itself, so that no value is out of its range.
            let _ = histogram.record(nanos.max(1));
        }
    }

    /// Adds the time that `f` takes to a row.
    pub fn time<R>(&mut self, row: &str, f: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        let value = f();
        self.add(row, start.elapsed());
        value
    }

    /// Prints it: n, min, p50, p99 in microseconds, and p50 as a ratio to the row's floor.
    pub fn print(&self, title: &str, floors: &[(&str, &str)]) {
        println!("{title}");
        println!(
            "  {:<44} {:>7} {:>10} {:>10} {:>10}  ratio of p50",
            "", "n", "min µs", "p50 µs", "p99 µs"
        );
        let micros = |nanos: u64| Duration::from_nanos(nanos).as_secs_f64() * 1e6;
        for row in &self.order {
            let Some(samples) = self.rows.get(row) else {
                continue;
            };
            let floor = floors
                .iter()
                .find(|(of, _)| of == row)
                .and_then(|(_, floor)| Some((*floor, self.rows.get(*floor)?)));
            let ratio = floor.map_or(String::new(), |(name, floor)| {
                let ratio =
                    micros(samples.value_at_quantile(0.5)) / micros(floor.value_at_quantile(0.5));
                format!("{ratio:.2} × {name}")
            });
            println!(
                "  {row:<44} {:>7} {:>10.2} {:>10.2} {:>10.2}  {ratio}",
                samples.len(),
                micros(samples.min()),
                micros(samples.value_at_quantile(0.5)),
                micros(samples.value_at_quantile(0.99)),
            );
        }
        println!();
    }
}

/// How many rounds to run: the first numeric argument, else `default`. Cargo's own arguments
/// (`--bench`) are passed over.
pub fn rounds(default: usize) -> usize {
    std::env::args()
        .skip(1)
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(default)
}
