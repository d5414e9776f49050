//! From a phone's sending a fix to the customer's receiving the dot: sealed datagrams over UDP into the release build, and
//! WebSockets out of it, everything in one process as `wayfix up` runs it. Twenty drivers with a delivery send a fix a
//! second each, and a customer watches each of them; other drivers make up the rest of the load. Beside it a bare echo
//! from UDP to a WebSocket and the disk's sync, in the same run.

use std::collections::HashMap;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use benches::echo::{quantile_of, synced_appends, udp_to_websocket};
use benches::http::Http;
use benches::sealed_phone::SealedPhone;
use benches::server::{Enrolled, Server, ServerOptions, enrol, made, number_of};
use benches::{Goal, Report};
use clap::Parser;
use futures_util::StreamExt;
use protocol::Position;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

#[derive(Parser)]
struct Arguments {
    /// Fixes a second, those of the watched drivers included; one run each.
    #[arg(long, default_values_t = [20, 300, 3_000, 50_000])]
    rate: Vec<u32>,
    /// How long each run is measured.
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// Where the state lies while it is measured; removed at the end.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// The build to be measured.
    #[arg(long)]
    binary: Option<PathBuf>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(bench(arguments))
}

async fn bench(arguments: Arguments) -> Result<()> {
    let mut report = Report::new("live");
    let folder = arguments.folder.as_ref().map_or_else(tempfile::tempdir, tempfile::tempdir_in);
    let folder = folder.context("make a folder")?;
    let yardstick = yardsticks(&mut report, folder.path()).await?;
    let options = ServerOptions { binary: arguments.binary.clone(), map: None };
    let server = Server::start(&options, folder.path()).await?;
    let rate_max = arguments.rate.iter().copied().max().unwrap_or(WATCHED);
    let drivers = enrol(&server, WATCHED + (rate_max - WATCHED).min(OTHERS_MAX)).await?;
    let (watched, others) = drivers.split_at(WATCHED as usize);
    let shown = Arc::new(Shown::default());
    for (number, driver) in watched.iter().enumerate() {
        let (delivery, token) = deliver(&server, driver, number).await?;
        tokio::spawn(watch(format!("ws://{}", server.http), delivery, token, number, shown.clone()));
    }
    let mut watched = sessions(&server, watched, 0).await?;
    let mut others = sessions(&server, others, WATCHED as usize).await?;
    for rate in &arguments.rate {
        let run = Run { rate: *rate, seconds: arguments.seconds, shown: shown.clone() };
        let cpu = server.cpu()?;
        let begun = Instant::now();
        let (back, sent) = run.drive(watched, others).await?;
        (watched, others) = back;
        let cpu = (server.cpu()? - cpu).as_secs_f64() / begun.elapsed().as_secs_f64();
        tokio::time::sleep(SETTLE).await;
        let mut measured = shown.take();
        let unit = format!("{rate}/s");
        let beside =
            format!("sent {:.0}/s; the server used {cpu:.2} cores", f64::from(sent) / run.whole().as_secs_f64());
        report.row(
            &format!("sent to shown, p50 at {unit}"),
            quantile_of(&mut measured.ms, 0.5),
            "ms",
            &beside,
            Goal::AtMost(10.0),
        );
        report.row(
            &format!("sent to shown, p99 at {unit}"),
            quantile_of(&mut measured.ms, 0.99),
            "ms",
            &yardstick,
            Goal::AtMost(30.0),
        );
        let missing = measured.missing as f64 / (measured.ms.len() + measured.missing) as f64 * 100.0;
        report.row(
            &format!("sent and not shown at {unit}"),
            missing,
            "%",
            "of the watched drivers' fixes",
            Goal::AtMost(0.5),
        );
    }
    server.stop().await?;
    report.finish()
}

