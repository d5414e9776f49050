//! Real and simulated drivers from the phone to the customer: the dot is where the driver is, the arrival time can be
//! believed, and nothing acknowledged is lost, whatever is killed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::fleet::{Acked, Leg, Sim, distance_m, lines, place_at, truth_by_delivery};
use crate::harness::{Api, Server, ServerOptions, eventually};
use crate::maps::{demo_city, porto};
use crate::shared_data::shared;
use crate::watch::Watch;

#[tokio::test(flavor = "multi_thread")]
async fn on_recorded_trips_with_truth_the_shown_dot_is_where_the_driver_is() -> Result<()> {
    let (Some(map), Some(traces)) = (porto()?, shared("traces/porto_truth.jsonl")) else { return Ok(()) };
    let server =
        Server::start(ServerOptions { map: Some(map), clock_factor: Some(20.0), ..Default::default() }).await?;
    let api = server.api()?;
    let mut fleet = Sim::replay(&server, &traces, &["--trips", "50", "--trips-max", "50", "--every", "4"])?;
    let watches = watch_all(&api, 50).await?;

    let report = fleet.wait(Duration::from_secs(300)).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;

    let truth = truth_by_delivery(&server)?;
    let mut errors_m = Vec::new();
    for (delivery, watch) in &watches {
        let truths = truth.get(delivery).with_context(|| format!("the truth of delivery {delivery}"))?;
        errors_m.extend(position_errors(watch, truths)?);
    }
    errors_m.sort_by(f64::total_cmp);
    let within = errors_m.partition_point(|error| *error <= 25.0) as f64 / errors_m.len() as f64;
    eprintln!(
        "{} position frames of {} trips: {:.1} % within 25 m, p50 {:.1} m, p95 {:.1} m",
        errors_m.len(),
        watches.len(),
        within * 100.0,
        quantile(&errors_m, 0.5),
        quantile(&errors_m, 0.95)
    );
    ensure!(errors_m.len() > 1000, "only {} position frames came: {report}", errors_m.len());
    ensure!(within >= 0.95, "only {:.1} % within 25 m", within * 100.0);
    agree(&api, watches.iter().next().context("a watched delivery")?).await?;
    history_holds_every_acknowledged_fix_once(&server, &api).await
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_taxi_trips_go_through_whole() -> Result<()> {
    let (Some(map), Some(traces)) = (porto()?, shared("traces/porto_taxi.csv")) else { return Ok(()) };
    let server =
        Server::start(ServerOptions { map: Some(map), clock_factor: Some(20.0), ..Default::default() }).await?;
    let api = server.api()?;
    let mut fleet = Sim::replay(&server, &traces, &["--trips", "50", "--trips-max", "50"])?;

    let report = fleet.wait(Duration::from_secs(300)).await?;

    ensure!(report["deliveries_failed"] == 0, "{report}");
    ensure!(report["fixes_acked"] == report["fixes_made"], "{report}");
    ensure!(server.counted("wayfix_processor_folds_failed_total").await? == 0.0, "a fold failed");
    history_holds_every_acknowledged_fix_once(&server, &api).await
}

/// Halfway to the drop-off the arrival time is off by a quarter of what is left, at the median.
#[tokio::test(flavor = "multi_thread")]
async fn on_simulated_trips_the_arrival_time_can_be_believed() -> Result<()> {
    let errors = errors_halfway(&["--drivers", "16", "--duration", "900", "--seed", "5"], 10.0).await?;
    believable(&errors, 15, 0.25)
}

/// Couriers on bicycles take other roads at another pace: as cars they would be promised far too early.
#[tokio::test(flavor = "multi_thread")]
async fn the_arrival_time_of_a_courier_on_a_bicycle_is_a_bicycles() -> Result<()> {
    let by_bicycle = ["--vehicles", "bicycle", "--drivers", "20", "--duration", "1800", "--seed", "6"];
    let errors = errors_halfway(&by_bicycle, 18.0).await?;
    believable(&errors, 10, 0.25)
}

/// How far off, as a share of what was left, the arrival times of simulated drivers were halfway; in order.
async fn errors_halfway(fleet: &[&str], clock_factor: f64) -> Result<Vec<f64>> {
    let map = demo_city()?;
    let options = ServerOptions { map: Some(map.clone()), clock_factor: Some(clock_factor), ..Default::default() };
    let server = Server::start(options).await?;
    let api = server.api()?;
    let mut fleet = Sim::start(&server, &map, fleet)?;
    let mut watches = BTreeMap::new();
    while fleet.is_running() {
        for delivery in live_deliveries(&api).await? {
            watches.entry(delivery).or_insert_with(|| Watch::start(&api, delivery));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    fleet.wait(Duration::from_secs(60)).await?;

    let truth = truth_by_delivery(&server)?;
    let mut errors = Vec::new();
    for (delivery, watch) in &watches {
        let Some(truths) = truth.get(delivery) else { continue };
        errors.extend(error_halfway(&server, watch, truths));
    }
    errors.sort_by(f64::total_cmp);
    Ok(errors)
}

fn believable(errors: &[f64], trips_min: usize, median_max: f64) -> Result<()> {
    let median = quantile(errors, 0.5);
    eprintln!("{} trips, halfway: median error of the arrival time {:.1} %", errors.len(), median * 100.0);
    ensure!(errors.len() >= trips_min, "only {} trips reached their drop-off", errors.len());
    ensure!(median <= median_max, "the median error is {:.1} %", median * 100.0);
    Ok(())
}

/// kill −9 in the middle, on a network that loses, repeats and reorders.
#[tokio::test(flavor = "multi_thread")]
async fn kill_9_loses_no_acknowledged_fix_and_no_journal_entry() -> Result<()> {
    let map = demo_city()?;
    let mut server =
        Server::start(ServerOptions { map: Some(map.clone()), clock_factor: Some(5.0), ..Default::default() }).await?;
    let api = server.api()?;
    let bad_network = ["--loss", "0.1", "--duplicate", "0.05", "--delay-ms-max", "120"];
    let driven = ["--drivers", "12", "--duration", "420", "--seed", "9"];
    let mut fleet = Sim::start(&server, &map, &[&driven[..], &bad_network[..]].concat())?;
    let mut watches = watch_all(&api, 12).await?;

    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(12)).await;
        server.kill().await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        server.launch().await?;
        for delivery in live_deliveries(&api).await? {
            watches.entry(delivery).or_insert_with(|| Watch::start(&api, delivery));
        }
    }
    let report = fleet.wait(Duration::from_secs(200)).await?;

    ensure!(report["fixes_left"] == 0, "the phones could not bring all home: {report}");
    history_holds_every_acknowledged_fix_once(&server, &api).await?;
    for (delivery, watch) in &watches {
        let last = api.read(&format!("/deliveries/{delivery}")).await?["last_number"].as_u64().context("a journal")?;
        let what = format!("the whole journal of delivery {delivery}");
        let seen = eventually(&what, Duration::from_secs(30), || async {
            let seen = watch.journal();
            Ok((seen.last() == Some(&last)).then_some(seen))
        });
        let seen = seen.await.with_context(|| format!("saw {:?} of {last}", watch.journal()))?;
        ensure!(seen == (1..=last).collect::<Vec<_>>(), "delivery {delivery}: {seen:?} is not 1 to {last}");
    }
    let status = server.stop().await?;
    ensure!(status.success(), "the server stopped with {status}:\n{}", server.output());
    Ok(())
}

async fn live_deliveries(api: &Api) -> Result<Vec<u64>> {
    let listed = api.read("/deliveries?live=true&limit=1000").await?;
    let rows = listed["deliveries"].as_array().context("a list of deliveries")?;
    Ok(rows.iter().filter_map(|row| row["delivery"].as_str()?.parse().ok()).collect())
}

async fn watch_all(api: &Api, count: usize) -> Result<BTreeMap<u64, Watch>> {
    let deliveries = eventually("all deliveries", Duration::from_secs(60), || async {
        let deliveries = live_deliveries(api).await?;
        Ok((deliveries.len() >= count).then_some(deliveries))
    });
    Ok(deliveries.await?.into_iter().map(|delivery| (delivery, Watch::start(api, delivery))).collect())
}

/// How far each shown position was from the true one at its event time. Event time must never go back.
fn position_errors(watch: &Watch, truths: &[crate::fleet::Truth]) -> Result<Vec<f64>> {
    let mut newest = 0;
    let mut errors_m = Vec::new();
    for received in watch.of_type("position") {
        let frame = received.frame;
        let at_ms = frame["event_time"].as_i64().context("an event time")?;
        ensure!(at_ms >= newest, "event time went back from {newest} to {at_ms}");
        newest = at_ms;
        let shown = (frame["lat"].as_f64().context("a latitude")?, frame["lng"].as_f64().context("a longitude")?);
        errors_m.extend(place_at(truths, at_ms).map(|place| distance_m(place, shown)));
    }
    Ok(errors_m)
}

/// The relative error of the newest arrival time shown when half the way to the drop-off, by time, was done.
fn error_halfway(server: &Server, watch: &Watch, truths: &[crate::fleet::Truth]) -> Option<f64> {
    let on_the_way: Vec<_> = truths.iter().filter(|truth| truth.leg == Some(Leg::ToDropOff)).collect();
    let (begins, arrived) = (on_the_way.first()?.at_ms, on_the_way.last()?.at_ms);
    let has_arrived = truths.iter().any(|truth| truth.leg == Some(Leg::AtDropOff));
    if !has_arrived || arrived - begins < 60_000 {
        return None;
    }
    let middle_ms = begins + (arrived - begins) / 2;
    let shown = watch.frames().into_iter().filter(|received| server.clock_at(received.at_ms) <= middle_ms);
    let eta = shown.filter_map(|received| eta_of(&received.frame)).last()?;
    Some((eta - arrived).abs() as f64 / (arrived - middle_ms) as f64)
}

/// The arrival at the drop-off that a frame speaks of.
fn eta_of(frame: &Value) -> Option<i64> {
    let eta = if frame["type"] == "snapshot" { &frame["eta"] } else { frame };
    (eta["stop"] == 1).then(|| eta["arrival"].as_i64()).flatten()
}

/// WebSocket, Server-Sent Events and REST tell of one delivery the same.
async fn agree(api: &Api, (delivery, watch): (&u64, &Watch)) -> Result<()> {
    let status = api.read(&format!("/tracking/{delivery}/status")).await?;
    let url = format!("{}/tracking/{delivery}/events", api.base);
    let mut events = api.client.get(url).bearer_auth(&api.token).send().await?;
    let mut text = String::new();
    while !text.contains("\n\n") || !text.contains("data:") {
        let chunk = tokio::time::timeout(Duration::from_secs(10), events.chunk()).await??;
        text += &String::from_utf8_lossy(&chunk.context("the events end before the first")?);
    }
    let data = text.lines().find_map(|line| line.strip_prefix("data:")).context("an event's data")?;
    let event: Value = serde_json::from_str(data.trim())?;
    let journal = |frame: &Value| frame["journal"].as_array().map(Vec::len);
    ensure!(event["type"] == "snapshot", "{event}");
    for field in ["status", "driver", "journal", "last_number", "stops", "reference"] {
        ensure!(status[field] == event[field], "{field}: REST says {}, SSE says {}", status[field], event[field]);
    }
    ensure!(journal(&status) == Some(watch.journal().len()), "WebSocket saw {:?}, REST {status}", watch.journal());
    Ok(())
}

async fn history_holds_every_acknowledged_fix_once(server: &Server, api: &Api) -> Result<()> {
    let acked: BTreeSet<Acked> = lines(&server.folder().join("acked.jsonl"))?.into_iter().collect();
    ensure!(!acked.is_empty(), "no fix was acknowledged");
    let drivers: BTreeSet<u64> = acked.iter().map(|fix| fix.driver).collect();
    let what = format!("{} acknowledged fixes in history", acked.len());
    let kept = eventually(&what, Duration::from_secs(60), || async {
        let mut kept: BTreeMap<Acked, u32> = BTreeMap::new();
        for driver in &drivers {
            for fix in trail(api, *driver).await? {
                *kept.entry(fix).or_default() += 1;
            }
        }
        let missing = acked.iter().filter(|fix| !kept.contains_key(fix)).count();
        ensure!(missing == 0, "{missing} are missing");
        Ok(Some(kept))
    });
    let twice: Vec<_> = kept.await?.into_iter().filter(|(_, times)| *times != 1).collect();
    ensure!(twice.is_empty(), "{} fixes stand more than once in history: {:?}", twice.len(), twice.first());
    eprintln!("{} acknowledged fixes of {} drivers stand in history exactly once", acked.len(), drivers.len());
    Ok(())
}

/// All of a driver's history, page by page.
async fn trail(api: &Api, driver: u64) -> Result<Vec<Acked>> {
    let (mut fixes, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = api.read(&format!("/drivers/{driver}/trail?from=0&limit=5000{cursor}")).await?;
        for point in page["points"].as_array().context("points")? {
            fixes.push(acked_of(driver, point, point["measured"].as_i64().context("a time")?)?);
        }
        let Some(next) = page["next"].as_str() else { return Ok(fixes) };
        cursor = format!("&cursor={next}");
    }
}

fn acked_of(driver: u64, point: &Value, measured_ms: i64) -> Result<Acked> {
    let e6 = |name: &str| Ok::<_, anyhow::Error>((point[name].as_f64().context("degrees")? * 1e6).round() as i64);
    Ok(Acked { driver, measured_ds: measured_ms / 100, lat_e6: e6("lat")?, lon_e6: e6("lng")? })
}

fn quantile(sorted: &[f64], share: f64) -> f64 {
    sorted.get(((sorted.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or(f64::NAN)
}
