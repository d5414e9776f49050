//! GPX as recorders really write it: versions 1.0 and 1.1, any namespace, speed and heading in the point itself or in
//! some program's extensions (Garmin, OsmAnd, GPSLogger), segments, several tracks of one name, points without a time.
//!
//! Read event by event by what elements are called. A reader by the schema refuses files that half of the recorders
//! write (`<course>` in 1.0, `<speed>` in 1.1) and drops their extensions, which hold what the matcher wants to know.
//! Where both read a file they agree; a test holds that.

use std::collections::BTreeMap;
use std::io::Read;

use protocol::fix::heading_255;
use protocol::{Fix, MeasuredTime, Position};
use xml::EventReader;
use xml::attribute::OwnedAttribute;
use xml::common::Position as _;
use xml::reader::XmlEvent;

use super::times::{TimeNotes, parse_ds};
use super::{Trace, TraceError, without_odd};
use crate::geo;

/// One trace per track segment that holds a point. Where no time is said, points are as far apart in time as driving
/// from one to the next at 36 km/h takes; between two times, evenly.
pub fn read(reader: impl Read) -> Result<Vec<Trace>, TraceError> {
    let mut events = EventReader::new(std::io::BufReader::new(reader));
    let mut document = Document::default();
    loop {
        let event = events.next().map_err(|error| TraceError::Gpx(format!("not GPX: {error}")))?;
        let line = events.position().row as usize + 1;
        match event {
            XmlEvent::StartElement { name, attributes, .. } => document.begin(name.local_name, &attributes, line)?,
            XmlEvent::EndElement { .. } => document.end()?,
            XmlEvent::Characters(text) | XmlEvent::CData(text) => document.text.push_str(&text),
            XmlEvent::EndDocument => return document.into_traces(),
            XmlEvent::StartDocument { .. }
            | XmlEvent::Comment(_)
            | XmlEvent::Whitespace(_)
            | XmlEvent::ProcessingInstruction { .. } => {}
        }
    }
}

#[derive(Default)]
struct Document {
    /// The names of the elements that are open.
    open: Vec<String>,
    text: String,
    tracks: Vec<Track>,
    point: Option<Point>,
    /// Way points and points of routes, which nobody has driven.
    others: usize,
}

#[derive(Default)]
struct Track {
    name: Option<String>,
    segments: Vec<Vec<Point>>,
}

struct Point {
    fix: Fix,
    /// In tenths of a second since the Unix epoch.
    said_ds: Option<i64>,
    /// A time is said that cannot be read.
    is_unreadable: bool,
}

impl Document {
    fn begin(&mut self, name: String, attributes: &[OwnedAttribute], line: usize) -> Result<(), TraceError> {
        self.text.clear();
        if self.open.len() >= DEPTH_MAX {
            return Err(TraceError::Gpx(format!("line {line}: elements lie in each other more than {DEPTH_MAX} deep")));
        }
        match name.as_str() {
            other if self.open.is_empty() && other != "gpx" => {
                return Err(TraceError::Gpx(format!("not GPX: it begins with <{other}>")));
            }
            "trk" => self.tracks.push(Track::default()),
            "trkseg" => {
                if let Some(track) = self.tracks.last_mut() {
                    track.segments.push(Vec::new());
                }
            }
            "trkpt" => {
                self.point = Some(Point {
                    fix: Fix::at(MeasuredTime(0), place(attributes, line)?),
                    said_ds: None,
                    is_unreadable: false,
                })
            }
            "wpt" | "rtept" => self.others += 1,
            _ => {}
        }
        self.open.push(name);
        Ok(())
    }

