//! The page: one file that needs nothing else, readable by day and by night.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::super::replay::{Asked, SHARES_PERCENT};
use super::chart::{Chart, Scale, escape};
use super::{Scores, mape_percent, quantile};

/// Draws what answers were worth. `name` says whose history it is; `judged` are the answers that count, of all shares.
pub fn page(name: &str, judged: &[Asked]) -> String {
    let begun: Vec<&Asked> = judged.iter().filter(|one| one.share_percent == 0).collect();
    let scores = Scores::of(begun.iter().copied());
    let cards = [
        card(
            "Against simple guesses",
            "Mean error beside the true time, asked when each trip began.",
            &yardsticks(&begun),
            "",
        ),
        card(
            "Is an interval what it says?",
            "How many trips took no longer than the 10th, 50th and 90th percentile that was foretold. On the line is right; bars are what chance allows.",
            &calibration(judged),
            CALIBRATION_KEY,
        ),
        card("Said and true", "One dot per trip, when it began. On the line is right.", &scatter(&begun), SCATTER_KEY),
        card(
            "By distance",
            "Error by distance as the crow flies: half of the trips lie in the bar, the mark is the median.",
            &by_distance(&begun),
            "",
        ),
        card("By hour", "Error by the hour (UTC) in which a trip began.", &by_hour(&begun), ""),
        card("On the way", "Error of what is left, by how much of the trip's time has passed.", &by_share(judged), ""),
    ];
    let mut html = String::from(HEAD);
    let name = escape(name);
    let _ = write!(
        html,
        "<title>Arrivals: {name}</title></head><body><header><h1>How good arrivals were</h1><p>{name}</p></header>"
    );
    html.push_str(&tiles(&scores));
    let _ = write!(html, "<main>{}</main>{}<footer>{FOOTER}</footer></body></html>", cards.concat(), table(judged));
    html
}

fn card(title: &str, what: &str, figure: &str, key: &str) -> String {
    format!("<section><h2>{title}</h2><p>{what}</p>{key}{figure}</section>")
}

