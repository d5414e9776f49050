//! Recorded traces in the forms people have them: GPX, the taxi CSV of the ECML/PKDD 2015 challenge, and JSON lines of
//! trips whose true route is known. They are for measuring, replaying and `wayfix maps match`; nothing on the live way
//! reads them. A trace that is broken is an error with its place, never half a trace; a time that is odd costs its own
//! point only, and is told of.

mod gpx;
pub mod times;

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use protocol::{Fix, MeasuredTime, Position};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use times::TimeNotes;

/// One recorded trip.
#[derive(Clone, Default, PartialEq, Debug)]
pub struct Trace {
    pub id: String,
    /// In the order of the file.
    pub fixes: Vec<Fix>,
    /// The route that was truly driven, in connected parts; empty where nobody knows.
    pub truth: Vec<Vec<Position>>,
    /// What was odd about its times.
    pub notes: TimeNotes,
}

/// Why a file of traces cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    #[error("{path}")]
    File { path: PathBuf, source: Box<TraceError> },
    #[error("{path}: cannot be read")]
    Open { path: PathBuf, source: io::Error },
    #[error("the traces cannot be read")]
    Read(#[from] io::Error),
    #[error("{path}: is neither .gpx, .csv nor .jsonl")]
    Kind { path: PathBuf },
    #[error("line {line}: {what}")]
    Line { line: usize, what: String },
    #[error("{0}")]
    Gpx(String),
}

/// The forms a trace comes in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TraceKind {
    Gpx,
    TaxiCsv,
    TruthLines,
}

impl TraceKind {
    /// By the ending of a file's name.
    pub fn of_path(path: &Path) -> Option<TraceKind> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "gpx" => Some(TraceKind::Gpx),
            "csv" => Some(TraceKind::TaxiCsv),
            "jsonl" | "ndjson" => Some(TraceKind::TruthLines),
            _ => None,
        }
    }
}

impl Trace {
    /// Only a fix every so many seconds: the first, and each that is so much later than the last one kept. All at 0.
    pub fn keep_every(&mut self, seconds: f64) {
        let apart_ds = (seconds * 10.0).round() as i64;
        if apart_ds <= 0 {
            return;
        }
        let mut next = i64::MIN;
        self.fixes.retain(|fix| {
            let is_kept = fix.measured.0 >= next;
            if is_kept {
                next = fix.measured.0.saturating_add(apart_ds);
            }
            is_kept
        });
    }

    /// The same, and the trip's last fix: a phone flushes at a trip's end, and without it the rest of the way would be
    /// anybody's guess.
    pub fn thin(&mut self, seconds: f64) {
        let last = self.fixes.last().copied();
        self.keep_every(seconds);
        if self.fixes.last() != last.as_ref() {
            self.fixes.extend(last);
        }
    }
}

impl Trace {
    /// How many fixes were measured before one that comes earlier in the file: the matcher cannot use them.
    pub fn fixes_back_in_time(&self) -> usize {
        let mut newest = i64::MIN;
        let is_back = |fix: &&Fix| {
            newest = newest.max(fix.measured.0);
            fix.measured.0 < newest
        };
        self.fixes.iter().filter(is_back).count()
    }
}

/// Reads a file of traces, in the form that its name tells.
pub fn read_file(path: &Path) -> Result<Vec<Trace>, TraceError> {
    let kind = TraceKind::of_path(path).ok_or_else(|| TraceError::Kind { path: path.to_owned() })?;
    let file = File::open(path).map_err(|source| TraceError::Open { path: path.to_owned(), source })?;
    read(kind, BufReader::new(file))
        .map_err(|error| TraceError::File { path: path.to_owned(), source: Box::new(error) })
}

/// Reads traces of a known form. A byte order mark at the beginning says nothing.
pub fn read(kind: TraceKind, mut reader: impl BufRead) -> Result<Vec<Trace>, TraceError> {
    if reader.fill_buf()?.starts_with(BYTE_ORDER_MARK) {
        reader.consume(BYTE_ORDER_MARK.len());
    }
    let mut traces = match kind {
        TraceKind::Gpx => gpx::read(reader)?,
        TraceKind::TaxiCsv => read_taxi_csv(reader)?,
        TraceKind::TruthLines => read_truth_lines(reader)?,
    };
    for trace in &mut traces {
        trace.notes.are_milliseconds |= times::mend_milliseconds(&mut trace.fixes);
    }
    Ok(traces)
}

