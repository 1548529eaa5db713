//! What was found, as a picture for a README: a bar from the median to the 99th percentile on a
//! logarithmic axis, a panel for each question.

use crate::engine::{Answer, Failure};
use crate::record::{Kind, Measured};
use crate::report::{Report, amount};
use plotters::coord::combinators::LogCoord;
use plotters::coord::ranged1d::Ranged;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{FontDesc, RGBColor};

const WIDTH: u32 = 900;
const LABELS: u32 = 330;
const RIGHT: u32 = 90;
const ROW: u32 = 24;
/// Of a panel, above and below its rows.
const HEAD: u32 = 46;
const AXIS: u32 = 34;
/// Of the picture.
const TOP: u32 = 30;
const FOOT: u32 = 34;

const INK: RGBColor = RGBColor(31, 41, 55);
const PALE: RGBColor = RGBColor(107, 114, 128);
const LINE: RGBColor = RGBColor(229, 231, 235);

fn color(kind: Kind) -> RGBColor {
    match kind {
        Kind::Offshoot => RGBColor(37, 99, 235),
        Kind::Floor => RGBColor(148, 163, 184),
        Kind::Peer => RGBColor(234, 138, 32),
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

/// The picture, as the text of an SVG file.
///
/// # Errors
/// When there is nothing to be drawn.
pub fn svg(report: &Report) -> Result<String, Failure> {
    let panels: Vec<(&Answer, Vec<&Measured>)> = report
        .answers
        .iter()
        .map(|answer| {
            let rows = answer.rows.iter();
            let rows = rows.filter(|row| row.row.charted && row.row.unit.is_time());
            (answer, rows.collect::<Vec<_>>())
        })
        .filter(|(_, rows)| !rows.is_empty())
        .collect();
    if panels.is_empty() {
        return Err("there is nothing to be drawn: no row has a time".into());
    }
    let height_of = |rows: &[&Measured]| HEAD + AXIS + ROW * u32::try_from(rows.len()).unwrap_or(1);
    let height: u32 = panels.iter().map(|(_, rows)| height_of(rows)).sum();
    let mut text = String::new();
    {
        let size = (WIDTH, TOP + height + FOOT);
        let root = SVGBackend::with_string(&mut text, size).into_drawing_area();
        root.fill(&WHITE)?;
        legend(&root, panels.iter().flat_map(|(_, rows)| rows))?;
        let mut top = TOP;
        for (answer, rows) in &panels {
            panel(&root, top, answer, rows)?;
            top += height_of(rows);
        }
        let foot = format!("{} — {}", report.command, report.machine.line());
        write(
            &root,
            &foot,
            11,
            PALE,
            HPos::Left,
            (14, pixels(top + FOOT / 2)),
        )?;
        root.present()?;
    }
    Ok(text)
}

fn pixels(n: u32) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}

fn write(
    root: &Area<'_>,
    text: &str,
    size: u32,
    color: RGBColor,
    side: HPos,
    at: (i32, i32),
) -> Result<(), Failure> {
    // The backend takes the size for points of 1.24 pixels.
    let font: FontDesc<'_> = ("system-ui, sans-serif", f64::from(size) * 1.24).into_font();
    let style = TextStyle::from(font)
        .color(&color)
        .pos(Pos::new(side, VPos::Center));
    root.draw(&Text::new(text.to_owned(), at, style))?;
    Ok(())
}

fn legend<'r>(
    root: &Area<'_>,
    rows: impl Iterator<Item = &'r &'r Measured> + Clone,
) -> Result<(), Failure> {
    let kinds = [
        (Kind::Offshoot, "Offshoot"),
        (Kind::Floor, "floor: the same by the barest means"),
        (Kind::Peer, "peer"),
    ];
    let mut left = 14;
    for (kind, name) in kinds {
        if !rows.clone().any(|row| row.row.kind == kind) {
            continue;
        }
        root.draw(&Circle::new((left + 5, 20), 5, color(kind).filled()))?;
        write(root, name, 13, INK, HPos::Left, (left + 16, 20))?;
        left += 44 + 7 * i32::try_from(name.len()).unwrap_or(0);
    }
    let how = "dot: median, bar: to the 99th percentile";
    write(root, how, 12, PALE, HPos::Right, (pixels(WIDTH) - 14, 20))
}

