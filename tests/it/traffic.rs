//! Traffic from end to end: what some drivers lose on a street, another is told before he gets there; and what recorded
//! trips teach is printed and drawn.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use maps::router::{Endpoint, Routing};
use maps::{Graph, Profile, geo};
use protocol::Position;
use serde_json::{Value, json};

use crate::browser::Browser;
use crate::harness::{Api, Server, ServerOptions, WAYFIX, eventually, id_of, now_ms};
use crate::maps::town;

#[tokio::test(flavor = "multi_thread")]
async fn twenty_drivers_at_8_km_h_raise_anothers_arrival_through_their_street_within_60_s() -> Result<()> {
    let map = town()?;
    let way = Way::across(&map)?;
    let server =
        Server::start(ServerOptions { map: Some(map), clock_factor: Some(1.2), ..ServerOptions::default() }).await?;
    let api = server.api()?;
    let waiting = Waiting::before(&api, &way).await?;
    let slow = try_join_all((0..20).map(|i| device(&api, format!("slow {i}")))).await?;
    let now = || server.clock_at(now_ms());
    eventually("an arrival time by the road", Duration::from_secs(30), || async {
        waiting.stand(now()).await?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        Ok(waiting.left_ms().await?.map(drop))
    })
    .await?;
    let before_ms = waiting.for_long(&now).await?;

    let began = now();
    let (mut next, mut raised) = (began, None);
    while raised.is_none() && now() < began + 120_000 {
        if now() >= next {
            let seconds = (next - began) as f64 / 1000.0;
            let fixes = slow.iter().enumerate().map(|(i, device)| {
                let along_m = way.length_m * (0.2 + 0.025 * i as f64) + seconds * 8.0 / 3.6;
                device.post("/tracking/locations", json!([way.fix(along_m, 2.2, next)]))
            });
            tokio::try_join!(try_join_all(fixes), waiting.stand(next))?;
            next += 4_000;
        }
        raised = waiting.left_ms().await?.filter(|left_ms| *left_ms > before_ms + 15_000).map(|left| (now(), left));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }

    let tables = server.counted("wayfix_learner_tables_total").await?;
    let (at, left_ms) = raised
        .with_context(|| format!("the arrival was never raised, {tables} tables were offered:\n{}", server.output()))?;
    eprintln!("{} s became {} s, {} s after the first slow fix", before_ms / 1000, left_ms / 1000, (at - began) / 1000);
    ensure!(at - began <= 60_000, "raised only after {} ms", at - began);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn speeds_are_learned_from_recorded_trips_printed_and_drawn() -> Result<()> {
    let map = town()?;
    let way = Way::across(&map)?;
    let folder = tempfile::tempdir()?;
    let (traces, page, table) =
        (folder.path().join("trips.csv"), folder.path().join("speeds.html"), folder.path().join("speeds.table"));
    std::fs::write(&traces, slow_trips(&way, 40)?)?;

    let arguments = ["--traces", path(&traces)?, "--html", path(&page)?, "-o", path(&table)?, "--hour", "12"];
    let learned = speeds(&map, &arguments)?;
    let read_again = speeds(&map, &["--table", path(&table)?, "--hour", "12"])?;
    let wrong = Command::new(WAYFIX).args(["maps", "speeds", path(&map)?, "--table", path(&page)?]).output()?;

    ensure!(learned.contains("learned from 40 trips"), "{learned}");
    let slowest = learned.split("slowest beside the empty road").nth(1).context("the slowest roads")?;
    let percent = slowest.split_whitespace().next().and_then(|n| n.parse::<f64>().ok()).context("a share")?;
    ensure!(percent < 70.0, "at 3 m/s a road is slow: {learned}");
    let classes = |text: &str| text.split("slowest").next().and_then(|t| t.split("week").nth(1)).map(str::to_owned);
    ensure!(classes(&learned) == classes(&read_again), "{learned}\n{read_again}");
    ensure!(!wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("not a table of speeds"));
    let Some(program) = Browser::program() else {
        eprintln!("skipped: there is no browser to look at the page");
        return Ok(());
    };
    let mut browser = Browser::start(program, 1200, 800).await?;
    browser.open(&format!("file://{}", path(&page)?)).await?;
    browser.until("document.getElementById('when')?.textContent.startsWith('Monday 12:00')", WAIT).await?;
    browser.evaluate("{const h=document.getElementById('hour');h.value=30;h.oninput({target:h})}").await?;
    browser.until("document.getElementById('when').textContent.startsWith('Tuesday 06:00')", WAIT).await?;
    ensure!(browser.complaints.is_empty(), "{:?}", browser.complaints);
    Ok(())
}

fn speeds(map: &Path, arguments: &[&str]) -> Result<String> {
    let output = Command::new(WAYFIX).args(["maps", "speeds", path(map)?]).args(arguments).output()?;
    let (text, errors) = (String::from_utf8(output.stdout)?, String::from_utf8_lossy(&output.stderr).into_owned());
    ensure!(output.status.success(), "{arguments:?}: {errors}");
    Ok(text)
}

/// In the taxi CSV's form: along the whole way at 3 m/s, a fix every 15 s, on Mondays at noon.
fn slow_trips(way: &Way, count: i64) -> Result<String> {
    let mut text = String::from("TRIP_ID,TIMESTAMP,POLYLINE\n");
    let steps = (way.length_m / 45.0) as u32;
    let line: Vec<[f64; 2]> = (0..=steps)
        .map(|step| way.at(f64::from(step) * 45.0).0)
        .map(|position| [position.lon(), position.lat()])
        .collect();
    for i in 0..count {
        let begin = 1_700_481_600 + i * 7 * 86_400;
        text += &format!("{i},{begin},\"{}\"\n", serde_json::to_string(&line)?);
    }
    Ok(text)
}

/// A way through the town.
struct Way {
    line: Vec<Position>,
    length_m: f64,
}

impl Way {
    /// The fastest between two places some two kilometres apart.
    fn across(map: &Path) -> Result<Way> {
        let graph = std::sync::Arc::new(Graph::open(map)?);
        let routing = Routing::new(graph.clone());
        let is_main = |e: &maps::EdgeId| graph.is_connected(*e, Profile::Car) && graph.length_cm(*e) > 5_000;
        let places: Vec<Position> =
            graph.edges().filter(is_main).step_by(211).map(|e| graph.position_at(e, 0)).collect();
        let pairs = places.iter().flat_map(|a| places.iter().map(move |b| (*a, *b)));
        let route = pairs
            .filter_map(|(a, b)| routing.route(&Endpoint::Position(a), &Endpoint::Position(b), Profile::Car))
            .find(|route| (180_000..300_000).contains(&route.length_cm))
            .context("the town is two kilometres wide")?;
        let line = route.geometry(&graph);
        let length_cm: f64 = line.windows(2).map(|pair| geo::distance_cm(pair[0], pair[1])).sum();
        Ok(Way { line, length_m: length_cm / 100.0 })
    }

    /// The place so far along, and the way it leads there in degrees.
    fn at(&self, along_m: f64) -> (Position, f64) {
        let mut left_cm = along_m * 100.0;
        for pair in self.line.windows(2) {
            let length_cm = geo::distance_cm(pair[0], pair[1]);
            if left_cm <= length_cm && length_cm > 0.0 {
                let share = left_cm / length_cm;
                let between = |a: i32, b: i32| a + (f64::from(b - a) * share).round() as i32;
                let (a, b) = (pair[0], pair[1]);
                let position = Position { lat_e7: between(a.lat_e7, b.lat_e7), lon_e7: between(a.lon_e7, b.lon_e7) };
                return (position, f64::from(geo::heading_cdeg(a, b)) / 100.0);
            }
            left_cm -= length_cm;
        }
        (self.line[self.line.len() - 1], 0.0)
    }

    fn fix(&self, along_m: f64, speed_m_s: f64, at_ms: i64) -> Value {
        let (position, heading) = self.at(along_m);
        json!({
            "lat": position.lat(), "lng": position.lon(), "timestamp": at_ms, "accuracy": 5,
            "heading": heading, "speed": speed_m_s,
        })
    }
}

/// A driver who has picked up his goods, and waits where the way begins.
struct Waiting<'a> {
    api: &'a Api,
    device: Api,
    delivery: String,
    way: &'a Way,
}