/// Leaves out the fixes whose time does not fit those around it.
fn without_odd<T>(points: Vec<T>, time: impl Fn(&T) -> Option<i64>, notes: &mut TimeNotes) -> Vec<T> {
    let said: Vec<Option<i64>> = points.iter().map(&time).collect();
    let is_odd = times::odd(&said);
    notes.odd += is_odd.iter().filter(|is_odd| **is_odd).count();
    points.into_iter().zip(is_odd).filter(|(_, is_odd)| !is_odd).map(|(point, _)| point).collect()
}

/// A trip a line: columns TIMESTAMP (unix seconds of the start) and POLYLINE ([[lon, lat], …] every 15 s). Trips get
/// their line's number as id, because the file's own are cut to three digits.
fn read_taxi_csv(reader: impl BufRead) -> Result<Vec<Trace>, TraceError> {
    let mut lines = reader.lines().enumerate();
    let Some((_, header)) = lines.next() else { return Ok(Vec::new()) };
    let header = split_csv(unmarked(&header?));
    let column = |name: &str| {
        header
            .iter()
            .position(|h| h.trim() == name)
            .ok_or_else(|| TraceError::Line { line: 1, what: format!("there is no column {name}") })
    };
    let (start_column, line_column) = (column("TIMESTAMP")?, column("POLYLINE")?);
    let mut traces = Vec::new();
    for (n, line) in lines {
        let wrong = |what: &str| TraceError::Line { line: n + 1, what: what.to_owned() };
        let line = line?;
        let fields = split_csv(unmarked(&line));
        if fields == header {
            continue; // files that were put together
        }
        if fields.iter().all(|f| f.trim().is_empty()) {
            continue;
        }
        let start_ds = fields
            .get(start_column)
            .and_then(|f| f.trim().parse::<f64>().ok().and_then(|_| times::parse_ds(f)))
            .ok_or_else(|| wrong("TIMESTAMP is not a number of seconds"))?;
        let line: Vec<[f64; 2]> = fields
            .get(line_column)
            .and_then(|f| serde_json::from_str(f).ok())
            .ok_or_else(|| wrong("POLYLINE is not [[lon, lat], …]"))?;
        let fixes = line.iter().enumerate().map(|(i, lon_lat)| {
            let position = position_of(*lon_lat).ok_or_else(|| wrong("a point is not on Earth"))?;
            let measured = MeasuredTime(start_ds.saturating_add(i as i64 * TAXI_APART_DS));
            Ok(Fix::at(measured, position))
        });
        let fixes = fixes.collect::<Result<_, TraceError>>()?;
        traces.push(Trace { id: n.to_string(), fixes, ..Trace::default() });
    }
    Ok(traces)
}

/// A trip a line: {"id", "truth": [[[lon, lat], …], …], "fixes": [[t, lon, lat], …]}, t in seconds.
fn read_truth_lines(reader: impl BufRead) -> Result<Vec<Trace>, TraceError> {
    let mut traces = Vec::new();
    for (n, line) in reader.lines().enumerate() {
        let line = line?;
        let line = unmarked(&line);
        if line.trim().is_empty() {
            continue;
        }
        let wrong = |what: String| TraceError::Line { line: n + 1, what };
        let trip: TruthLine = serde_json::from_str(line).map_err(|error| wrong(error.to_string()))?;
        let place = |lon_lat: [f64; 2]| position_of(lon_lat).ok_or_else(|| wrong("a point is not on Earth".to_owned()));
        let id = trip.id.as_str().map_or_else(|| trip.id.to_string(), str::to_owned);
        let truth = trip.truth.into_iter().map(|part| part.into_iter().map(place).collect());
        let truth = truth.collect::<Result<_, TraceError>>()?;
        let mut notes = TimeNotes::default();
        let mut points = Vec::with_capacity(trip.fixes.len());
        for fix in trip.fixes {
            let [time, lon, lat] = &fix[..] else {
                return Err(wrong("a fix is not [t, lon, lat]".to_owned()));
            };
            let (Some(lon), Some(lat)) = (lon.as_f64(), lat.as_f64()) else {
                return Err(wrong("a fix is not [t, lon, lat]".to_owned()));
            };
            points.push(Untimed { position: place([lon, lat])?, said_ds: time_of(time, &mut notes) });
        }
        let points = without_odd(points, |point| point.said_ds, &mut notes);
        let said: Vec<_> = points.iter().map(|point| (point.position, point.said_ds)).collect();
        let fixes = gpx::times(&said).into_iter().zip(&points);
        let fixes = fixes.map(|(ds, point)| Fix::at(MeasuredTime(ds), point.position)).collect();
        traces.push(Trace { id, truth, fixes, notes });
    }
    Ok(traces)
}

/// A point and when it was, if that is said.
struct Untimed {
    position: Position,
    said_ds: Option<i64>,
}