fn panel(root: &Area<'_>, top: u32, answer: &Answer, rows: &[&Measured]) -> Result<(), Failure> {
    let n = u32::try_from(rows.len()).unwrap_or(1);
    let title = format!("{}: {}", answer.name, answer.asks);
    write(
        root,
        &title,
        15,
        INK,
        HPos::Left,
        (14, pixels(top + HEAD / 2)),
    )?;
    let (least, most) = bounds(rows);
    let axis: LogCoord<f64> = (least..most).log_scale().into();
    let at = |sample: f64| axis.map(&sample, (pixels(LABELS), pixels(WIDTH - RIGHT)));
    let (above, below) = (pixels(top + HEAD), pixels(top + HEAD + n * ROW));
    for power in powers(least, most) {
        let x = at(power);
        root.draw(&PathElement::new(vec![(x, above), (x, below + 4)], LINE))?;
        let text = amount(rows[0].row.unit, power)
            .replace(".00", "")
            .replace(".0", "");
        write(root, &text, 11, PALE, HPos::Center, (x, below + 14))?;
    }
    for (row, y) in rows
        .iter()
        .zip((0..).map(|n| above + n * pixels(ROW) + pixels(ROW) / 2))
    {
        let (p50, p99) = (row.quantile(0.5), row.quantile(0.99));
        let color = color(row.row.kind);
        let ours = row.row.kind == Kind::Offshoot;
        let ink = if ours { INK } else { PALE };
        write(
            root,
            &row.row.name,
            12,
            ink,
            HPos::Right,
            (pixels(LABELS) - 12, y),
        )?;
        let bar = Rectangle::new(
            [(at(p50), y - 4), (at(p99), y + 4)],
            color.mix(0.35).filled(),
        );
        root.draw(&bar)?;
        root.draw(&Circle::new((at(p50), y), 5, color.filled()))?;
        let text = amount(row.row.unit, p50);
        write(
            root,
            &text,
            12,
            ink,
            HPos::Left,
            (at(p99).max(at(p50)) + 9, y),
        )?;
    }
    Ok(())
}

/// The powers of ten around all medians and percentiles, some room on both sides.
fn bounds(rows: &[&Measured]) -> (f64, f64) {
    let least = rows
        .iter()
        .map(|row| row.quantile(0.5))
        .fold(f64::MAX, f64::min);
    let most = rows
        .iter()
        .map(|row| row.quantile(0.99))
        .fold(1.0, f64::max);
    (least.max(1.0) / 1.6, most * 1.6)
}

/// The powers of ten between two values.
fn powers(least: f64, most: f64) -> impl Iterator<Item = f64> {
    (0..18)
        .map(|power| 10_f64.powi(power))
        .filter(move |power| (least..=most).contains(power))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::report;

    #[test]
    fn a_chart_shows_every_row_of_times_and_is_whole() {
        let text = svg(&report()).unwrap();
        for wanted in [
            "<svg",
            "</svg>",
            "ours",
            "bare",
            "theirs",
            "floor: the same",
            "offshoot bench spawn",
        ] {
            assert!(text.contains(wanted), "{wanted} is not in\n{text}");
        }
        assert!(!text.contains("NaN"), "{text}");
    }

    #[test]
    fn nothing_to_draw_is_an_error_and_no_empty_picture() {
        let mut report = report();
        report.answers.clear();
        assert!(
            svg(&report)
                .unwrap_err()
                .to_string()
                .contains("nothing to be drawn")
        );
    }
}