fn tiles(scores: &Scores) -> String {
    let late = if scores.bias_percent < 0.0 { "said too short" } else { "said too long" };
    let tiles = [
        ("Trips judged", format!("{}", scores.count), String::new()),
        ("Mean error", format!("{:.1} %", scores.mape_percent), "of the true time".to_owned()),
        ("Bias", signed(scores.bias_percent), late.to_owned()),
        (
            "80 % interval covers",
            format!("{:.1} %", scores.covered_percent),
            format!("{:.0} % were sooner, {:.0} % later", scores.below_percent, scores.above_percent),
        ),
        ("Half its width", format!("{:.1} %", scores.half_width_median_percent), "median, of the middle".to_owned()),
    ];
    let mut html = String::from(r#"<div class="tiles">"#);
    for (what, value, note) in tiles {
        let _ = write!(html, "<div><span>{what}</span><b>{value}</b><small>{note}</small></div>");
    }
    html + "</div>"
}

fn yardsticks(begun: &[&Asked]) -> String {
    let bars = [
        ("straight line, 30 km/h", mape_percent(begun.iter().copied(), |one| one.haversine_s), "other"),
        ("empty road × factor", mape_percent(begun.iter().copied(), |one| one.free_s * one.free_factor), "other"),
        ("arrivals", mape_percent(begun.iter().copied(), Asked::said_s), "ours"),
    ];
    let top = ceiling(bars.iter().map(|bar| bar.1).fold(0.0, f64::max));
    let mut chart = Chart::new("Mean error beside simple guesses", across(bars.len()), up_to(top));
    chart.rows(&ticks(top), percent);
    let names: Vec<(f64, String)> =
        bars.iter().enumerate().map(|(i, bar)| (i as f64 + 0.5, bar.0.to_owned())).collect();
    for (i, (what, value, class)) in bars.iter().enumerate() {
        let at = i as f64 + 0.5;
        chart.column(class, at, (0.0, *value), 64.0, &format!("{what}: {value:.1} %"));
        chart.note(at, *value, &format!("{value:.1} %"));
    }
    chart.columns(&names);
    chart.axes("", "mean error");
    chart.finish()
}

fn calibration(judged: &[Asked]) -> String {
    let mut chart = Chart::new("Foretold and observed percentiles", Scale::Linear { from: 0.0, to: 1.0 }, up_to(100.0));
    chart.rows(&ticks(100.0), percent);
    chart.columns(&[(0.1, "10 %".to_owned()), (0.5, "50 %".to_owned()), (0.9, "90 %".to_owned())]);
    chart.line("ideal", &[(0.0, 0.0), (1.0, 100.0)]);
    for (class, share, aside) in [("other", 50, 0.02), ("ours", 0, -0.02)] {
        let asked: Vec<&Asked> = judged.iter().filter(|one| one.share_percent == share).collect();
        let count = asked.len().max(1) as f64;
        let seconds = |one: &Asked| [one.low_s(), one.said_s(), one.high_s()];
        for (i, foretold) in [0.1, 0.5, 0.9].into_iter().enumerate() {
            let observed = asked.iter().filter(|one| one.took_s <= seconds(one)[i]).count() as f64 / count;
            let chance = 1.96 * (foretold * (1.0 - foretold) / count).sqrt();
            let (low, high) = ((observed - chance).max(0.0) * 100.0, (observed + chance).min(1.0) * 100.0);
            let title = format!("foretold {:.0} %, observed {:.1} %", foretold * 100.0, observed * 100.0);
            chart.line(&format!("whisker {class}"), &[(foretold + aside, low), (foretold + aside, high)]);
            chart.dot(class, foretold + aside, observed * 100.0, 5.0, &title);
        }
    }
    chart.axes("foretold", "observed");
    chart.finish()
}

fn scatter(begun: &[&Asked]) -> String {
    let scale = Scale::Log { from: 60.0, to: 5_400.0 };
    let minutes = [2.0, 5.0, 10.0, 20.0, 40.0, 80.0];
    let mut chart = Chart::new("Said and true minutes", scale, scale);
    chart.rows(&minutes.map(|m| m * 60.0), |s| format!("{:.0}", s / 60.0));
    chart.columns(&minutes.map(|m| (m * 60.0, format!("{m:.0}"))));
    chart.line("ideal", &[(60.0, 60.0), (5_400.0, 5_400.0)]);
    for one in begun.iter().step_by(begun.len().div_ceil(DOTS_MAX).max(1)) {
        let is_within = (one.low_s()..=one.high_s()).contains(&one.took_s);
        let (said, took) = (one.said_s() / 60.0, one.took_s / 60.0);
        let (low, high) = (one.low_s() / 60.0, one.high_s() / 60.0);
        let title = format!("said {said:.1} min ({low:.1} to {high:.1}), true {took:.1}");
        chart.dot(if is_within { "ours" } else { "missed" }, one.took_s, one.said_s(), 3.0, &title);
    }
    chart.axes("true, minutes", "said, minutes");
    chart.finish()
}

fn by_distance(begun: &[&Asked]) -> String {
    let edges_km = [0.0, 1.0, 2.0, 3.0, 5.0, 8.0, f64::INFINITY];
    let mut bins: Vec<(String, Vec<&Asked>)> = Vec::new();
    for pair in edges_km.windows(2) {
        let name =
            if pair[1].is_finite() { format!("{}–{} km", pair[0], pair[1]) } else { format!("{}+ km", pair[0]) };
        let within = |one: &&&Asked| (pair[0]..pair[1]).contains(&(one.ahead.straight_m / 1_000.0));
        bins.push((name, begun.iter().filter(within).copied().collect()));
    }
    boxes("Error by distance", &bins, "as the crow flies")
}

fn by_hour(begun: &[&Asked]) -> String {
    let mut hours: BTreeMap<i64, Vec<&Asked>> = BTreeMap::new();
    for one in begun {
        hours.entry(one.at.0.div_euclid(3_600_000).rem_euclid(24)).or_default().push(one);
    }
    let bins: Vec<(String, Vec<&Asked>)> =
        hours.into_iter().map(|(hour, asked)| (format!("{hour}:00"), asked)).collect();
    boxes("Error by hour", &bins, "hour, UTC")
}

fn by_share(judged: &[Asked]) -> String {
    let bins: Vec<(String, Vec<&Asked>)> = SHARES_PERCENT
        .iter()
        .map(|share| (format!("{share} %"), judged.iter().filter(|one| one.share_percent == *share).collect()))
        .collect();
    boxes("Error on the way", &bins, "of the trip's time has passed")
}

/// The middle half of the errors and their median, bin by bin.
fn boxes(name: &str, bins: &[(String, Vec<&Asked>)], below: &str) -> String {
    let sorted: Vec<Vec<f64>> = bins
        .iter()
        .map(|(_, asked)| {
            let mut offs: Vec<f64> = asked.iter().map(|one| one.off_percent()).collect();
            offs.sort_by(f64::total_cmp);
            offs
        })
        .collect();
    let top = ceiling(sorted.iter().map(|offs| quantile(offs, 0.75)).fold(10.0, f64::max));
    let mut chart = Chart::new(name, across(bins.len()), up_to(top));
    chart.rows(&ticks(top), percent);
    let wide = (300.0 / bins.len().max(1) as f64).min(40.0);
    let mut names = Vec::new();
    for (i, (offs, (what, _))) in sorted.iter().zip(bins).enumerate() {
        let at = i as f64 + 0.5;
        names.push((at, what.clone()));
        if offs.is_empty() {
            continue;
        }
        let (low, middle, high) = (quantile(offs, 0.25), quantile(offs, 0.5), quantile(offs, 0.75));
        let title = format!("{what}: median {middle:.1} %, half within {low:.1} to {high:.1} %, {} trips", offs.len());
        chart.column("range", at, (low, high), wide, &title);
        chart.dot("ours", at, middle, 5.0, &title);
        if wide >= 24.0 {
            chart.note(at, high, &offs.len().to_string());
        }
    }
    chart.columns(&names);
    chart.axes(below, "error beside the true time; above each bar: trips");
    chart.finish()
}

fn table(judged: &[Asked]) -> String {
    let mut html = String::from(
        "<section class=\"wide\"><h2>In figures</h2><div class=\"scroll\"><table><thead><tr><th>asked at</th><th>trips</th><th>mean error</th><th>summed error</th><th>bias</th><th>80 % interval covers</th><th>half its width</th></tr></thead><tbody>",
    );
    for share in SHARES_PERCENT {
        let scores = Scores::of(judged.iter().filter(|one| one.share_percent == share));
        let _ = write!(
            html,
            "<tr><td>{share} % of the trip</td><td>{}</td><td>{:.1} %</td><td>{:.1} %</td><td>{}</td><td>{:.1} %</td><td>{:.1} %</td></tr>",
            scores.count,
            scores.mape_percent,
            scores.wape_percent,
            signed(scores.bias_percent),
            scores.covered_percent,
            scores.half_width_median_percent
        );
    }
    html + "</tbody></table></div></section>"
}

fn across(bins: usize) -> Scale {
    Scale::Linear { from: 0.0, to: bins.max(1) as f64 }
}

fn up_to(top: f64) -> Scale {
    Scale::Linear { from: 0.0, to: top }
}

/// A round value above, with room for a label.
fn ceiling(value: f64) -> f64 {
    let above = value * 1.08;
    let step = step(above);
    ((above / step).ceil() * step).max(step)
}

fn ticks(top: f64) -> Vec<f64> {
    let step = step(top);
    (0..=(top / step).round() as u32).map(|i| step * f64::from(i)).collect()
}

/// At most six round steps.
fn step(top: f64) -> f64 {
    let steps = [2.0, 5.0, 10.0, 20.0, 25.0, 50.0, 100.0, 200.0, 500.0];
    steps.into_iter().find(|step| top / step <= 6.0).unwrap_or(1_000.0 * (top / 6_000.0).ceil().max(1.0))
}

fn signed(value: f64) -> String {
    format!("{}{:.1} %", if value < 0.0 { '\u{2212}' } else { '+' }, value.abs())
}

fn percent(value: f64) -> String {
    format!("{value:.0} %")
}

/// More dots than this hide each other.
const DOTS_MAX: usize = 2_000;
const CALIBRATION_KEY: &str =
    r#"<p class="key"><i class="ours"></i>when the trip began <i class="other"></i>halfway</p>"#;
const SCATTER_KEY: &str =
    r#"<p class="key"><i class="ours"></i>within the 80 % interval <i class="missed"></i>outside</p>"#;
const FOOTER: &str = "Trips of three minutes to an hour, without standing tails, in the order of time. Each answer knows only trips that had finished before it. The route is the fastest by what was learned until then.";
const HEAD: &str = r#"<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><style>
:root{color-scheme:light dark;--page:#f4f5f7;--card:#fff;--ink:#14181f;--soft:#5a6472;--grid:#e3e6eb;--ours:#2a6fdb;--range:#bcd3f5;--other:#8b95a5;--missed:#d9622b}
@media(prefers-color-scheme:dark){:root{--page:#101317;--card:#191e25;--ink:#eef1f5;--soft:#9aa5b4;--grid:#2b323c;--ours:#5a9bff;--range:#274a7d;--other:#7d8898;--missed:#ff9560}}
*{box-sizing:border-box}body{margin:0 auto;padding:24px;max-width:1180px;background:var(--page);color:var(--ink);font:15px/1.45 system-ui,sans-serif}
h1{font-size:26px;margin:0}h2{font-size:17px;margin:0}p{margin:2px 0 10px;color:var(--soft)}header p{font-size:16px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:12px;margin:14px 0}
.tiles div,section{background:var(--card);border-radius:12px;padding:16px}.tiles span,.tiles small{display:block;color:var(--soft)}.tiles b{font-size:28px;font-weight:600}
main{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,440px),1fr));gap:12px}
section{display:flex;flex-direction:column}section svg{margin-top:auto}.wide{margin-top:12px}.scroll{overflow-x:auto}
svg{width:100%;height:auto}svg text{font-size:12px;fill:var(--soft)}.grid{stroke:var(--grid);fill:none}.ideal{stroke:var(--soft);stroke-dasharray:4 4;fill:none}
svg .ours{fill:var(--ours)}svg .other{fill:var(--other)}svg .missed{fill:var(--missed)}svg .range{fill:var(--range)}
circle{stroke:var(--card);stroke-width:1}svg .whisker{fill:none;stroke-width:2}.whisker.ours{stroke:var(--ours)}.whisker.other{stroke:var(--other)}
.key i{display:inline-block;width:10px;height:10px;border-radius:50%;margin:0 5px 0 10px}.key i:first-child{margin-left:0}.key .ours{background:var(--ours)}.key .other{background:var(--other)}.key .missed{background:var(--missed)}
table{border-collapse:collapse;width:100%;margin-top:8px;font-variant-numeric:tabular-nums}th,td{padding:6px 10px;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}th{color:var(--soft);font-weight:500}th:first-child,td:first-child{text-align:left}
footer{color:var(--soft);margin:14px 2px}
</style>"#;