    fn end(&mut self) -> Result<(), TraceError> {
        let name = self.open.pop().unwrap_or_default();
        let text = std::mem::take(&mut self.text);
        let text = text.trim();
        if name == "trkpt" {
            let segment = self.tracks.last_mut().and_then(|track| track.segments.last_mut());
            if let (Some(segment), Some(point)) = (segment, self.point.take()) {
                segment.push(point);
            }
            return Ok(());
        }
        if let Some(point) = &mut self.point {
            point.note(&name, text);
            return Ok(());
        }
        if name == "name" && self.open.last().is_some_and(|parent| parent == "trk") && !text.is_empty() {
            self.tracks.last_mut().into_iter().for_each(|track| track.name = Some(text.to_owned()));
        }
        Ok(())
    }

    fn into_traces(self) -> Result<Vec<Trace>, TraceError> {
        let mut traces = Vec::new();
        let mut used: BTreeMap<String, usize> = BTreeMap::new();
        for (number, track) in self.tracks.into_iter().enumerate() {
            let name = track.name.unwrap_or_else(|| format!("track {}", number + 1));
            let segments: Vec<_> = track.segments.into_iter().filter(|segment| !segment.is_empty()).collect();
            let is_whole = segments.len() == 1;
            for (segment_number, segment) in segments.into_iter().enumerate() {
                let id = if is_whole { name.clone() } else { format!("{name} {}", segment_number + 1) };
                let count = used.entry(id.clone()).or_default();
                *count += 1;
                let id = if *count == 1 { id } else { format!("{id} ({count})") };
                let mut notes = TimeNotes::default();
                let fixes = timed(segment, &mut notes);
                traces.push(Trace { id, fixes, notes, truth: Vec::new() });
            }
        }
        match (traces.is_empty(), self.others) {
            (false, _) => Ok(traces),
            (true, 0) => Err(TraceError::Gpx(String::from("it holds no track with a point"))),
            (true, others) => Err(TraceError::Gpx(format!(
                "it holds no track that was recorded, only {others} way points or points of planned routes"
            ))),
        }
    }
}

impl Point {
    /// What an element within it says, wherever in it that is. What nobody understands is passed by; a time that
    /// cannot be read is as if none had been said, and is told of.
    fn note(&mut self, name: &str, text: &str) {
        let number = || text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
        match name {
            "time" if !text.is_empty() => {
                self.said_ds = parse_ds(text);
                self.is_unreadable = self.said_ds.is_none();
            }
            "speed" => self.fix.speed_dm_s = number().map(|m_s| (m_s * 10.0).round().min(65_535.0) as u16),
            "course" | "bearing" => self.fix.heading_255 = number().filter(|d| *d <= 360.0).map(heading_255),
            "accuracy" => self.fix.accuracy_m = number().map(|m| m.round().min(255.0) as u8),
            _ => {}
        }
    }
}

fn place(attributes: &[OwnedAttribute], line: usize) -> Result<Position, TraceError> {
    let degrees = |name: &str| {
        let said = attributes.iter().find(|attribute| attribute.name.local_name == name);
        said.and_then(|said| said.value.trim().parse::<f64>().ok())
    };
    let (Some(lat), Some(lon)) = (degrees("lat"), degrees("lon")) else {
        return Err(TraceError::Gpx(format!("line {line}: a point needs lat and lon in degrees")));
    };
    Position::from_degrees(lat, lon).ok_or_else(|| TraceError::Gpx(format!("line {line}: {lat},{lon} is not on Earth")))
}

/// Gives a time to every point, in the order of the file; without those whose time does not fit the others.
fn timed(points: Vec<Point>, notes: &mut TimeNotes) -> Vec<Fix> {
    notes.unreadable += points.iter().filter(|point| point.is_unreadable).count();
    let points = without_odd(points, |point| point.said_ds, notes);
    let said: Vec<_> = points.iter().map(|point| (point.fix.position, point.said_ds)).collect();
    let times = times(&said).into_iter().zip(&points);
    times.map(|(ds, point)| Fix { measured: MeasuredTime(ds), ..point.fix }).collect()
}

