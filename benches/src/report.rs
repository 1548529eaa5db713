//! What was found: as a table for people, as JSON for programs.

use crate::engine::Answer;
use crate::machine::Machine;
use crate::record::{Kind, Measured, Ratio, Side, Unit};
use comfy_table::{Cell, CellAlignment, Table};
use serde_json::{Value, json};

/// All that was asked in a run.
#[derive(Debug)]
pub struct Report {
    /// On what.
    pub machine: Machine,
    /// The command that was run.
    pub command: String,
    /// What was found.
    pub answers: Vec<Answer>,
}

impl Report {
    /// For people: a table for each question, the machine, and what has to be known.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for answer in &self.answers {
            text += &table(answer);
            text.push('\n');
        }
        text += &format!("{}\n", self.machine.line());
        text += "Each ratio is the median over the rounds (least to most) of ours to the row that it names, measured in turns.\n";
        if let Some(busy) = self.machine.busy
            && busy > 0.05
        {
            text += &format!(
                "NOT IDLE: others kept {:.0} % of the cores busy meanwhile. Trust the ratios more than the times, and neither much.\n",
                busy * 100.0
            );
        }
        if self.machine.profile == "debug" {
            text += "A DEBUG build: none of this is worth anything.\n";
        }
        text
    }

    /// For programs: one object. Times are in nanoseconds.
    pub fn json(&self) -> Value {
        json!({
            "machine": self.machine,
            "command": self.command,
            "questions": self.answers.iter().map(of_answer).collect::<Vec<_>>(),
        })
    }
}

fn of_answer(answer: &Answer) -> Value {
    let rows: Vec<Value> = answer
        .rows
        .iter()
        .map(|row| {
            let unit = row.row.unit;
            let value = |sample: f64| sample / if unit == Unit::Bytes { 1.0 } else { 1_000.0 };
            let mut object = json!({
                "name": row.row.name,
                "kind": match row.row.kind {
                    Kind::Offshoot => "offshoot",
                    Kind::Floor => "floor",
                    Kind::Peer => "peer",
                },
                "isolation": match row.row.side {
                    Side::Thread => "thread",
                    Side::Process => "process",
                },
                "unit": match unit {
                    Unit::Bytes => "bytes",
                    Unit::Count => "count",
                    Unit::Time | Unit::Message | Unit::Chunk(_) => "ns",
                },
                "n": row.count(),
                "min": value(row.min()),
                "p50": value(row.quantile(0.5)),
                "p99": value(row.quantile(0.99)),
            });
            if let Some(note) = row.row.note {
                object["note"] = json!(note);
            }
            if let Some(floor) = answer.floor_of(row)
                && let Some(ratio) = row.ratio(floor)
            {
                object["ratio"] = json!({
                    "of": floor.row.name,
                    "median": ratio.median,
                    "least": ratio.least,
                    "most": ratio.most,
                });
            }
            object
        })
        .collect();
    let failed: Vec<Value> = answer
        .failed
        .iter()
        .map(|(who, why)| json!({ "who": who, "why": why }))
        .collect();
    json!({
        "name": answer.name,
        "asks": answer.asks,
        "rounds": answer.rounds,
        "rows": rows,
        "failed": failed,
    })
}

fn table(answer: &Answer) -> String {
    let mut table = Table::new();
    table.load_preset(comfy_table::presets::NOTHING);
    let rate = answer.rows.iter().any(|row| rate(row).is_some());
    let times = answer.rows.iter().filter(|row| row.row.unit.is_time());
    let medians: Vec<f64> = times.map(|row| row.quantile(0.5)).collect();
    let mut head = vec!["", "", "min", "p50", "p99", "ratio of p50", "n"];
    if rate {
        head.insert(5, "rate");
    }
    table.set_header(head);
    let right: &[usize] = if rate {
        &[2, 3, 4, 5, 7]
    } else {
        &[2, 3, 4, 6]
    };
    for column in right.iter().copied() {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for row in &answer.rows {
        let mark = match row.row.kind {
            Kind::Offshoot => "●",
            Kind::Floor => "–",
            Kind::Peer => "○",
        };
        let show = |sample| amount(row.row.unit, sample);
        let mut cells = vec![
            Cell::new(format!("{mark} {}", row.row.name)),
            Cell::new(match row.row.unit.is_time() {
                true => bar(row.quantile(0.5), &medians),
                false => String::new(),
            }),
            Cell::new(show(row.min())),
            Cell::new(show(row.quantile(0.5))),
            Cell::new(show(row.quantile(0.99))),
        ];
        if rate {
            cells.push(Cell::new(self::rate(row).unwrap_or_default()));
        }
        let against = answer.floor_of(row).and_then(|floor| {
            let Ratio {
                median,
                least,
                most,
            } = row.ratio(floor)?;
            Some(format!(
                "{median:.2} ({least:.2} to {most:.2}) × {}",
                floor.row.name
            ))
        });
        let note = row.row.note.map(|note| format!("[{note}]"));
        let last: Vec<String> = against.into_iter().chain(note).collect();
        cells.push(Cell::new(last.join(" ")));
        cells.push(Cell::new(row.count()));
        table.add_row(cells);
    }
    let mut text = format!("{}: {}\n", answer.name, answer.asks);
    text += "● Offshoot  – floor: the same by the barest means";
    if answer.rows.iter().any(|row| row.row.kind == Kind::Peer) {
        text += "  ○ peer";
    }
    text += "; the bars are logarithmic\n";
    for line in table.to_string().lines() {
        text += &format!("{}\n", line.trim_end());
    }
    for (who, why) in &answer.failed {
        text += &format!("  left out: {who}: {why}\n");
    }
    text
}

/// How many characters the longest bar has.
const BAR: f64 = 12.0;

/// A bar of a median among others, on a logarithmic scale.
fn bar(median: f64, all: &[f64]) -> String {
    let least = all.iter().copied().fold(f64::MAX, f64::min) / 3.0;
    let most = all.iter().copied().fold(0.0, f64::max);
    let part = (median / least).ln() / (most / least).ln();
    // Eighths of a character.
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (part * BAR * 8.0).round().clamp(1.0, BAR * 8.0);
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Clamped above.
    let eighths = eighths as usize;
    format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8])
}

