//! How many breadcrumbs the learner takes on one core: `cargo run --release --example learn_rate CITY.wfm TRACES`.
//! Trips are matched first, then handed to it again and again as breadcrumbs of other drivers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use maps::matcher::Scratch;
use maps::matcher::trip::match_trip;
use maps::{Graph, Profile, traces};
use processor::config::LearnerSettings;
use processor::learner::{Learner, State};
use protocol::record::{BlobHash, Door};
use protocol::update::{SnappedPosition, Source};
use protocol::{Breadcrumb, DeviceKey, DeviceNumber, DriverId, EdgeId, FixNumber, FixRecord, TenantId, Time, Verdict};

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let map = arguments.next().context("CITY.wfm is missing")?;
    let file = arguments.next().context("TRACES is missing")?;
    let graph = Arc::new(Graph::open(&map)?);
    let mut scratch = Scratch::new();
    let mut trips = Vec::new();
    for trace in traces::read_file(file.as_ref())? {
        let matched = match_trip(&graph, &mut scratch, Profile::Car, &trace.fixes);
        trips.push(trace.fixes.into_iter().zip(matched).collect::<Vec<_>>());
    }
    let now = trips.iter().flatten().map(|(fix, _)| fix.measured.to_time()).max().unwrap_or_default();
    let mut learner = Learner::new(LearnerSettings::default().check()?, State::new(now), now);
    learner.handle_map(BlobHash([0; 32]), &graph, now);

    let (mut count, mut busy) = (0u32, Duration::ZERO);
    for round in 0..ROUNDS {
        for (i, trip) in trips.iter().enumerate() {
            let driver = DriverId(round * trips.len() as u32 + i as u32);
            let breadcrumbs: Vec<Breadcrumb> = trip.iter().map(|(fix, matched)| crumb(driver, fix, matched)).collect();
            let began = Instant::now();
            breadcrumbs.iter().for_each(|breadcrumb| learner.handle_breadcrumb(breadcrumb, now));
            busy += began.elapsed();
            count += breadcrumbs.len() as u32;
        }
    }
    ensure!(count > 0, "there are no fixes in {file}");
    let began = Instant::now();
    learner.handle_timeout(Time(now.0 + 10_000));
    let told = began.elapsed();
    let counts = learner.take_counts();
    let us = busy.as_secs_f64() * 1e6 / f64::from(count);
    println!("{count} breadcrumbs, {us:.2} µs each, {} traversals", counts.traversals);
    println!("all tables anew: {:.1} ms; state: {} bytes", told.as_secs_f64() * 1e3, learner.state().to_bytes().len());
    Ok(())
}

fn crumb(driver: DriverId, fix: &protocol::Fix, matched: &maps::matcher::Matched) -> Breadcrumb {
    let record = FixRecord {
        device: DeviceKey { tenant: TenantId(1), driver, device: DeviceNumber(1) },
        session_start: 1,
        number: Some(FixNumber(1)),
        lowest_held: FixNumber(0),
        edge: EdgeId(1),
        door: Door::Udp,
        received: fix.measured.to_time(),
        fix: *fix,
        verdict: Verdict::Accepted,
    };
    let snapped = matched.snapped.map(|s| SnappedPosition {
        position: s.position,
        edge: s.edge.0,
        along_cm: s.along_cm,
        off_cm: s.off_cm,
        confidence_percent: s.confidence_percent,
    });
    Breadcrumb { record, verdict: Verdict::Accepted, snapped, delivery: None, source: Source::default() }
}

const ROUNDS: u32 = 5;