/// The time of every point: as it says, else as far from its neighbours as a drive takes, or evenly between two.
pub(super) fn times(points: &[(Position, Option<i64>)]) -> Vec<i64> {
    let said: Vec<(usize, i64)> = points.iter().enumerate().filter_map(|(i, p)| Some((i, p.1?))).collect();
    let hops = points.windows(2).map(|pair| geo::distance_cm(pair[0].0, pair[1].0));
    let mut along_ds = vec![0.0];
    for hop_cm in hops {
        along_ds.push(along_ds.last().copied().unwrap_or(0.0) + (hop_cm / GUESSED_CM_S * 10.0).max(10.0));
    }
    let drive_ds = |from: usize, to: usize| (along_ds[to] - along_ds[from]).round() as i64;
    let (first, last) = (said.first().copied().unwrap_or((0, 0)), said.last().copied().unwrap_or((0, 0)));
    let time = |i: usize| {
        if i < first.0 {
            return first.1.saturating_sub(drive_ds(i, first.0));
        }
        if i >= last.0 {
            return last.1.saturating_add(drive_ds(last.0, i));
        }
        let after = said.partition_point(|(at, _)| *at <= i);
        let ((a, a_ds), (b, b_ds)) = (said[after - 1], said[after]);
        a_ds.saturating_add(b_ds.saturating_sub(a_ds).saturating_mul((i - a) as i64) / (b - a) as i64)
    };
    (0..points.len()).map(time).collect()
}

