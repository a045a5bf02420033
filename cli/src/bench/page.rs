//! The figures of a run as an HTML page that loads nothing from elsewhere.

use std::fmt::Write as _;

use super::report::{Plot, Report, baseline_of, number};

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 200.0;
const MARGIN: f64 = 48.0;

/// Renders the page.
pub(super) fn render(report: &Report) -> String {
    let mut rows = String::new();
    let mut scenario = "";
    for figure in &report.figures {
        if figure.scenario != scenario {
            scenario = figure.scenario;
            let beside = baseline_of(scenario);
            let _ = write!(
                rows,
                "<tr><th colspan=5 class=scenario>{scenario}, beside {beside}</th></tr>"
            );
        }
        let baseline = figure
            .baseline
            .map(|baseline| format!("{} {}", number(baseline), figure.unit));
        let ratio = figure.ratio();
        let bar = ratio.map_or(String::new(), |ratio| {
            // 16 pixels for each time that bgworker is better, up to a limit.
            let width = (ratio * 16.0).clamp(1.0, 200.0);
            let ratio = number(ratio);
            format!("<b>{ratio} ×</b><span class=bar style=\"width:{width:.0}px\"></span>")
        });
        let _ = write!(
            rows,
            "<tr><td>{}</td><td class=n>{} {}</td><td class=n>{}</td><td class=ratio>{bar}</td></tr>",
            escaped(&figure.what),
            number(figure.ours),
            figure.unit,
            baseline.unwrap_or_default(),
        );
    }
    let plots: String = report.plots.iter().map(plot).collect();
    format!(
        "<!doctype html><html lang=en><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width, initial-scale=1\">\
         <title>bgworker bench</title><style>{STYLE}</style>\
         <h1>bgworker bench</h1><p>{}</p>\
         <div class=wide><table><tr><th></th><th class=n>bgworker</th><th class=n>without it</th>\
         <th>times better</th></tr>{rows}</table></div>{plots}</html>",
        escaped(&report.where_)
    )
}

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2733;--paper:#fff;--faint:#8a97a5;--line:#2f6fa8}\
@media(prefers-color-scheme:dark){:root{--ink:#dfe6ee;--paper:#12181f;--faint:#6d7b8a;--line:#6fb1ea}}\
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:60rem;\
margin:2rem auto;padding:0 1rem}h1{font-size:1.5rem}.wide{overflow-x:auto}\
table{border-collapse:collapse;width:100%}td,th{text-align:left;padding:.25rem .75rem .25rem 0;\
border-bottom:1px solid color-mix(in srgb,var(--faint) 35%,transparent);vertical-align:top}\
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}\
.scenario{padding-top:1rem;color:var(--faint);text-transform:uppercase;font-size:.8rem;\
letter-spacing:.08em}.ratio{white-space:nowrap;font-variant-numeric:tabular-nums}\
.ratio b{display:inline-block;min-width:4em;font-weight:400}\
.bar{display:inline-block;height:.7em;background:var(--line);border-radius:2px}\
@media(max-width:40rem){.bar{display:none}body{font-size:14px}}svg{width:100%;height:auto;margin-top:.5rem}\
h2{font-size:1.1rem;margin-top:2rem}text{fill:var(--faint);font-size:12px}";

/// Draws values over time as a line.
fn plot(plot: &Plot) -> String {
    let largest = |of: fn(&(f64, f64)) -> f64| plot.points.iter().map(of).fold(0.0, f64::max);
    let (last, highest) = (largest(|point| point.0).max(1.0), largest(|point| point.1));
    let highest = if highest > 0.0 { highest } else { 1.0 };
    let x = |at: f64| MARGIN + at / last * (WIDTH - 2.0 * MARGIN);
    let y = |value: f64| HEIGHT - MARGIN / 2.0 - value / highest * (HEIGHT - MARGIN);
    let points: Vec<_> = plot
        .points
        .iter()
        .map(|(at, value)| format!("{:.1},{:.1}", x(*at), y(*value)))
        .collect();
    let (left, right, bottom) = (x(0.0), x(last), y(0.0));
    format!(
        "<h2>{title}</h2><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=img aria-label=\"{title}\">\
         <path d=\"M{left} {top}V{bottom}H{right}\" fill=none stroke=\"var(--faint)\"/>\
         <polyline points=\"{points}\" fill=none stroke=\"var(--line)\" stroke-width=2 />\
         <text x={label} y={top} dy=4 text-anchor=end>{high}</text>\
         <text x={label} y={bottom} text-anchor=end>0</text>\
         <text x={left} y={below}>0 s</text>\
         <text x={right} y={below} text-anchor=end>{last:.0} s</text></svg>",
        title = escaped(&format!("{}, {}", plot.title, plot.unit)),
        top = y(highest),
        points = points.join(" "),
        label = left - 6.0,
        high = number(highest),
        below = bottom + 16.0,
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}
