//! On a map: snapped, planned, expected, and replanned. Always on a generated town, on Porto where `../shared` is.

#[path = "../../../../tests/shared_data.rs"]
mod shared_data;

use std::sync::OnceLock;

use maps::import::{ImportOptions, import_bytes};
use maps::router::{Endpoint, Routing};
use maps::town::{self, TownOptions};
use maps::{Graph, Profile};

use shared_data::shared;

use super::*;

#[test]
fn a_trip_on_roads_is_snapped_planned_and_expected() {
    let trip = trip(town(), 0);
    let mut world = World::on(town());
    world.push(assign_trip(&trip));
    let mut seen = Vec::new();
    for position in &trip.fixes {
        world.pass(4);
        world.drive_at(*position);
        let view = world.view().view;
        let shown = view.position.unwrap();
        assert!(geo::distance_cm(shown.position, *position) < 3_000.0);
        seen.push((view.progress.unwrap().remaining_m, view.eta.unwrap().basis, shown.snapped));
    }
    world.pass(60);

    assert!(seen.iter().filter(|(_, _, is_snapped)| *is_snapped).count() * 10 >= seen.len() * 9);
    assert!(seen.iter().all(|(_, basis, _)| *basis == EtaBasis::Road));
    assert!(seen.last().unwrap().0 < 100 && seen[0].0 > 800, "{seen:?}");
    assert!(world.view().view.plan.unwrap().points.len() >= 2);
    assert_eq!(world.breadcrumbs.len(), trip.fixes.len());
    let snapped = world.breadcrumbs.iter().filter(|crumb| crumb.snapped.is_some()).count();
    assert!(snapped * 10 >= trip.fixes.len() * 9, "{snapped} of {}", trip.fixes.len());
    assert_eq!(world.counts.folds_failed, 0);
}

#[test]
fn breadcrumbs_come_once_each_in_order_when_their_place_is_final() {
    let trip = trip(town(), 1);
    let mut world = World::on(town());
    for position in &trip.fixes {
        world.pass(4);
        world.drive_at(*position);
    }
    assert!(world.breadcrumbs.len() < trip.fixes.len());

    world.pass(45);

    let numbers: Vec<u64> = world.breadcrumbs.iter().map(|crumb| crumb.record.number.unwrap().0).collect();
    assert_eq!(numbers, (1..=trip.fixes.len() as u64).collect::<Vec<_>>());
}

#[test]
fn a_backlog_after_a_tunnel_is_placed_too_and_leaves_the_dot_where_it_is() {
    let trip = trip(town(), 6);
    let mut world = World::on(town());
    let (tunnel, live) = trip.fixes.split_at(trip.fixes.len() / 2);
    let mut backlog = Vec::new();
    for position in tunnel {
        world.pass(4);
        let mut fix = world.fix(0.0);
        fix.fix.position = *position;
        backlog.push(fix);
    }
    for position in live {
        world.pass(4);
        world.drive_at(*position);
    }
    let shown = world.shown().last().copied();

    let received = world.now();
    world.push_all(backlog.into_iter().map(|fix| Record::Fix(FixRecord { received, ..fix })).collect());
    assert_eq!(world.shown().last().copied(), shown);
    world.pass(60);

    assert_eq!(world.breadcrumbs.len(), trip.fixes.len());
    let of_tunnel = world.breadcrumbs.iter().filter(|crumb| crumb.record.number.unwrap().0 <= tunnel.len() as u64);
    let snapped = of_tunnel.filter(|crumb| crumb.snapped.is_some()).count();
    assert!(snapped * 10 >= tunnel.len() * 9, "{snapped} of {}", tunnel.len());
}

#[test]
fn a_driver_who_leaves_the_plan_gets_a_fresh_one() {
    let there = trip(town(), 2);
    let away = trip_from(town(), there.fixes[0], 3);
    let mut world = World::on(town());
    world.push(assign_trip(&there));
    world.pass(4);
    world.drive_at(there.fixes[0]);
    let before = world.view().view.plan.unwrap();

    for position in &away.fixes {
        world.pass(4);
        world.drive_at(*position);
    }

    let view = world.view().view;
    assert!(view.plan.is_some_and(|plan| plan != before));
    let off_m = view.progress.unwrap().off_route_m;
    assert!(off_m < 500, "{off_m}");
}

