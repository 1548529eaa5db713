//! What is measured: rows of samples, each beside the floor it is a ratio of.

use hdrhistogram::Histogram;
use std::time::Duration;

/// What one sample of a row counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// The time of one operation, in picoseconds.
    Time,
    /// The time of one of many messages, in picoseconds; a rate for people.
    Message,
    /// The time of one chunk of this many bytes, in picoseconds; a throughput for people.
    Chunk(u32),
    /// Bytes.
    Bytes,
    /// Thousandths of a thing: descriptors, mappings, threads.
    Count,
}

impl Unit {
    /// Whether samples of it are times.
    pub fn is_time(self) -> bool {
        matches!(self, Unit::Time | Unit::Message | Unit::Chunk(_))
    }
}

/// Whose figure a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ours.
    Offshoot,
    /// What the operating system, or the barest code, takes for the same.
    Floor,
    /// Another way to do the same that people use.
    Peer,
}

/// What a row concerns, for those who want one only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Isolates that are threads.
    Thread,
    /// Isolates that are processes.
    Process,
}

/// A row before anything is measured.
#[derive(Clone, Debug)]
pub struct Row {
    /// What it is called, unique in its question.
    pub name: String,
    /// Whose it is.
    pub kind: Kind,
    /// What it concerns.
    pub side: Side,
    /// What its samples count.
    pub unit: Unit,
    /// The name of the row that its ratio is of.
    pub floor: Option<String>,
    /// What has to be known to compare it.
    pub note: Option<&'static str>,
    /// Whether it belongs into a chart for people who have ten seconds.
    pub charted: bool,
}

impl Row {
    /// A row of times.
    pub fn new(kind: Kind, side: Side, name: impl Into<String>) -> Row {
        Row {
            name: name.into(),
            kind,
            side,
            unit: Unit::Time,
            floor: None,
            note: None,
            charted: true,
        }
    }

    /// Counts something else than the time of one operation.
    pub fn unit(mut self, unit: Unit) -> Row {
        self.unit = unit;
        self
    }

    /// Takes its ratio of the row of this name.
    pub fn floor(mut self, name: impl Into<String>) -> Row {
        self.floor = Some(name.into());
        self
    }

    /// Says what has to be known to compare it.
    pub fn note(mut self, note: &'static str) -> Row {
        self.note = Some(note);
        self
    }

    /// Leaves it out of charts.
    pub fn not_charted(mut self) -> Row {
        self.charted = false;
        self
    }
}

/// A row with what was measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What was measured.
    pub row: Row,
    all: Histogram<u64>,
    round: Histogram<u64>,
    /// The median of each round, for the spread of the ratio.
    medians: Vec<f64>,
}

impl Measured {
    pub(crate) fn new(row: Row) -> Measured {
        // Three digits, of any size: no value is out of its range.
        let histogram = || Histogram::new(3).unwrap_or_else(|_| unreachable!("three is allowed"));
        Measured {
            row,
            all: histogram(),
            round: histogram(),
            medians: Vec::new(),
        }
    }

    /// Adds a sample in the row's unit.
    pub fn add(&mut self, sample: u64) {
        let _ = self.all.record(sample.max(1));
        let _ = self.round.record(sample.max(1));
    }

    /// Ends a round.
    pub(crate) fn end_round(&mut self) {
        if !self.round.is_empty() {
            self.medians.push(as_f64(self.round.value_at_quantile(0.5)));
            self.round.reset();
        }
    }

    /// Forgets what there is: it was warming up.
    pub(crate) fn reset(&mut self) {
        self.all.reset();
        self.round.reset();
        self.medians.clear();
    }

    /// How many samples there are.
    pub fn count(&self) -> u64 {
        self.all.len()
    }

    /// The sample at a quantile of 0 to 1, in the row's unit.
    pub fn quantile(&self, quantile: f64) -> f64 {
        as_f64(self.all.value_at_quantile(quantile))
    }

    /// The smallest sample.
    pub fn min(&self) -> f64 {
        as_f64(self.all.min())
    }

    /// The median's ratio to the floor's median.
    ///
    /// It is the median of the rounds' ratios, with the smallest and the largest beside it: a drift
    /// of the machine moves both sides of a round, and so cancels out.
    pub fn ratio(&self, floor: &Measured) -> Option<Ratio> {
        let mut ratios: Vec<f64> = self
            .medians
            .iter()
            .zip(&floor.medians)
            .map(|(ours, floor)| ours / floor)
            .filter(|ratio| ratio.is_finite())
            .collect();
        ratios.sort_by(f64::total_cmp);
        let (least, most) = (*ratios.first()?, *ratios.last()?);
        let median = match ratios.len() % 2 {
            1 => ratios[ratios.len() / 2],
            _ => f64::midpoint(ratios[ratios.len() / 2 - 1], ratios[ratios.len() / 2]),
        };
        Some(Ratio {
            median,
            least,
            most,
        })
    }
}

/// A row beside its floor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// The median over the rounds.
    pub median: f64,
    /// The smallest of a round.
    pub least: f64,
    /// The largest of a round.
    pub most: f64,
}

/// The samples of one round of a subject, by the index of its row.
#[derive(Debug)]
pub struct Recorder<'a> {
    pub(crate) rows: &'a mut [Measured],
}

impl Recorder<'_> {
    /// Adds the time of one operation.
    pub fn time(&mut self, row: usize, time: Duration) {
        self.raw(row, picos(time));
    }

    /// Adds the time of one of `n` operations that took `time` together.
    pub fn each(&mut self, row: usize, time: Duration, n: usize) {
        self.raw(row, picos(time) / u64::try_from(n.max(1)).unwrap_or(1));
    }

    /// Adds the times of many operations.
    pub fn times(&mut self, row: usize, times: impl IntoIterator<Item = Duration>) {
        for time in times {
            self.time(row, time);
        }
    }

    /// Adds a sample in the row's unit.
    pub fn raw(&mut self, row: usize, sample: u64) {
        if let Some(row) = self.rows.get_mut(row) {
            row.add(sample);
        }
    }
}

fn picos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().saturating_mul(1_000)).unwrap_or(u64::MAX)
}

#[allow(clippy::cast_precision_loss)] // Three digits are all that is known of it.
fn as_f64(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(rounds: &[&[u64]]) -> Measured {
        let mut measured = Measured::new(Row::new(Kind::Floor, Side::Thread, "row"));
        for round in rounds {
            for sample in *round {
                measured.add(*sample);
            }
            measured.end_round();
        }
        measured
    }

    #[test]
    fn a_ratio_is_taken_round_by_round_so_that_a_drift_cancels_out() {
        // The machine gets ten times slower half way; each round still says two.
        let floor = measured(&[&[10, 10, 900], &[10], &[100], &[100, 100]]);
        let ours = measured(&[&[20], &[20, 20], &[200], &[200]]);
        let ratio = ours.ratio(&floor).unwrap();
        assert_eq!((ratio.median, ratio.least, ratio.most), (2.0, 2.0, 2.0));
        assert!(measured(&[]).ratio(&floor).is_none());
    }

    #[test]
    fn what_was_warming_up_is_forgotten() {
        let mut row = measured(&[&[1_000_000]]);
        row.reset();
        row.add(5);
        row.end_round();
        assert_eq!((row.count(), row.min()), (1, 5.0));
        assert_eq!(row.medians, [5.0]);
    }
}