/// What no server could be quicker than.
async fn yardsticks(report: &mut Report, folder: &std::path::Path) -> Result<String> {
    let mut echo = udp_to_websocket(200, Duration::from_millis(5)).await?;
    let mut sync = synced_appends(folder, 200, Duration::from_millis(5))?;
    let ms = |samples: &mut [f64], wanted| quantile_of(samples, wanted) * 1e3;
    let (echo, sync) = ([ms(&mut echo, 0.5), ms(&mut echo, 0.99)], [ms(&mut sync, 0.5), ms(&mut sync, 0.99)]);
    report.row("bare echo, UDP to WebSocket, p50", echo[0], "ms", &format!("p99 {:.2} ms", echo[1]), Goal::None);
    report.row("append and sync of the disk, p50", sync[0], "ms", &format!("p99 {:.2} ms", sync[1]), Goal::None);
    Ok(format!("echo and two syncs: p50 {:.2}, p99 {:.2} ms", echo[0] + 2.0 * sync[0], echo[1] + 2.0 * sync[1]))
}

/// What the watched drivers sent that is not shown yet, and how long the rest took.
#[derive(Default)]
struct Shown {
    waiting: Mutex<HashMap<(usize, i64), Instant>>,
    ms: Mutex<Vec<f64>>,
}

struct Measured {
    ms: Vec<f64>,
    missing: usize,
}

impl Shown {
    fn handle_sent(&self, phone: usize, lat_e7: i32) {
        lock(&self.waiting).insert((phone, i64::from(lat_e7) / 10), Instant::now());
    }

    fn handle_frame(&self, phone: usize, frame: &Value) {
        let now = Instant::now();
        let position = if frame["type"] == "position" { frame } else { &frame["position"] };
        let Some(lat) = position["lat"].as_f64() else { return };
        if let Some(sent) = lock(&self.waiting).remove(&(phone, (lat * 1e6).round() as i64)) {
            lock(&self.ms).push((now - sent).as_secs_f64() * 1e3);
        }
    }