impl<'a> Waiting<'a> {
    async fn before(api: &'a Api, way: &'a Way) -> Result<Waiting<'a>> {
        let (driver, credential) = api.new_driver("Ana").await?;
        let stop = |kind: &str, position: Position| json!({"kind": kind, "lat": position.lat(), "lng": position.lon()});
        let stops = [stop("pickup", way.line[0]), stop("drop_off", way.line[way.line.len() - 1])];
        let made = api.post("/deliveries", json!({"stops": stops, "driver": driver})).await?;
        let delivery = id_of(&made, "delivery")?;
        for status in ["accepted", "preparing", "ready", "picked_up"] {
            api.post(&format!("/deliveries/{delivery}/status"), json!({"status": status})).await?;
        }
        Ok(Waiting { api, device: api.with_token(&credential), delivery, way })
    }

    async fn stand(&self, at_ms: i64) -> Result<()> {
        self.device.post("/tracking/locations", json!([self.way.fix(0.0, 0.0, at_ms)])).await.map(drop)
    }

    /// The most that his customer sees while he stands and nothing happens: the number shown follows slowly and in steps.
    async fn for_long(&self, now: &impl Fn() -> i64) -> Result<i64> {
        let began = now();
        let (mut next, mut most) = (began, None);
        while now() < began + 40_000 {
            if now() >= next {
                self.stand(next).await?;
                next += 4_000;
            }
            let shown = self.left_ms().await?;
            if now() >= began + 20_000 {
                most = most.max(shown);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        most.context("an arrival time by the road")
    }

    /// What his customer sees: how long it still takes, by the road.
    async fn left_ms(&self) -> Result<Option<i64>> {
        let shown = self.api.read(&format!("/tracking/{}/status", self.delivery)).await?;
        let (eta, now) = (&shown["eta"], shown["server_time"].as_i64());
        let is_by_road = eta["basis"] == "road" && eta["stop"] == 1;
        Ok(eta["arrival"].as_i64().zip(now).filter(|_| is_by_road).map(|(arrival, now)| arrival - now))
    }
}

async fn device(api: &Api, name: String) -> Result<Api> {
    let (_, credential) = api.new_driver(&name).await?;
    Ok(api.with_token(&credential))
}

fn path(file: &Path) -> Result<&str> {
    file.to_str().context("a path in UTF-8")
}

const WAIT: Duration = Duration::from_secs(20);
