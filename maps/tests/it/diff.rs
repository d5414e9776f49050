//! A map beside a version of it in which streets are missing: what is reported is what was taken out, and trips suffer
//! where they drove on it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::time::Duration;

use maps::diff::{RoadsDiff, TripsDiff};
use maps::import::{ImportOptions, import_bytes};
use maps::matcher::Scratch;
use maps::matcher::trip::match_trip;
use maps::traces::{Trace, read_file};
use maps::{Graph, Profile};
use osmpbfreader::fileformat::{Blob, BlobHeader};
use osmpbfreader::osmformat::{PrimitiveBlock, PrimitiveGroup};
use protobuf::Message;
use protocol::{Fix, MeasuredTime, Position};

use crate::cities;
use crate::shared_data::shared;

/// The extract as it would be if these ways had never been drawn.
fn without(extract: &[u8], dropped: &BTreeSet<i64>) -> Vec<u8> {
    altered(extract, |group| group.ways.retain(|way| !dropped.contains(&way.id())))
}

/// The extract with each group of its objects altered.
fn altered(extract: &[u8], alter: impl Fn(&mut PrimitiveGroup)) -> Vec<u8> {
    let mut rest = extract;
    let mut altered = Vec::new();
    while !rest.is_empty() {
        let header_len = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
        let mut header = BlobHeader::parse_from_bytes(&rest[4..4 + header_len]).unwrap();
        let (frame, next) = rest[4 + header_len..].split_at(header.datasize() as usize);
        let mut body = frame.to_vec();
        if header.type_() == "OSMData" {
            let blob = Blob::parse_from_bytes(frame).unwrap();
            let mut raw = blob.raw().to_vec();
            flate2::read::ZlibDecoder::new(blob.zlib_data()).read_to_end(&mut raw).unwrap();
            let mut block = PrimitiveBlock::parse_from_bytes(&raw).unwrap();
            block.primitivegroup.iter_mut().for_each(&alter);
            let raw = block.write_to_bytes().unwrap();
            let mut packer = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(&raw).unwrap();
            let mut blob = Blob::new();
            blob.set_raw_size(raw.len() as i32);
            blob.set_zlib_data(packer.finish().unwrap());
            body = blob.write_to_bytes().unwrap();
        }
        header.set_datasize(body.len() as i32);
        let header = header.write_to_bytes().unwrap();
        altered.extend_from_slice(&(header.len() as u32).to_be_bytes());
        altered.extend_from_slice(&header);
        altered.extend_from_slice(&body);
        rest = next;
    }
    altered
}

fn map_of(extract: &[u8]) -> Graph {
    let options = ImportOptions { order_time_max: Duration::ZERO, ..ImportOptions::default() };
    Graph::from_bytes(&import_bytes(extract, &options).unwrap()).unwrap()
}

/// The kilometres of these ways, each direction counted.
fn km_of(graph: &Graph, ways: &BTreeSet<i64>) -> f64 {
    let open = |e: &maps::EdgeId| Profile::ALL.iter().any(|profile| graph.allows(*e, *profile));
    let edges = graph.edges().filter(|e| ways.contains(&graph.osm_way(*e))).filter(open);
    edges.map(|e| f64::from(graph.length_cm(e)) / 1e5).sum()
}

fn compare(old: &Graph, new: &Graph, traces: &[Trace]) -> TripsDiff {
    TripsDiff::of(old, new, Profile::Car, traces, &|| {})
}

/// A drive along the edges of some street, 10 m/s, a fix every second.
fn drive(graph: &Graph, way: i64) -> Trace {
    let mut edges: Vec<_> = graph.edges().filter(|e| graph.osm_way(*e) == way).collect();
    edges.retain(|e| graph.allows(*e, Profile::Car) && graph.record(*e).road >> 31 == 0);
    let points: Vec<Position> = edges
        .iter()
        .flat_map(|e| (0..graph.length_cm(*e)).step_by(1_000).map(|cm| graph.position_at(*e, cm)))
        .collect();
    let fixes = points.into_iter().zip(0..).map(|(p, i)| Fix::at(MeasuredTime(i * 10), p)).collect();
    Trace { id: way.to_string(), fixes, ..Trace::default() }
}