/// Seconds, or a time in words.
fn time_of(value: &Value, notes: &mut TimeNotes) -> Option<i64> {
    let read = match value {
        Value::Number(number) => number.as_f64().filter(|seconds| seconds.is_finite()),
        Value::String(text) => times::parse_ds(text).map(|ds| ds as f64 / 10.0),
        Value::Null => return None,
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    let seconds = read.map(|seconds| if seconds.abs() >= 1e11 { seconds / 1000.0 } else { seconds });
    notes.are_milliseconds |= read != seconds;
    notes.unreadable += usize::from(seconds.is_none());
    seconds.map(|seconds| (seconds * 10.0).round() as i64)
}

#[derive(Deserialize)]
struct TruthLine {
    id: Value,
    #[serde(default)]
    truth: Vec<Vec<[f64; 2]>>,
    fixes: Vec<Vec<Value>>,
}

/// A matched route as a JSON line: {"id", "route": [[[lon, lat], …], …]}.
#[derive(Serialize)]
pub struct RouteLine<'a> {
    pub id: &'a str,
    pub route: Vec<Vec<[f64; 2]>>,
}

impl<'a> RouteLine<'a> {
    pub fn new(id: &'a str, parts: &[Vec<Position>]) -> Self {
        let route = parts.iter().map(|part| part.iter().map(|p| [p.lon(), p.lat()]).collect()).collect();
        RouteLine { id, route }
    }
}

/// Without the byte order mark that stands where files were put together.
fn unmarked(line: &str) -> &str {
    line.trim_start_matches('\u{feff}')
}

fn position_of([lon, lat]: [f64; 2]) -> Option<Position> {
    Position::from_degrees(lat, lon)
}

