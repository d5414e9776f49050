//! The server's wall clock is set, far and near, forward and back, while it runs and while it is stopped, and set right
//! again, under load: no acknowledged fix is lost, dots move on and have the right age, nobody is silent because of it
//! and nobody fails to be, and nothing that is remembered is forgotten.
//!
//! libfaketime gives the server a wall clock that a file sets; the time since the machine started stays the real one.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use phone::driver::{Credential, Phone, PhoneConfig};
use protocol::{Fix, MeasuredTime, Position, Time};
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::harness::{Api, Server, ServerOptions, eventually, id_of, now_ms};

const HOUR_S: i64 = 3_600;
const DAY_S: i64 = 24 * HOUR_S;
const STEPS_S: [i64; 4] = [2, 2 * HOUR_S, 2 * DAY_S, 20 * 365 * DAY_S];
const ADMIN_KEY: &str = "an operator's key for tests";

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_set_loses_nothing_and_stops_no_dot() -> Result<()> {
    let Some(library) = faketime() else {
        ensure!(
            std::env::var_os("WAYFIX_TESTS_NEED_ALL").is_none(),
            "libfaketime is missing: apt-get install faketime"
        );
        eprintln!("skipped: without libfaketime no clock can be set");
        return Ok(());
    };
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut cases = JoinSet::new();
    for step_s in STEPS_S.into_iter().flat_map(|step_s| [step_s, -step_s]) {
        for is_stopped in [false, true] {
            let at_once = at_once.clone();
            cases.spawn(async move {
                let _place = at_once.acquire_owned().await?;
                let when = if is_stopped { "while it was stopped" } else { "while it ran" };
                live_through(library, step_s, is_stopped).await.with_context(|| format!("set by {step_s} s {when}"))
            });
        }
    }
    let mut failures = Vec::new();
    while let Some(case) = cases.join_next().await {
        if let Err(error) = case? {
            failures.push(format!("{error:#}"));
        }
    }
    ensure!(failures.is_empty(), "{} of 16 cases:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}

fn faketime() -> Option<&'static str> {
    const PLACES: [&str; 3] = [
        "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
        "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
        "/usr/lib/faketime/libfaketimeMT.so.1",
    ];
    PLACES.into_iter().find(|place| Path::new(place).exists())
}

async fn live_through(library: &str, step_s: i64, is_stopped: bool) -> Result<()> {
    let mut day = Day::begin(library).await?;
    let outcome = day.live(step_s, is_stopped).await;
    day.stop.cancel();
    outcome.with_context(|| format!("the server said:\n{}", day.server.output()))
}

/// A server with its tenant, and all who use it.
struct Day {
    server: Server,
    api: Api,
    clock: tempfile::TempDir,
    /// What the server's clock shows beyond ours.
    off_s: i64,
    sent: Arc<Sent>,
    /// Ends all phones.
    stop: CancellationToken,
    /// Ends the one that falls silent.
    hush: CancellationToken,
    by_json: u64,
    by_udp: u64,
    quiet: u64,
    once: (String, String),
}

/// What phones have sent, and what was acknowledged.
#[derive(Default)]
struct Sent {
    /// Driver, and when it was measured.
    acknowledged: Mutex<BTreeSet<(u64, i64)>>,
    /// Fixes that were called wrong.
    rejected: Mutex<Vec<Value>>,
}

impl Day {
    async fn begin(library: &str) -> Result<Day> {
        let clock = tempfile::tempdir()?;
        let file = clock.path().join("offset");
        set_clock(&file, 0)?;
        let environment = [
            ("LD_PRELOAD", library.to_string()),
            ("FAKETIME_TIMESTAMP_FILE", file.display().to_string()),
            ("FAKETIME_NO_CACHE", "1".to_string()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_string()),
        ];
        let more = format!("[gateway]\nadmin_key = {ADMIN_KEY:?}\n");
        let environment = environment.map(|(name, value)| (name.to_string(), value)).to_vec();
        let server = Server::start(ServerOptions { more, environment, ..ServerOptions::default() }).await?;
        let operator = server.api()?.with_token(ADMIN_KEY);
        let policy = json!({"expected_interval_s": 1, "stale_after_s": 6});
        let made = operator.post("/tenants", json!({"name": "a tenant", "policy": policy})).await?;
        let api = operator.with_token(made["key"].as_str().context("a key")?);
        let once = new_driver_once(&api).await?;
        let (sent, stop, hush) = (Arc::default(), CancellationToken::new(), CancellationToken::new());
        let mut day = Day { server, api, clock, off_s: 0, sent, stop, hush, by_json: 0, by_udp: 0, quiet: 0, once };
        day.by_json = day.drive_by_json(1, day.stop.clone()).await?;
        day.by_udp = day.drive_by_udp().await?;
        day.quiet = day.drive_by_json(1, day.hush.clone()).await?;
        for _ in 0..LOAD_DRIVERS {
            day.drive_by_json(LOAD_FIXES_PER_S, day.stop.clone()).await?;
        }
        Ok(day)
    }

    async fn live(&mut self, step_s: i64, is_stopped: bool) -> Result<()> {
        self.dots_move_on("at first", Duration::from_secs(20)).await?;
        tokio::time::sleep(Duration::from_secs(3)).await; // so that the position before is an old one
        self.set(step_s, is_stopped).await?;
        self.dots_move_on("after the step", DOT_WITHIN).await?;
        self.nothing_is_forgotten().await.context("after the step")?;
        self.hush.cancel();
        let hushed = Instant::now();
        self.all_is_well_until(hushed + Duration::from_secs(3)).await.context("after the step")?;
        self.set(0, is_stopped).await?;
        self.dots_move_on("once it was right again", DOT_WITHIN).await?;
        self.nothing_is_forgotten().await.context("once it was right again")?;
        eventually("who is silent is said to be", SILENT_WITHIN, || async {
            Ok((!self.driver(self.quiet).await?["silent"].is_null()).then_some(()))
        })
        .await?;
        self.all_is_well_until(Instant::now() + Duration::from_secs(2)).await.context("in the end")?;
        self.steps_are_said(if is_stopped { "while nothing ran" } else { "while we ran" }).await?;
        self.stop.cancel();
        self.nothing_is_lost().await
    }

    async fn set(&mut self, off_s: i64, is_stopped: bool) -> Result<()> {
        let file = self.clock.path().join("offset");
        if is_stopped {
            // By SIGTERM on the way out, as by a power cut on the way back.
            if off_s == 0 {
                self.server.kill().await?;
            } else {
                self.server.stop().await?;
            }
        }
        self.off_s = off_s;
        set_clock(&file, off_s)?;
        if is_stopped { self.server.launch().await } else { Ok(()) }
    }

    fn server_now_ms(&self) -> i64 {
        now_ms() + self.off_s * 1_000
    }

    async fn driver(&self, driver: u64) -> Result<Value> {
        let map = self.api.read("/map/status").await?;
        let drivers = map["drivers"].as_array().cloned().unwrap_or_default();
        let number = driver.to_string();
        let found = drivers.into_iter().find(|one| one["driver"].as_str() == Some(&number));
        found.with_context(|| format!("driver {driver} is on the map"))
    }

    /// Both dots go on from where they are, and their age is right by the server's new time.
    async fn dots_move_on(&self, when: &str, within: Duration) -> Result<()> {
        let begun = Instant::now();
        let before = now_ms();
        for (driver, door) in [(self.by_json, "JSON"), (self.by_udp, "UDP")] {
            let left = within.saturating_sub(begun.elapsed());
            eventually(&format!("the dot by {door} {when}"), left, || async {
                let frame = self.driver(driver).await?;
                let position = &frame["position"];
                let event_ms = position["event_time"].as_i64().context("an event time")?;
                let age_ms = self.server_now_ms() - event_ms;
                let shown_ms = position["age_ms"].as_i64().context("an age")?;
                // What a position says of when it was sent does not depend on any clock but ours.
                let sent_ms = sent_at(position["lat"].as_f64().context("a latitude")?);
                let is_right = sent_ms > before && (-500..=AGE_MS_MAX).contains(&age_ms) && shown_ms <= AGE_MS_MAX;
                if is_right && frame["silent"].is_null() && frame["freshness"] == "live" {
                    return Ok(Some(()));
                }
                bail!("sent {} ms after the step, its age is {age_ms} ms: {frame}", sent_ms - before)
            })
            .await?;
        }
        Ok(())
    }

    async fn all_is_well_until(&self, end: Instant) -> Result<()> {
        while Instant::now() < end {
            for driver in [self.by_json, self.by_udp] {
                let frame = self.driver(driver).await?;
                ensure!(frame["silent"].is_null() && frame["freshness"] == "live", "{frame}");
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let rejected = self.sent.rejected.lock().expect("nobody breaks while holding it").clone();
        ensure!(rejected.is_empty(), "phones that are right were told {rejected:?}");
        Ok(())
    }

    /// A request made before is answered as before, and phones get sessions.
    async fn nothing_is_forgotten(&self) -> Result<()> {
        let (driver, credential) = &self.once;
        let (again, _) = make_driver(&self.api).await?;
        ensure!(again == *driver, "the same request made driver {again} beside {driver}");
        let device = self.api.with_token(credential);
        eventually("a session", DOT_WITHIN, || async {
            let (status, grant) = device.call(Method::POST, "/sessions", Some(json!({}))).await?;
            ensure!(status == StatusCode::CREATED, "{status} {grant}");
            let ahead_s = grant["start"].as_i64().context("a start")? - self.server_now_ms() / 1_000;
            ensure!((-2..=64).contains(&ahead_s), "it starts {ahead_s} s from now");
            Ok(Some(()))
        })
        .await
    }

    /// Once in the log for each, in `/readyz`, and counted.
    async fn steps_are_said(&self, when: &str) -> Result<()> {
        let output = self.server.output();
        let said = output.lines().filter(|line| line.contains("the wall clock was set") && line.contains(when)).count();
        ensure!(said == 2, "said {said} times");
        let health = reqwest::get(format!("http://{}/readyz", self.server.admin)).await?;
        ensure!(health.status() == StatusCode::OK, "not ready");
        let text = health.text().await?;
        ensure!(text.contains("clock: degraded, it was set"), "{text}");
        ensure!(self.server.counted("wayfix_clock_steps_total").await? >= 1.0, "a step was not counted");
        Ok(())
    }

    async fn nothing_is_lost(&self) -> Result<()> {
        eventually("every acknowledged fix in the history", Duration::from_secs(60), || async {
            let acknowledged = self.sent.acknowledged.lock().expect("nobody breaks while holding it").clone();
            let drivers: BTreeSet<u64> = acknowledged.iter().map(|(driver, _)| *driver).collect();
            let mut kept = Vec::new();
            for driver in drivers {
                kept.extend(self.trail(driver).await?);
            }
            let all: BTreeSet<_> = kept.iter().copied().collect();
            ensure!(all.len() == kept.len(), "{} fixes stand there twice", kept.len() - all.len());
            let lost = acknowledged.difference(&all).count();
            ensure!(lost == 0, "{lost} of {} are not there", acknowledged.len());
            ensure!(acknowledged.len() >= FIXES_MIN, "only {} were acknowledged", acknowledged.len());
            Ok(Some(()))
        })
        .await
    }

    async fn trail(&self, driver: u64) -> Result<Vec<(u64, i64)>> {
        let (mut points, mut next) = (Vec::new(), String::new());
        loop {
            let page = self.api.read(&format!("/drivers/{driver}/trail?limit=1000&from=0{next}")).await?;
            let some = page["points"].as_array().context("points")?;
            points.extend(some.iter().filter_map(|point| Some((driver, point["measured"].as_i64()?))));
            match page["next"].as_str() {
                Some(cursor) => next = format!("&cursor={cursor}"),
                None => return Ok(points),
            }
        }
    }

    /// A driver with a delivery, who posts so many fixes each second.
    async fn drive_by_json(&self, fixes: u32, stop: CancellationToken) -> Result<u64> {
        let (driver, credential) = self.new_driver().await?;
        let (device, sent) = (self.api.with_token(&credential), self.sent.clone());
        tokio::spawn(async move {
            let mut ticking = tokio::time::interval(Duration::from_secs(1));
            let mut held: Vec<i64> = Vec::new();
            while stop.run_until_cancelled(ticking.tick()).await.is_some() {
                let (now, each_ms) = (now_ms(), 1_000 / i64::from(fixes));
                held.extend((0..i64::from(fixes)).rev().map(|i| (now - i * each_ms) / 100 * 100));
                held.drain(..held.len().saturating_sub(500)); // while the server is away
                let body = held.iter().map(|at_ms| json_fix(*at_ms)).collect();
                let posted = device.call(Method::POST, "/tracking/locations", Some(Value::Array(body))).await;
                let Ok((StatusCode::ACCEPTED, answer)) = posted else { continue };
                let mut acknowledged = sent.acknowledged.lock().expect("nobody breaks while holding it");
                acknowledged.extend(held.drain(..).map(|at_ms| (driver, at_ms)));
                let rejected = answer["rejected"].as_array().cloned().unwrap_or_default();
                sent.rejected.lock().expect("nobody breaks while holding it").extend(rejected);
            }
        });
        Ok(driver)
    }

    /// A driver with a delivery, whose phone sends by UDP.
    async fn drive_by_udp(&self) -> Result<u64> {
        let (driver, credential) = self.new_driver().await?;
        let (sent, stop) = (self.sent.clone(), self.stop.clone());
        let mut config = PhoneConfig::new(self.server.url(), Credential::new(credential));
        config.logged_in = true;
        config.on_acked = Some(Arc::new(move |_, fix| {
            let mut acknowledged = sent.acknowledged.lock().expect("nobody breaks while holding it");
            acknowledged.insert((driver, fix.measured.to_time().0));
        }));
        config.client.report_acked = true;
        let phone = Phone::start(config).await?;
        tokio::spawn(async move {
            let mut ticking = tokio::time::interval(Duration::from_secs(1));
            while stop.run_until_cancelled(ticking.tick()).await.is_some() {
                let at_ms = now_ms() / 100 * 100;
                let Some(position) = Position::from_degrees(lat_at(at_ms), -30.0) else { return };
                let fix = Fix { accuracy_m: Some(5), ..Fix::at(MeasuredTime::from_time(Time(at_ms)), position) };
                let _ = phone.send_fix(fix); // a phone that is busy is given the next
            }
            phone.shutdown().await;
        });
        Ok(driver)
    }

    async fn new_driver(&self) -> Result<(u64, String)> {
        let (driver, credential) = self.api.new_driver("Ana").await?;
        let stops =
            json!([{"kind": "pickup", "lat": 44.5, "lng": -30.0}, {"kind": "drop_off", "lat": 44.6, "lng": -30.0}]);
        let order = self.api.post("/deliveries", json!({"stops": stops})).await?;
        let delivery = id_of(&order, "delivery")?;
        self.api.post(&format!("/deliveries/{delivery}/assign"), json!({"driver": driver.to_string()})).await?;
        Ok((driver, credential))
    }
}

/// Where a phone is says when it was there: a latitude of 10⁻⁷ ° for each millisecond of the last while, 11 m/s.
fn lat_at(at_ms: i64) -> f64 {
    44.0 + at_ms.rem_euclid(LAT_MS) as f64 / 1e7
}

fn sent_at(lat: f64) -> i64 {
    let now = now_ms();
    let within = ((lat - 44.0) * 1e7).round() as i64;
    now - (now.rem_euclid(LAT_MS) - within).rem_euclid(LAT_MS)
}

fn json_fix(at_ms: i64) -> Value {
    json!({"lat": lat_at(at_ms), "lng": -30.0, "timestamp": at_ms, "accuracy": 5})
}

/// A driver made by a request that may be repeated, with a device.
async fn new_driver_once(api: &Api) -> Result<(String, String)> {
    let (driver, _) = make_driver(api).await?;
    let device = api.post("/devices", json!({"driver": driver})).await?;
    Ok((driver, device["credential"].as_str().context("a credential")?.to_string()))
}

async fn make_driver(api: &Api) -> Result<(String, StatusCode)> {
    let mut headers = HeaderMap::new();
    headers.insert("idempotency-key", HeaderValue::from_static("one driver"));
    let request = api.client.post(format!("{}/drivers", api.base)).bearer_auth(&api.token).headers(headers);
    let answer = request.json(&json!({"name": "Eva"})).send().await?;
    let status = answer.status();
    let made: Value = answer.json().await?;
    Ok((id_of(&made, "driver")?, status))
}

/// In one go, so that nobody reads half of it.
fn set_clock(file: &Path, off_s: i64) -> Result<()> {
    let beside = file.with_extension("new");
    std::fs::write(&beside, format!("{off_s:+}s\n"))?;
    std::fs::rename(beside, file).context("set the clock")
}

/// Servers beside each other: more of them and two cores are late for reasons of their own.
const AT_ONCE: usize = 4;
const LOAD_DRIVERS: usize = 3;
const LOAD_FIXES_PER_S: u32 = 10;
const FIXES_MIN: usize = 300;
const DOT_WITHIN: Duration = Duration::from_secs(5);
/// A fix each second, and what one takes to be shown.
const AGE_MS_MAX: i64 = 2_500;
/// His time-out, the edge's marks, and what is left of the step.
const SILENT_WITHIN: Duration = Duration::from_secs(20);
/// A day: the place is another at each moment of it.
const LAT_MS: i64 = 86_400_000;