/// A sample with its unit, in three digits.
pub fn amount(unit: Unit, sample: f64) -> String {
    match unit {
        Unit::Bytes => scaled(
            sample,
            &[(1_048_576.0, "MiB"), (1_024.0, "KiB"), (1.0, "B")],
        ),
        Unit::Count => digits(sample / 1_000.0),
        Unit::Time | Unit::Message | Unit::Chunk(_) => scaled(
            sample,
            &[(1e12, "s"), (1e9, "ms"), (1e6, "µs"), (1e3, "ns")],
        ),
    }
}

/// How many per second, where that is what people ask for.
fn rate(row: &Measured) -> Option<String> {
    let per_second = 1e12 / row.quantile(0.5);
    match row.row.unit {
        Unit::Message => Some(scaled(
            per_second,
            &[(1e6, "M/s"), (1e3, "k/s"), (1.0, "/s")],
        )),
        Unit::Chunk(bytes) => Some(scaled(
            per_second * f64::from(bytes),
            &[(1e9, "GB/s"), (1e6, "MB/s")],
        )),
        _ => None,
    }
}

fn scaled(value: f64, units: &[(f64, &str)]) -> String {
    let fits = units.iter().find(|(size, _)| value >= *size);
    let (size, unit) = fits.or(units.last()).copied().unwrap_or((1.0, ""));
    format!("{} {unit}", digits(value / size))
}

/// Three digits.
fn digits(value: f64) -> String {
    match value {
        value if value >= 99.95 => format!("{value:.0}"),
        value if value >= 9.995 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::record::{Measured, Row};

    pub(crate) fn report() -> Report {
        let measured = |row: Row, samples: &[u64]| {
            let mut measured = Measured::new(row);
            samples.iter().for_each(|sample| measured.add(*sample));
            measured.end_round();
            measured
        };
        let floor = Row::new(Kind::Floor, Side::Thread, "bare");
        let ours = Row::new(Kind::Offshoot, Side::Thread, "ours").floor("bare");
        let peer = Row::new(Kind::Peer, Side::Process, "theirs")
            .unit(Unit::Message)
            .note("a task on a shared pool");
        let mut machine = Machine::here();
        machine.busy = Some(0.25);
        Report {
            machine,
            command: "offshoot bench spawn".to_owned(),
            answers: vec![Answer {
                name: "spawn",
                asks: "how long?",
                rows: vec![
                    measured(floor, &[10_000_000, 20_000_000]),
                    measured(ours, &[15_000_000]),
                    measured(peer, &[25_000]),
                ],
                failed: vec![("fork", "there is no process".to_owned())],
                rounds: 1,
            }],
        }
    }

    #[test]
    fn a_table_names_what_each_figure_is_of_and_what_is_missing() {
        let text = report().text();
        for wanted in [
            "● ours",
            "– bare",
            "○ theirs",
            "1.50 (1.50 to 1.50) × bare",
            "[a task on a shared pool]",
            "40.0 M/s",
            "left out: fork: there is no process",
            "NOT IDLE: others kept 25 %",
        ] {
            assert!(text.contains(wanted), "{wanted} is not in\n{text}");
        }
    }

    #[test]
    fn the_json_has_the_same_in_nanoseconds() {
        let json = report().json();
        let rows = &json["questions"][0]["rows"];
        // The histogram has three digits.
        let p50 = rows[1]["p50"].as_f64().unwrap();
        assert!((p50 - 15_000.0).abs() < 15.0, "{p50}");
        assert_eq!(rows[1]["ratio"]["of"], "bare");
        assert_eq!(rows[2]["note"], "a task on a shared pool");
        assert_eq!(json["questions"][0]["failed"][0]["who"], "fork");
        assert_eq!(json["command"], "offshoot bench spawn");
    }

    #[test]
    fn bars_grow_with_the_logarithm_and_are_never_empty() {
        let lengths: Vec<usize> = [1.0, 10.0, 100.0]
            .iter()
            .map(|median| bar(*median, &[1.0, 10.0, 100.0]).chars().count())
            .collect();
        assert_eq!(lengths.last(), Some(&12));
        assert!(lengths.is_sorted() && lengths[0] > 0, "{lengths:?}");
        assert_eq!(bar(5.0, &[5.0]).chars().count(), 12);
    }

    #[test]
    fn amounts_have_three_digits_and_a_unit() {
        let times = [200_300.0, 16_000_000.0, 2.5e9, 1e12].map(|t| amount(Unit::Time, t));
        assert_eq!(times, ["200 ns", "16.0 µs", "2.50 ms", "1.00 s"]);
        assert_eq!(amount(Unit::Bytes, 12_288.0), "12.0 KiB");
        assert_eq!(amount(Unit::Count, 4_000.0), "4.00");
    }
}
