//! Latency over percentile as an SVG: logarithmic in both directions, so that the tail is as wide as the body.

use std::fmt::Write;

use hdrhistogram::Histogram;

use crate::units::show_ns;

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 80.0;
const RIGHT: f64 = 220.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 60.0;
const COLOURS: [&str; 8] = [
    "#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f",
];
/// Nines shown: 0, 90, 99, … percent.
const MAX_NINES: f64 = 5.0;

/// One line of the plot.
pub struct Line<'a> {
    /// What the legend says.
    pub name: String,
    /// Latency in nanoseconds.
    pub latency: &'a Histogram<u64>,
}

/// Draws `lines`.
pub fn latency_plot(title: &str, lines: &[Line<'_>]) -> String {
    let lines: Vec<&Line<'_>> = lines.iter().filter(|l| !l.latency.is_empty()).collect();
    let low = lines
        .iter()
        .map(|l| l.latency.min())
        .min()
        .unwrap_or(1)
        .max(1) as f64;
    let high = lines.iter().map(|l| l.latency.max()).max().unwrap_or(10) as f64;
    let (low, high) = (
        low.log10().floor(),
        high.log10().ceil().max(low.log10().floor() + 1.0),
    );
    let x = |nines: f64| LEFT + nines / MAX_NINES * (WIDTH - LEFT - RIGHT);
    let y = |ns: f64| {
        HEIGHT - BOTTOM - (ns.max(1.0).log10() - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
    };
    let mut svg = String::new();
    let _ = write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/><text x=\"{LEFT}\" y=\"24\" font-size=\"15\">{}</text>",
        escape(title)
    );
    for nines in 0..=MAX_NINES as u32 {
        let at = x(f64::from(nines));
        let percent = 100.0 * (1.0 - 10f64.powi(-(nines as i32)));
        let _ = write!(
            svg,
            "<path d=\"M{at:.1} {TOP}V{:.1}\" stroke=\"#ddd\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{percent}%</text>",
            HEIGHT - BOTTOM,
            HEIGHT - BOTTOM + 18.0
        );
    }
    for decade in low as i32..=high as i32 {
        let at = y(10f64.powi(decade));
        let _ = write!(
            svg,
            "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#ddd\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            WIDTH - RIGHT,
            LEFT - 8.0,
            at + 4.0,
            show_ns(10f64.powi(decade))
        );
    }
    for (index, line) in lines.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let points: Vec<String> = (0..=200)
            .map(|step| {
                let nines = f64::from(step) / 200.0 * MAX_NINES;
                let ns = line
                    .latency
                    .value_at_percentile(100.0 * (1.0 - 10f64.powf(-nines)));
                format!("{:.1},{:.1}", x(nines), y(ns as f64))
            })
            .collect();
        let legend = TOP + 16.0 * index as f64 + 10.0;
        let _ = write!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\" points=\"{}\"/><text x=\"{:.1}\" y=\"{legend:.1}\" fill=\"{colour}\">{}</text>",
            points.join(" "),
            WIDTH - RIGHT + 12.0,
            escape(&line.name)
        );
    }
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">percentile of I/Os</text></svg>",
        (LEFT + WIDTH - RIGHT) / 2.0,
        HEIGHT - 16.0
    );
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_names_its_lines_and_stays_inside_its_frame() {
        let mut histogram = Histogram::new_with_bounds(1, 1_000_000_000, 3).unwrap();
        (1..10_000u64).for_each(|v| histogram.record(v * 100).unwrap());
        let svg = latency_plot(
            "a <b>",
            &[Line {
                name: "remote & local".into(),
                latency: &histogram,
            }],
        );
        assert!(svg.contains("a &lt;b&gt;") && svg.contains("remote &amp; local"));
        let points = svg
            .split("points=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        for point in points.split(' ') {
            let (x, y) = point.split_once(',').unwrap();
            let (x, y): (f64, f64) = (x.parse().unwrap(), y.parse().unwrap());
            assert!(
                (LEFT..=WIDTH - RIGHT).contains(&x) && (TOP..=HEIGHT - BOTTOM).contains(&y),
                "{point}"
            );
        }
    }

    #[test]
    fn an_empty_plot_is_still_a_picture() {
        assert!(latency_plot("nothing", &[]).ends_with("</svg>"));
    }
}