/// Splits a line at its commas, those in double quotes apart.
fn split_csv(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut is_quoted = false;
    for c in line.chars() {
        match c {
            '"' => is_quoted = !is_quoted,
            ',' if !is_quoted => fields.push(String::new()),
            c => {
                if let Some(field) = fields.last_mut() {
                    field.push(c);
                }
            }
        }
    }
    fields
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
const TAXI_APART_DS: i64 = 150;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taxi_trip_has_a_fix_every_15_seconds_from_its_start() {
        let csv = "TRIP_ID,TIMESTAMP,POLYLINE\n1,1372636858,\"[[-8.6,41.1],[-8.61,41.2]]\"\n";

        let traces = read(TraceKind::TaxiCsv, csv.as_bytes()).unwrap();

        let trace = &traces[0];
        assert_eq!(trace.fixes.len(), 2);
        assert_eq!(trace.fixes[1].measured, MeasuredTime(13_726_368_730));
        assert_eq!(trace.fixes[1].position, Position { lat_e7: 412_000_000, lon_e7: -86_100_000 });
    }

    #[test]
    fn a_truth_line_has_its_route_and_fixes() {
        let line = r#"{"id":7,"truth":[[[-8.6,41.1],[-8.61,41.2]]],"fixes":[[0,-8.6,41.1],[1.5,-8.61,41.2]]}"#;

        let traces = read(TraceKind::TruthLines, line.as_bytes()).unwrap();

        assert_eq!(traces[0].id, "7");
        assert_eq!(traces[0].truth[0].len(), 2);
        assert_eq!(traces[0].fixes[1].measured, MeasuredTime(15));
    }

    #[test]
    fn gpx_gives_a_trace_for_each_segment_with_the_times_it_says() {
        let gpx = r#"<?xml version="1.0"?><gpx version="1.1" creator="x" xmlns="http://www.topografix.com/GPX/1/1">
            <trk><name>home</name><trkseg>
            <trkpt lat="41.1" lon="-8.6"><time>2013-07-01T00:00:58Z</time></trkpt>
            <trkpt lat="41.2" lon="-8.7"><time>2013-07-01T00:01:00.5Z</time></trkpt>
            </trkseg><trkseg><trkpt lat="1" lon="2"/><trkpt lat="1" lon="2"/></trkseg></trk></gpx>"#;

        let traces = read(TraceKind::Gpx, gpx.as_bytes()).unwrap();

        assert_eq!(traces.len(), 2);
        assert_eq!(traces[0].fixes[0].measured, MeasuredTime(13_726_368_580));
        assert_eq!(traces[0].fixes[1].measured.0 - traces[0].fixes[0].measured.0, 25);
        assert_eq!(traces[1].fixes[1].measured.0 - traces[1].fixes[0].measured.0, 10);
    }

    #[test]
    fn a_broken_file_is_an_error_that_says_where() {
        let csv = "TRIP_ID,TIMESTAMP,POLYLINE\n1,yesterday,\"[[-8.6,41.1]]\"\n";
        let lines = "{\"id\":1,\"fixes\":[[0,1,2]]}\n{\"id\":2,\"fixes\":[[0,1,";
        let far = r#"{"id":1,"fixes":[[0,1,91]]}"#;

        let wrong_time = read(TraceKind::TaxiCsv, csv.as_bytes()).unwrap_err().to_string();
        let no_column = read(TraceKind::TaxiCsv, &b"a,b\n"[..]).unwrap_err().to_string();
        let cut_short = read(TraceKind::TruthLines, lines.as_bytes()).unwrap_err().to_string();
        let off_earth = read(TraceKind::TruthLines, far.as_bytes()).unwrap_err().to_string();

        assert!(wrong_time.contains("line 2"), "{wrong_time}");
        assert!(no_column.contains("TIMESTAMP"), "{no_column}");
        assert!(cut_short.contains("line 2"), "{cut_short}");
        assert!(off_earth.contains("not on Earth"), "{off_earth}");
        assert!(matches!(read(TraceKind::Gpx, &b"<gpx"[..]), Err(TraceError::Gpx(_))));
    }

    #[test]
    fn keeping_a_fix_every_so_many_seconds_keeps_the_first() {
        let fix = |t| Fix::at(MeasuredTime(t), Position::default());
        let mut trace = Trace { fixes: (0..10).map(|i| fix(i * 10)).collect(), ..Trace::default() };

        trace.keep_every(4.0);

        let kept: Vec<i64> = trace.fixes.iter().map(|f| f.measured.0).collect();
        assert_eq!(kept, [0, 40, 80]);
    }

    #[test]
    fn a_fix_measured_before_an_earlier_one_is_kept_and_counted() {
        let fix = |t| Fix::at(MeasuredTime(t), Position::default());
        let times = [10, 50, 20, 50, 40, 60];
        let mut trace = Trace { fixes: times.map(fix).to_vec(), ..Trace::default() };

        trace.thin(0.0);

        assert_eq!(trace.fixes, times.map(fix));
        assert_eq!(trace.fixes_back_in_time(), 2);
    }

    #[test]
    fn a_byte_order_mark_says_nothing_wherever_it_stands() {
        let csv = "\u{feff}TRIP_ID,TIMESTAMP,POLYLINE\n1,1372636858,\"[[-8.6,41.1]]\"\n\u{feff}TRIP_ID,TIMESTAMP,POLYLINE\n2,1372636858000,\"[[-8.6,41.1]]\"\n";
        let lines = "\u{feff}{\"id\":1,\"fixes\":[[0,1,2]]}\n\u{feff}{\"id\":2,\"fixes\":[[0,1,2]]}\n";
        let gpx = "\u{feff}<?xml version='1.0'?><gpx><trk><trkseg><trkpt lat='1' lon='2'/></trkseg></trk></gpx>";

        let taxis = read(TraceKind::TaxiCsv, csv.as_bytes()).unwrap();

        assert_eq!(taxis.len(), 2);
        assert_eq!(taxis[0].fixes, taxis[1].fixes);
        assert_eq!(read(TraceKind::TruthLines, lines.as_bytes()).unwrap().len(), 2);
        assert_eq!(read(TraceKind::Gpx, gpx.as_bytes()).unwrap().len(), 1);
    }

    #[test]
    fn a_line_of_json_may_have_odd_times() {
        let fixes = |times: &[&str]| {
            let fixes: Vec<_> =
                times.iter().zip(0..).map(|(t, i)| format!("[{t},-8.6,{}]", 41.0 + f64::from(i) * 1e-3)).collect();
            let line = format!(r#"{{"id":1,"fixes":[{}]}}"#, fixes.join(","));
            let trace = read(TraceKind::TruthLines, line.as_bytes()).unwrap().remove(0);
            (trace.fixes.iter().map(|fix| fix.measured.0).collect::<Vec<_>>(), trace.notes)
        };

        assert_eq!(fixes(&["0", "null", "20"]).0, [0, 100, 200]);
        let (times, notes) = fixes(&["0", "\"soon\"", "20"]);
        assert_eq!((times, notes.unreadable), (vec![0, 100, 200], 1));
        let (times, notes) = fixes(&["1688192100000", "1688192110000"]);
        assert_eq!((times, notes.are_milliseconds), (vec![16_881_921_000, 16_881_921_100], true));
        let (times, notes) = fixes(&["0", "10", "1688192100", "30"]);
        assert_eq!((times, notes.odd), (vec![0, 100, 300], 1));
    }
}