#[test]
fn a_map_beside_itself_differs_in_nothing() {
    let graph = &cities::all()[0].graph;
    let trip = drive(graph, graph.osm_way(maps::EdgeId(0)));

    let (roads, trips) = (RoadsDiff::of(graph, graph), compare(graph, graph, &[trip]));

    let total = roads.total;
    assert_eq!(total.edges_added + total.edges_removed + total.edges_changed, 0);
    assert_eq!((total.km_added, total.km_removed, total.km_changed), (0.0, 0.0, 0.0));
    assert!(total.km_old > 100.0 && (total.km_old - total.km_new).abs() < 1e-9, "{total:?}");
    assert_eq!((trips.old, trips.differing_percent), (trips.new, 0.0));
    assert_eq!(trips.worse_by_percent(), 0.0);
}

#[test]
fn streets_taken_out_are_all_that_is_reported_and_put_back_they_are_added() {
    let (extract, old) = (cities::town_extract(), &cities::all()[0].graph);
    let all: Vec<i64> = old.edges().map(|e| old.osm_way(e)).collect::<BTreeSet<_>>().into_iter().collect();
    let dropped: BTreeSet<i64> = all.iter().step_by(9).copied().collect();
    let new = map_of(&without(extract, &dropped));

    let (out, back) = (RoadsDiff::of(old, &new).total, RoadsDiff::of(&new, old).total);

    let km = km_of(old, &dropped);
    assert!(km > 5.0, "{km}");
    assert!((out.km_removed - km).abs() < km * 0.002, "{} of {km}", out.km_removed);
    assert_eq!((out.km_added, out.edges_added), (0.0, 0));
    assert!(out.edges_removed > 0 && out.edges_old > out.edges_new, "{out:?}");
    // Streets that had a junction with a dropped one are the same streets, though their edges are others.
    assert!(out.edges_changed * 20 < out.edges_new, "{out:?}");
    assert_eq!((back.km_added, back.km_removed), (out.km_removed, 0.0));
}

#[test]
fn a_street_with_another_limit_is_changed_not_replaced() {
    let extract = cities::town_extract();
    let import = |country: &str| {
        let options =
            ImportOptions { country: country.to_owned(), order_time_max: Duration::ZERO, ..ImportOptions::default() };
        Graph::from_bytes(&import_bytes(extract, &options).unwrap()).unwrap()
    };

    let diff = RoadsDiff::of(&import("GB"), &import("DE")).total;

    assert!(diff.km_changed > 0.0, "{diff:?}");
    assert_eq!((diff.km_added, diff.km_removed), (0.0, 0.0));
}

#[test]
fn signs_taken_down_are_reported_where_they_stood_and_no_road_has_changed() {
    let (extract, old) = (cities::town_extract(), &cities::all()[0].graph);
    let new = map_of(&altered(extract, |group| group.relations.clear()));

    let (out, back) = (RoadsDiff::of(old, &new), RoadsDiff::of(&new, old));

    assert!(out.turns.removed > 0, "{:?}", out.turns);
    assert_eq!((out.turns.added, out.turns.changed), (0, 0), "{:?}", out.turns);
    assert_eq!(out.turns.old - out.turns.new, out.turns.removed);
    assert!(
        out.turns
            .places
            .iter()
            .all(|(lat, lon)| { old.covers(Position::from_degrees(*lat, *lon).expect("a place on earth")) })
    );
    assert!(!out.turns.places.is_empty());
    assert_eq!((back.turns.added, back.turns.removed), (out.turns.removed, 0));
    assert_eq!((out.total.km_added, out.total.km_removed), (0.0, 0.0));
}