#[test]
fn a_fold_with_a_map_restored_anywhere_tells_the_same_bytes() {
    let trip = trip(town(), 4);
    let mut world = World::on(town());
    world.push(assign_trip(&trip));
    for position in &trip.fixes {
        world.pass(4);
        world.drive_at(*position);
    }
    world.pass(60);
    let bodies = world.bodies.clone();

    let fold = |cuts: &[usize]| {
        let mut partition = Partition::new(PartitionId(0), Offset(0), Generation::default());
        let mut effects = Effects::default();
        for (i, batch) in world.log.iter().enumerate() {
            if cuts.contains(&i) {
                partition = Partition::restore(&partition.snapshot().unwrap(), Generation::default(), &bodies).unwrap();
            }
            partition.handle_entry(Offset(i as u64), batch, &bodies, &mut effects);
        }
        (effects.updates, effects.breadcrumbs, partition.snapshot().unwrap())
    };

    let whole = fold(&[]);
    assert!(whole.0 == world.updates);
    assert!(fold(&[2, 20, 21, 70]) == whole);
}

#[test]
fn a_map_swapped_under_way_loses_no_fix_and_moves_no_dot() {
    let trip = trip(town(), 5);
    let mut world = World::on(town());
    world.push(assign_trip(&trip));
    let (first, second) = trip.fixes.split_at(trip.fixes.len() / 2);
    for position in first {
        world.pass(4);
        world.drive_at(*position);
    }
    let again = Arc::new(RoadMap::of(Graph::from_bytes(town_bytes()).unwrap(), BlobHash([2; 32])));
    world.bodies.maps.push(again);
    world.push(Record::InUse { kind: BodyKind::Map, hash: BlobHash([2; 32]) });
    for position in second {
        world.pass(4);
        world.drive_at(*position);
    }
    world.pass(60);

    assert_eq!(world.breadcrumbs.len(), trip.fixes.len());
    assert_eq!(world.view().view.eta.unwrap().basis, EtaBasis::Road);
    let shown = world.shown();
    assert!(shown.windows(2).all(|pair| geo::distance_cm(pair[0].1, pair[1].1) < 8_000.0));
}

/// What the ETA says halfway, against what came to pass, on real taxi trips.
#[test]
fn halfway_on_real_trips_the_eta_is_not_far_off() {
    let Some(map) = porto() else { return };
    let mut ratios = Vec::new();
    for fixes in taxi_trips(120) {
        let (last, half) = (fixes.len() - 1, fixes.len() / 2);
        let mut world = World::on(map.clone());
        let trip = Trip { fixes: fixes.clone(), stops: vec![fixes[0], fixes[last]] };
        world.push(assign_trip(&trip));
        world.push(ledger(DRIVER, status(6, DeliveryState::PickedUp)));
        for position in &fixes[..=half] {
            world.pass(15);
            world.drive_at(*position);
        }
        let eta = world.view().view.eta.unwrap();
        let predicted_s = eta.arrival.millis_since(world.now()) as f64 / 1000.0;
        ratios.push(15.0 * (last - half) as f64 / predicted_s.max(1.0));
    }
    ratios.sort_by(f64::total_cmp);
    let median = ratios[ratios.len() / 2];
    let mut errors: Vec<f64> = ratios.iter().map(|ratio| (1.0 / ratio - 1.0).abs()).collect();
    errors.sort_by(f64::total_cmp);
    let error = errors[errors.len() / 2];

    eprintln!("real ÷ predicted: median {median:.2}; median error {:.0} %", error * 100.0);
    assert!((0.75..1.33).contains(&median) && error < 0.45, "{median} {error}");
}

