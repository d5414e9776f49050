//! Draws trips on a map and what a receiver would have said of them, as JSON lines with the truth: something to choose
//! the matcher's weights by that is not what it is judged by.
//!
//! `simulate_trips MAP.wfm OUT.jsonl [--trips N] [--seed S] [--noise METRES]`
//!
//! Routes are the fastest under travel times that each trip sees differently (so not the shortest), keep turn
//! restrictions and never turn round. Drivers accelerate, slow down for corners, stop at some junctions. The noise is
//! correlated over twenty seconds, as in streets, with some white noise on top.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fs::File;
use std::io::{BufWriter, Write};

use maps::{EdgeId, Graph, Profile, geo};
use protocol::Position;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

fn main() {
    let mut free = Vec::new();
    let (mut trips, mut seed, mut noise_m) = (100usize, 1u64, 5.0f64);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().expect("the option has a value");
        match arg.as_str() {
            "--trips" => trips = value().parse().expect("a number"),
            "--seed" => seed = value().parse().expect("a number"),
            "--noise" => noise_m = value().parse().expect("metres"),
            _ => free.push(arg),
        }
    }
    let [map, out] = free.as_slice() else { panic!("usage: simulate_trips MAP.wfm OUT.jsonl [options]") };
    let graph = Graph::open(map).expect("the map opens");
    let mut out = BufWriter::new(File::create(out).expect("the output can be made"));
    let mut rng = StdRng::seed_from_u64(seed);
    let mut drawn = 0;
    for _ in 0..trips * 50 {
        if drawn == trips {
            break;
        }
        let Some(route) = draw_route(&graph, &mut rng) else { continue };
        let trip = drive(&graph, &route, &mut rng);
        if trip.places.len() < 120 {
            continue;
        }
        let fixes = receive(&trip.places, noise_m, &mut rng);
        let truth: Vec<[f64; 2]> = trip.line.iter().map(|p| [p.lon(), p.lat()]).collect();
        let line = serde_json::json!({ "id": drawn, "truth": [truth], "fixes": fixes });
        writeln!(out, "{line}").expect("the output can be written");
        drawn += 1;
    }
    println!("{drawn} trips");
}

/// A route between two random places some kilometres apart, the fastest as this driver sees it.
fn draw_route(graph: &Graph, rng: &mut StdRng) -> Option<Vec<EdgeId>> {
    let mut pick = || {
        let edge = EdgeId(rng.random_range(0..graph.edge_count() as u32));
        let is_street = !graph.flags(edge).is_service() && !graph.flags(edge).is_ferry();
        (is_street && graph.is_connected(edge, Profile::Car)).then_some(edge)
    };
    let (from, to) = (pick()?, pick()?);
    let apart_cm = geo::distance_cm(graph.position_at(from, 0), graph.position_at(to, 0));
    if !(80_000.0..1_200_000.0).contains(&apart_cm) {
        return None;
    }
    let taste = rng.random::<u32>();
    let mut best: HashMap<u32, (u64, u32)> = HashMap::new();
    let mut heap = BinaryHeap::from([Reverse((0u64, from.0, u32::MAX))]);
    while let Some(Reverse((cost, edge, parent))) = heap.pop() {
        if best.contains_key(&edge) {
            continue;
        }
        best.insert(edge, (cost, parent));
        if edge == to.0 {
            let mut route = vec![to];
            let mut at = parent;
            while at != u32::MAX {
                route.push(EdgeId(at));
                at = best[&at].1;
            }
            route.reverse();
            return Some(route);
        }
        let edge = EdgeId(edge);
        for next in graph.out_edges(graph.to(edge)) {
            let is_way = graph.allows(next, Profile::Car)
                && !graph.is_u_turn(edge, next)
                && graph.is_turn_allowed(edge, next, Profile::Car);
            if is_way && !best.contains_key(&next.0) {
                // Between 0.6 and 1.8 times the time on the empty road, the same for this trip and way.
                let mix = (graph.osm_way(next) as u32 ^ taste).wrapping_mul(0x9E37_79B1) >> 16;
                let factor = 600 + u64::from(mix) * 1200 / 65_536;
                let ms = u64::from(graph.duration_ms(next, Profile::Car)) * factor / 1000;
                heap.push(Reverse((cost + ms + 1, next.0, edge.0)));
            }
        }
    }
    None
}