    fn take(&self) -> Measured {
        let missing = std::mem::take(&mut *lock(&self.waiting)).len();
        Measured { ms: std::mem::take(&mut *lock(&self.ms)), missing }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A delivery on its way to a customer far ahead, and the customer's token.
async fn deliver(server: &Server, driver: &Enrolled, number: usize) -> Result<(u64, String)> {
    let (mut http, key) = (Http::new(server.http), server.key()?);
    let at = start_of(number);
    let stop = |kind: &str, lat: f64| json!({ "kind": kind, "lat": lat, "lng": at.lon(), "label": kind });
    let order = json!({
        "driver": driver.driver, "reference": format!("order {number}"),
        "stops": [stop("pickup", at.lat() - 0.1), stop("drop_off", at.lat() + 0.9)],
    });
    let delivery = made(http.call("POST", "/api/v1/deliveries", Some(&key), Some(&order)).await?)?;
    let id = number_of(&delivery["delivery"])?;
    for status in ["accepted", "preparing", "ready", "picked_up"] {
        let change = json!({ "status": status });
        made(http.call("POST", &format!("/api/v1/deliveries/{id}/status"), Some(&key), Some(&change)).await?)?;
    }
    Ok((id, delivery["token"].as_str().context("a delivery has a token")?.to_string()))
}

/// A customer, until the server ends the stream.
async fn watch(url: String, delivery: u64, token: String, phone: usize, shown: Arc<Shown>) -> Result<()> {
    let mut request = format!("{url}/api/v1/tracking/{delivery}/connect").into_client_request()?;
    request.headers_mut().insert("authorization", format!("Bearer {token}").parse()?);
    let (mut socket, _) = tokio_tungstenite::connect_async(request).await.context("connect")?;
    while let Some(message) = socket.next().await {
        if let Message::Text(text) = message? {
            shown.handle_frame(phone, &serde_json::from_str(&text)?);
        }
    }
    Ok(())
}

async fn sessions(server: &Server, drivers: &[Enrolled], first: usize) -> Result<Vec<SealedPhone>> {
    let mut http = Http::new(server.http);
    let mut phones = Vec::with_capacity(drivers.len());
    for (number, driver) in drivers.iter().enumerate() {
        phones.push(SealedPhone::begin(&mut http, driver, start_of(first + number)).await?);
    }
    Ok(phones)
}

/// Each driver has a meridian of his own.
fn start_of(number: usize) -> Position {
    Position { lat_e7: 401_000_000, lon_e7: -86_000_000 + number as i32 * 1_000 }
}

type Phones = Vec<SealedPhone>;

#[derive(Clone)]
struct Run {
    rate: u32,
    seconds: u32,
    shown: Arc<Shown>,
}

impl Run {
    fn whole(&self) -> Duration {
        WARM_UP + Duration::from_secs(u64::from(self.seconds))
    }

    /// Sends for as long as the run takes; what was shown during the warm-up does not count. How many were sent.
    async fn drive(&self, watched: Phones, others: Phones) -> Result<((Phones, Phones), u32)> {
        let (run, other_run) = (self.clone(), self.clone());
        let watching = std::thread::Builder::new().name("watched phones".to_string());
        let watching = watching.spawn(move || run.send_watched(watched))?;
        let others_sending = std::thread::Builder::new().name("other phones".to_string());
        let others_sending = others_sending.spawn(move || other_run.send_others(others))?;
        tokio::time::sleep(WARM_UP).await;
        drop(self.shown.take());
        while !(watching.is_finished() && others_sending.is_finished()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let died = |_| anyhow::anyhow!("a sender died");
        let (watched, sent) = watching.join().map_err(died)??;
        let (others, sent_by_others) = others_sending.join().map_err(died)??;
        Ok(((watched, others), sent + sent_by_others))
    }

    fn send_watched(&self, mut phones: Phones) -> Result<(Phones, u32)> {
        let socket = UdpSocket::bind("127.0.0.1:0").context("bind a phone")?;
        let count = phones.len();
        let begun = Instant::now();
        let mut sent = 0;
        while begun.elapsed() < self.whole() {
            let number = sent as usize % count;
            // Not in step with anything that the server does every so many milliseconds.
            let jitter = Duration::from_micros(u64::from(sent) * 7_919 % 20_000);
            pause_until(begun + Duration::from_secs_f64(f64::from(sent) / f64::from(WATCHED)) + jitter);
            let phone = &mut phones[number];
            phone.seal_next(WATCHED_M_S, WATCHED_M_S)?;
            self.shown.handle_sent(number, phone.lat_e7);
            phone.send(&socket)?;
            sent += 1;
        }
        Ok((phones, sent))
    }

    fn send_others(&self, mut phones: Phones) -> Result<(Phones, u32)> {
        let socket = UdpSocket::bind("127.0.0.1:0").context("bind a phone")?;
        let rate = self.rate.saturating_sub(WATCHED);
        let count = rate.min(phones.len() as u32);
        if count == 0 {
            return Ok((phones, 0));
        }
        let metres = OTHERS_M_S * f64::from(count) / f64::from(rate);
        let begun = Instant::now();
        let mut sent = 0;
        while begun.elapsed() < self.whole() {
            pause_until(begun + Duration::from_secs_f64(f64::from(sent) / f64::from(rate)));
            let phone = &mut phones[(sent % count) as usize];
            phone.seal_next(metres, OTHERS_M_S)?;
            phone.send(&socket)?;
            sent += 1;
        }
        Ok((phones, sent))
    }
}

/// Sleeps only where that is worth a system call.
fn pause_until(at: Instant) {
    if let Some(left) = at.checked_duration_since(Instant::now()).filter(|left| *left > Duration::from_micros(100)) {
        std::thread::sleep(left);
    }
}

const WATCHED: u32 = 20;
/// A city's drivers; above that each sends more often.
const OTHERS_MAX: u32 = 5_000;
/// A dot is shown anew when it has moved 20 m.
const WATCHED_M_S: f64 = 25.0;
const OTHERS_M_S: f64 = 10.0;
const WARM_UP: Duration = Duration::from_secs(5);
/// Far longer than anything that still counts as shown.
const SETTLE: Duration = Duration::from_secs(2);