/// On trips whose truth is known: the dot is where the car was, and on the road it drove.
#[test]
fn on_true_trips_the_dot_is_where_the_car_was() {
    let Some(map) = porto() else { return };
    let (mut off_fix_m, mut off_road_m) = (Vec::new(), Vec::new());
    let mut folding = std::time::Duration::ZERO;
    for (truth, fixes) in truth_trips(50) {
        let mut world = World::on(map.clone());
        let trip = Trip { fixes: fixes.clone(), stops: vec![fixes[0], fixes[fixes.len() - 1]] };
        world.push(assign_trip(&trip));
        for position in &fixes {
            world.pass(4);
            let began = std::time::Instant::now();
            world.drive_at(*position);
            folding += began.elapsed();
            let (_, shown) = *world.shown().last().unwrap();
            off_fix_m.push(geo::distance_cm(shown, *position) / 100.0);
            off_road_m.push(off_line_m(shown, &truth));
        }
        let event_times: Vec<Time> = world.shown().iter().map(|(at, _)| *at).collect();
        assert!(event_times.is_sorted());
    }

    let p95 = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        values[values.len() * 95 / 100]
    };
    let fixes = off_fix_m.len();
    let (off_fix, off_road) = (p95(&mut off_fix_m), p95(&mut off_road_m));
    let each_us = folding.as_secs_f64() * 1e6 / fixes as f64;
    eprintln!(
        "p95 of {fixes}: {off_fix:.1} m from the fix, {off_road:.1} m from the road driven; {each_us:.0} us a fix"
    );
    assert!(off_fix <= 25.0 && off_road <= 15.0, "{off_fix} {off_road}");
}

pub(super) struct Trip {
    /// 4 s apart, 9 m/s.
    pub fixes: Vec<Position>,
    pub stops: Vec<Position>,
}

impl World {
    pub(super) fn drive_at(&mut self, position: Position) {
        let mut fix = self.fix(0.0);
        fix.fix.position = position;
        self.push(Record::Fix(fix));
    }
}

pub(super) fn assign_trip(trip: &Trip) -> Record {
    let journal = vec![status(1, DeliveryState::PickedUp), assigned(2, Some(DRIVER), 1)];
    let mut delivery = delivery(Some(DRIVER), 1, journal);
    delivery.stops[0].position = trip.stops[0];
    delivery.stops[1].position = trip.stops[1];
    Record::Assign { to: DRIVER.into(), delivery: Box::new(delivery) }
}

fn town_bytes() -> &'static [u8] {
    static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
    BYTES.get_or_init(|| import_bytes(&town::extract(&TownOptions::default()), &ImportOptions::default()).unwrap())
}

pub(super) fn town() -> Arc<RoadMap> {
    static TOWN: OnceLock<Arc<RoadMap>> = OnceLock::new();
    let open = || Arc::new(RoadMap::of(Graph::from_bytes(town_bytes()).unwrap(), BlobHash([1; 32])));
    TOWN.get_or_init(open).clone()
}

/// A trip of some length between two places that the seed picks.
pub(super) fn trip(map: Arc<RoadMap>, seed: u32) -> Trip {
    let graph = &map.graph;
    let edges = graph.edge_count() as u32;
    let from = graph.position_at(maps::EdgeId(seed.wrapping_mul(7_919) % edges), 0);
    trip_from(map, from, seed)
}

pub(super) fn trip_from(map: Arc<RoadMap>, from: Position, seed: u32) -> Trip {
    let graph = &map.graph;
    let edges = graph.edge_count() as u32;
    let routing = Routing::new(graph.clone());
    for attempt in 0..200_u32 {
        let edge = maps::EdgeId(seed.wrapping_mul(104_729).wrapping_add(attempt * 3_571) % edges);
        let to = graph.position_at(edge, 0);
        let route = routing.route(&Endpoint::Position(from), &Endpoint::Position(to), Profile::Car);
        if let Some(route) = route.filter(|route| (150_000..600_000).contains(&route.length_cm)) {
            let line = route.geometry(graph);
            return Trip { fixes: walk(&line, 36.0), stops: vec![line[0], line[line.len() - 1]] };
        }
    }
    panic!("no trip of this length in the town");
}