struct Trip {
    line: Vec<Position>,
    /// Where the driver is at every second.
    places: Vec<Position>,
}

/// Drives a route from the middle of its first edge to the middle of its last.
fn drive(graph: &Graph, route: &[EdgeId], rng: &mut StdRng) -> Trip {
    let (mut line, mut limits) = (Vec::new(), Vec::new());
    for (i, edge) in route.iter().enumerate() {
        let (from, to) = match i {
            0 => (graph.length_cm(*edge) / 2, graph.length_cm(*edge)),
            _ if i + 1 == route.len() => (0, graph.length_cm(*edge) / 2),
            _ => (0, graph.length_cm(*edge)),
        };
        let speed = f64::from(graph.free_flow_cm_s(*edge)) / 100.0 * rng.random_range(0.6..1.05);
        let steps = ((to - from) / 100).max(1);
        for s in 0..=steps {
            let along = from + ((u64::from(to - from) * u64::from(s)) / u64::from(steps)) as u32;
            line.push(graph.position_at(*edge, along));
            limits.push(speed);
        }
        // Slow down for the corner; stand still at some junctions.
        let at = line.len() - 1;
        if let Some(next) = route.get(i + 1) {
            let (_, before) = graph.place_at(*edge, graph.length_cm(*edge));
            let (_, after) = graph.place_at(*next, 0);
            let turn = f64::from(geo::turn_cdeg(before, after)) / 100.0;
            limits[at] = if turn > 40.0 { 4.0 } else { limits[at] };
            let is_junction = graph.out_edges(graph.to(*edge)).len() > 2;
            if is_junction && rng.random_bool(0.08) {
                limits[at] = 0.0;
            }
        }
    }
    // Brake in time: no more than 1.5 m/s² between points a metre apart.
    for i in (0..limits.len().saturating_sub(1)).rev() {
        let step_m = geo::distance_cm(line[i], line[i + 1]) / 100.0;
        limits[i] = f64::min(limits[i], (limits[i + 1] * limits[i + 1] + 3.0 * step_m).sqrt());
    }
    let mut places = Vec::new();
    let (mut speed, mut at, mut into_m) = (0.0f64, 0usize, 0.0f64);
    while at + 1 < line.len() && places.len() < 5_000 {
        places.push(line[at]);
        speed = (speed + 1.8).min(limits[at].max(1.0));
        into_m += speed;
        while at + 1 < line.len() {
            let step_m = geo::distance_cm(line[at], line[at + 1]) / 100.0;
            if into_m < step_m {
                break;
            }
            into_m -= step_m;
            at += 1;
            if limits[at] == 0.0 {
                limits[at] = 1.0;
                let wait = rng.random_range(3..45);
                places.extend(std::iter::repeat_n(line[at], wait));
                (speed, into_m) = (0.0, 0.0);
            }
        }
    }
    places.extend(line.last());
    Trip { line, places }
}

/// What a receiver says each second: [t, lon, lat].
fn receive(places: &[Position], noise_m: f64, rng: &mut StdRng) -> Vec<[f64; 3]> {
    let mut normal = || {
        let (a, b): (f64, f64) = (rng.random_range(1e-12..1.0), rng.random());
        (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos()
    };
    let keep: f64 = (-1.0f64 / 20.0).exp();
    let fresh = (1.0 - keep * keep).sqrt() * noise_m;
    let (mut east, mut north) = (normal() * noise_m, normal() * noise_m);
    places
        .iter()
        .enumerate()
        .map(|(t, place)| {
            (east, north) = (east * keep + normal() * fresh, north * keep + normal() * fresh);
            let plane = geo::Plane::at(*place);
            let seen = plane.to_position(((east + 2.0 * normal()) * 100.0, (north + 2.0 * normal()) * 100.0));
            [t as f64, seen.lon(), seen.lat()]
        })
        .collect()
}