#[test]
fn a_trip_is_worse_off_only_where_its_street_is_gone() {
    let (extract, old) = (cities::town_extract(), &cities::all()[0].graph);
    let mut metres: BTreeMap<i64, u32> = BTreeMap::new();
    let open = |e: &maps::EdgeId| old.allows(*e, Profile::Car) && old.is_connected(*e, Profile::Car);
    for e in old.edges().filter(open) {
        *metres.entry(old.osm_way(e)).or_default() += old.length_cm(e) / 100;
    }
    let mut longest: Vec<(u32, i64)> = metres.into_iter().map(|(way, metres)| (metres, way)).collect();
    longest.sort_unstable_by(|a, b| b.cmp(a));
    let [(_, gone), (_, stays)] = [longest[0], longest[1]];
    let new = map_of(&without(extract, &BTreeSet::from([gone])));

    let trips = compare(old, &new, &[drive(old, stays), drive(old, gone)]);

    assert_eq!(trips.by_trip[0].id, gone.to_string(), "the worst is first");
    assert!(trips.by_trip[0].is_worse() && trips.by_trip[0].differing_percent > 30.0, "{:?}", trips.by_trip[0]);
    assert!(trips.by_trip[0].old.placed_percent() > 95.0, "{:?}", trips.by_trip[0]);
    assert!(trips.by_trip[0].new.placed < trips.by_trip[0].old.placed, "{:?}", trips.by_trip[0]);
    assert!(trips.worse_by_percent() > 1.0, "{trips:?}");
    let other = &trips.by_trip[1];
    assert_eq!(other.old.placed, other.new.placed, "{other:?}");
}

#[test]
fn real_trips_on_porto_without_its_busiest_streets_differ_there_and_only_there() {
    let (Some(extract), Some(trips)) = (cities::extract("porto"), shared("traces/porto_truth.jsonl")) else { return };
    let mut traces = read_file(&trips).unwrap();
    traces.truncate(60);
    traces.iter_mut().for_each(|trace| trace.thin(4.0));
    let old = &cities::all().iter().find(|city| city.name == "porto").unwrap().graph;
    let mut scratch = Scratch::new();
    let mut driven: BTreeMap<i64, BTreeSet<&str>> = BTreeMap::new();
    for trace in &traces {
        for one in match_trip(old, &mut scratch, Profile::Car, &trace.fixes) {
            let edges = one.route.iter().copied().chain(one.snapped.map(|s| s.edge));
            for edge in edges {
                driven.entry(old.osm_way(edge)).or_default().insert(&trace.id);
            }
        }
    }
    let mut busiest: Vec<(usize, i64)> = driven.iter().map(|(way, trips)| (trips.len(), *way)).collect();
    busiest.sort_unstable_by(|a, b| b.cmp(a));
    let dropped: BTreeSet<i64> = busiest.iter().take(5).map(|(_, way)| *way).collect();
    let hit: BTreeSet<&str> = dropped.iter().flat_map(|way| driven[way].iter().copied()).collect();
    let new = map_of(&without(&extract, &dropped));

    let diff = compare(old, &new, &traces);

    assert!(hit.len() >= 5 && hit.len() < traces.len(), "{hit:?}");
    for trip in diff.by_trip.iter().filter(|trip| !hit.contains(trip.id.as_str())) {
        assert!(trip.differing_percent < 5.0 && trip.old.placed == trip.new.placed, "{trip:?}");
    }
    assert!(diff.by_trip.iter().filter(|trip| hit.contains(trip.id.as_str())).all(|trip| trip.differing_percent > 0.0));
    assert!(diff.differing_percent > 0.5 && diff.by_trip[0].is_worse(), "{:?}", diff.by_trip[0]);
    let removed = RoadsDiff::of(old, &new).total;
    assert_eq!(removed.km_added, 0.0);
    assert!((removed.km_removed - km_of(old, &dropped)).abs() < 0.01, "{removed:?}");
}