/// 36 km/h.
const GUESSED_CM_S: f64 = 1_000.0;
/// Recorders' extensions go some eight deep. The XML reader takes longer for each element the more are open.
const DEPTH_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Vec<Trace>, TraceError> {
        read(text.as_bytes())
    }

    fn error(text: &str) -> String {
        read_text(text).expect_err("an error").to_string()
    }

    #[test]
    fn what_osmand_and_garmin_write_keeps_speed_and_heading() {
        let text = r#"<?xml version='1.0' encoding='UTF-8' standalone='yes' ?>
            <gpx version="1.1" creator="OsmAnd Maps 4.6.9" xmlns="http://www.topografix.com/GPX/1/1"
              xmlns:osmand="https://osmand.net/docs/technical/osmand-file-formats/osmand-gpx"
              xmlns:gpxtpx="http://www.garmin.com/xmlschemas/TrackPointExtension/v2"
              xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
            <metadata><name>2023-07-01_08-15_Sat</name><time>2023-07-01T06:15:00Z</time></metadata>
            <wpt lat="41.0" lon="-8.0"><name>Home &amp; garden</name></wpt>
            <trk><name>To &quot;work&quot; <![CDATA[& back]]></name><extensions><osmand:activity>car</osmand:activity></extensions>
            <trkseg>
              <trkpt lat="41.1500000" lon="-8.6100000"><ele>12.3</ele><time>2023-07-01T06:15:00Z</time><hdop>3.5</hdop>
                <extensions><osmand:speed>8.46</osmand:speed><osmand:bearing>271.5</osmand:bearing></extensions></trkpt>
              <trkpt lat="41.1501000" lon="-8.6110000"><time>2023-07-01T08:15:04.25+02:00</time>
                <extensions><gpxtpx:TrackPointExtension><gpxtpx:hr>91</gpxtpx:hr><gpxtpx:speed>9</gpxtpx:speed>
                <gpxtpx:course>90</gpxtpx:course></gpxtpx:TrackPointExtension></extensions></trkpt>
            </trkseg></trk></gpx>"#;

        let traces = read_text(text).unwrap();

        assert_eq!(traces.len(), 1);
        assert_eq!(traces[0].id, "To \"work\" & back");
        let [a, b] = traces[0].fixes[..] else { panic!("{traces:?}") };
        assert_eq!((a.measured, b.measured), (MeasuredTime(16_881_921_000), MeasuredTime(16_881_921_042)));
        assert_eq!((a.speed_dm_s, a.heading_255), (Some(85), Some(heading_255(271.5))));
        assert_eq!((b.speed_dm_s, b.heading_255), (Some(90), Some(heading_255(90.0))));
    }

    #[test]
    fn what_gpslogger_writes_as_version_1_0_is_read_too() {
        let text = r#"<?xml version="1.0" encoding="UTF-8" ?><gpx version="1.0" creator="GPSLogger 129"
            xmlns="http://www.topografix.com/GPX/1/0"><time>2023-07-01T06:15:00.000Z</time><trk><trkseg>
            <trkpt lat="41.15" lon="-8.61"><ele>80.0</ele><time>2023-07-01T06:15:00.000Z</time><course>12.5</course>
            <speed>4.5</speed><geoidheight>55.0</geoidheight><src>gps</src><sat>9</sat><hdop>0.8</hdop></trkpt>
            </trkseg></trk></gpx>"#;

        let traces = read_text(text).unwrap();

        assert_eq!(traces[0].id, "track 1");
        assert_eq!(traces[0].fixes[0].speed_dm_s, Some(45));
        assert_eq!(traces[0].fixes[0].heading_255, Some(heading_255(12.5)));
    }

    #[test]
    fn points_without_a_time_are_as_far_apart_as_a_drive_takes() {
        let point = |lat: f64, time: &str| format!(r#"<trkpt lat="{lat}" lon="-8.6">{time}</trkpt>"#);
        let track = |points: &str| format!("<gpx><trk><trkseg>{points}</trkseg></trk></gpx>");
        let times = |text: &str| read_text(text).unwrap()[0].fixes.iter().map(|fix| fix.measured.0).collect::<Vec<_>>();
        let (at_10, at_40) = ("<time>1970-01-01T00:00:10Z</time>", "<time>1970-01-01T00:00:40</time>");
        // 0.001° of latitude are 111.2 m: 11.1 s at 36 km/h.
        let none = [point(41.0, ""), point(41.001, ""), point(41.001, "<time/>"), point(41.003, "")].concat();
        let some = [
            point(41.0, ""),
            point(41.001, at_10),
            point(41.5, ""),
            point(41.5, ""),
            point(41.0, at_40),
            point(41.001, ""),
        ];

        assert_eq!(times(&track(&none)), [0, 111, 121, 344]);
        assert_eq!(times(&track(&some.concat())), [-11, 100, 200, 300, 400, 511]);
    }

    #[test]
    fn a_time_that_is_odd_costs_its_own_point_only() {
        let track = |odd: &str| {
            let point = |i: i32| {
                let time = if i == 4 { odd.to_owned() } else { format!("2023-07-01T08:00:{i:02}Z") };
                format!(r#"<trkpt lat="{}" lon="-8.6"><time>{time}</time></trkpt>"#, 41.0 + f64::from(i) * 1e-4)
            };
            let points: String = (0..20).map(point).collect();
            let trace = read_text(&format!("<gpx><trk><trkseg>{points}</trkseg></trk></gpx>")).unwrap().remove(0);
            (trace.fixes.len(), trace.notes)
        };

        assert_eq!(track("2023-07-01T08:00:04Z"), (20, TimeNotes::default()));
        assert_eq!(track("2023-07-01T10:00:04+02:00[Europe/Brussels]"), (20, TimeNotes::default()));
        assert_eq!(track("yesterday"), (20, TimeNotes { unreadable: 1, ..TimeNotes::default() }));
        assert_eq!(track(""), (20, TimeNotes::default()));
        for odd in ["2093-07-01T08:00:04Z", "0000-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "2023-07-01T08:00:19Z"] {
            assert_eq!(track(odd), (19, TimeNotes { odd: 1, ..TimeNotes::default() }), "{odd}");
        }
    }

    #[test]
    fn empty_segments_are_none_and_tracks_of_one_name_are_told_apart() {
        let point = r#"<trkpt lat="1" lon="2"/>"#;
        let track = |segments: &str| format!("<trk><name>Day</name>{segments}</trk>");
        let full = format!("<trkseg>{point}</trkseg>");
        let text =
            ["<gpx>", &track(&full), &track(&format!("<trkseg/>{full}{full}")), &track(&full), &track(""), "</gpx>"];

        let ids: Vec<String> = read_text(&text.concat()).unwrap().into_iter().map(|trace| trace.id).collect();

        assert_eq!(ids, ["Day", "Day 1", "Day 2", "Day (2)"]);
    }

    #[test]
    fn a_file_that_cannot_be_driven_says_why_and_where() {
        let track = |point: &str| format!("<gpx>\n<trk>\n<trkseg>\n{point}\n</trkseg></trk></gpx>");
        let cases = [
            (String::new(), "not GPX"),
            (String::from("hello"), "not GPX"),
            (String::from("<osm version='0.6'></osm>"), "not GPX: it begins with <osm>"),
            (String::from("<gpx></gpx>"), "no track"),
            (String::from("<gpx><wpt lat='1' lon='2'/><wpt lat='1' lon='2'/></gpx>"), "only 2 way points"),
            (String::from("<gpx><trk><trkseg></trkseg></trk></gpx>"), "no track with a point"),
            (track("<trkpt lat='1' lon='2'>"), "not GPX"),
            (track("<trkpt lat='north' lon='2'/>"), "line 4: a point needs lat and lon"),
            (track("<trkpt lon='2'/>"), "line 4: a point needs lat and lon"),
            (track("<trkpt lat='91' lon='2'/>"), "line 4: 91,2 is not on Earth"),
            (track("<trkpt lat='NaN' lon='2'/>"), "line 4"),
        ];

        for (text, expected) in cases {
            assert!(error(&text).contains(expected), "{text}: {}", error(&text));
        }
    }

    #[test]
    fn elements_nested_without_end_are_refused_at_once() {
        let point = "<trk><trkseg><trkpt lat='1' lon='2'/></trkseg></trk>";
        let deep = |levels: usize| format!("<gpx>{point}\n{}{}</gpx>", "<a>".repeat(levels), "</a>".repeat(levels));

        assert_eq!(read_text(&deep(DEPTH_MAX - 1)).unwrap().len(), 1);
        for levels in [DEPTH_MAX, 1_000_000] {
            assert_eq!(error(&deep(levels)), "line 2: elements lie in each other more than 64 deep");
        }
    }

    #[test]
    fn a_reader_by_the_schema_sees_the_same() {
        let mut text = String::from(
            r#"<gpx version="1.1" creator="x" xmlns="http://www.topografix.com/GPX/1/1"><trk><name>a</name>"#,
        );
        for segment in 0..3 {
            text += "<trkseg>";
            for i in 0..50 {
                let (lat, lon) = (41.0 + f64::from(i) * 0.000_137, -8.0 - f64::from(segment) * 0.011);
                text += &format!(
                    r#"<trkpt lat="{lat}" lon="{lon}"><ele>{i}</ele><time>2024-02-29T23:59:{i:02}.5Z</time></trkpt>"#
                );
            }
            text += "</trkseg>";
        }
        text += "</trk></gpx>";

        let (ours, theirs) = (read_text(&text).unwrap(), gpx::read(text.as_bytes()).unwrap());

        let segments = &theirs.tracks[0].segments;
        assert_eq!(ours.len(), segments.len());
        for (trace, segment) in ours.iter().zip(segments) {
            assert_eq!(trace.fixes.len(), segment.points.len());
            for (fix, point) in trace.fixes.iter().zip(&segment.points) {
                let at = time::OffsetDateTime::from(point.time.unwrap()).unix_timestamp_nanos() / 100_000_000;
                assert_eq!(i128::from(fix.measured.0), at);
                assert_eq!(fix.position, Position::from_degrees(point.point().y(), point.point().x()).unwrap());
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_file_breaks_the_reader(text in "(<gpx>|<trk>|<trkseg>|<trkpt lat='1' lon='2'>|</trkpt>|</trkseg>|</trk>|</gpx>|<time>|2020|</time>|&|\\PC){0,40}") {
            let _ = read_text(&text);
        }
    }
}