/// Places so many metres apart along a line, its end too.
fn walk(line: &[Position], step_m: f64) -> Vec<Position> {
    let mut places = vec![line[0]];
    let mut left_m = step_m;
    for pair in line.windows(2) {
        let plane = geo::Plane::at(pair[0]);
        let (east, north) = plane.to_cm(pair[1]);
        let length_m = geo::distance_cm(pair[0], pair[1]) / 100.0;
        let mut at_m = left_m;
        while at_m < length_m {
            let share = at_m / length_m;
            places.push(plane.to_position((east * share, north * share)));
            at_m += step_m;
        }
        left_m = at_m - length_m;
    }
    places.push(line[line.len() - 1]);
    places
}

fn porto() -> Option<Arc<RoadMap>> {
    static PORTO: OnceLock<Option<Arc<RoadMap>>> = OnceLock::new();
    let open = || {
        let extract = std::fs::read(shared("maps/porto.osm.pbf")?).unwrap();
        let map = import_bytes(&extract, &ImportOptions::default()).unwrap();
        Some(Arc::new(RoadMap::of(Graph::from_bytes(&map).unwrap(), BlobHash([3; 32]))))
    };
    PORTO.get_or_init(open).clone()
}

/// The road driven, and a fix every 4 s.
fn truth_trips(count: usize) -> Vec<(Vec<Vec<Position>>, Vec<Position>)> {
    let text = std::fs::read_to_string(shared("traces/porto_truth.jsonl").unwrap()).unwrap();
    let place = |lon: &serde_json::Value, lat: &serde_json::Value| {
        Position::from_degrees(lat.as_f64().unwrap(), lon.as_f64().unwrap()).unwrap()
    };
    let parse = |line: &str| {
        let trip: serde_json::Value = serde_json::from_str(line).unwrap();
        let parts = trip["truth"].as_array().unwrap().iter();
        let part = |part: &serde_json::Value| part.as_array().unwrap().iter().map(|p| place(&p[0], &p[1])).collect();
        let fixes = trip["fixes"].as_array().unwrap().iter().step_by(4).map(|fix| place(&fix[1], &fix[2]));
        (parts.map(part).collect(), fixes.collect())
    };
    text.lines().take(count).map(parse).collect()
}

/// How far a place lies beside the nearest part of some lines.
fn off_line_m(place: Position, parts: &[Vec<Position>]) -> f64 {
    let plane = geo::Plane::at(place);
    let stretches = parts.iter().flat_map(|part| part.windows(2));
    let off = stretches.map(|pair| {
        let ((ax, ay), (bx, by)) = (plane.to_cm(pair[0]), plane.to_cm(pair[1]));
        let (dx, dy) = (bx - ax, by - ay);
        let share = (-(ax * dx + ay * dy) / (dx * dx + dy * dy).max(1e-9)).clamp(0.0, 1.0);
        let (x, y) = (ax + share * dx, ay + share * dy);
        (x * x + y * y).sqrt() / 100.0
    });
    off.fold(f64::INFINITY, f64::min)
}

/// Trips of 5 to 30 minutes, their standing tails cut.
fn taxi_trips(count: usize) -> Vec<Vec<Position>> {
    let text = std::fs::read_to_string(shared("traces/porto_taxi.csv").unwrap()).unwrap();
    let parse = |line: &str| -> Option<Vec<Position>> {
        let (begin, end) = (line.find("[[")? + 2, line.rfind("]]")?);
        let pair = |pair: &str| {
            let (lon, lat) = pair.split_once(',')?;
            Position::from_degrees(lat.trim().parse().ok()?, lon.trim().parse().ok()?)
        };
        line[begin..end].split("],").map(|p| pair(p.trim().trim_start_matches('['))).collect()
    };
    let mut trips: Vec<Vec<Position>> = text.lines().filter_map(parse).collect();
    for trip in &mut trips {
        let end = trip[trip.len() - 1];
        while trip.len() > 2 && geo::distance_cm(trip[trip.len() - 2], end) < 6_000.0 {
            trip.pop();
        }
    }
    trips.retain(|trip| (20..120).contains(&trip.len()) && geo::distance_cm(trip[0], trip[trip.len() - 1]) > 100_000.0);
    // From all hours: at night taxis are as fast as the empty road.
    let every = trips.len().div_ceil(count).max(1);
    trips.into_iter().step_by(every).collect()
}
