//! A door of one's own: an edge, embedded, that takes what the OwnTracks app posts and answers once it is durable.
//!
//!     cargo run --example add_a_door -- data 127.0.0.1:8083
//!
//! It prints the address to enter in OwnTracks (mode HTTP) and a credential for driver 1, to be entered as its password.
//! The log in `data` is then what the processor reads. A fleet gives the edge its own log and control instead.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::body::Body;
use axum::extract::State;
use axum::http::header::{AUTHORIZATION, RETRY_AFTER};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use backends::control::{ControlReader, ControlWriter, RegionKey, credential};
use backends::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use daemon::admin::Readiness;
use daemon::serve::{Listener, ServeLimits, read_body, serve};
use daemon::{Clock, Drain, Meter, ProcessContext};
use edge::http::DoorState;
use edge::{EdgeParts, EdgeSettings, NotTaken};
use protocol::record::Door;
use protocol::{DeviceKey, DeviceNumber, DriverId, Fix, MeasuredTime, Position, TenantId, Time};
use serde::Deserialize;
use serde_json::{Value, json};

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [data, listen] = &arguments[..] else { anyhow::bail!("usage: add_a_door FOLDER ADDRESS:PORT") };
    let (data, clock, drain) = (PathBuf::from(data), Clock::system(), Drain::default());
    std::fs::create_dir_all(&data)?;

    let log = Arc::new(EmbeddedLog::open(data.join("log"), EmbeddedLogConfig::default()).context("open the log")?);
    let region_key = RegionKey::load_or_create(&data.join("region.key"))?;
    let writer = ControlWriter::new(log.clone(), region_key.clone());
    writer.until_keys(clock, drain.token()).await?;
    writer.start_rotation(&drain, clock);
    let control = ControlReader::start(log.clone(), region_key, &drain, clock);
    control.until_current().await;

    let settings = EdgeSettings { udp_listen: "127.0.0.1:0".parse()?, ..EdgeSettings::default() };
    let (meter, readiness) = (Meter::discard(), Readiness::default());
    let context = ProcessContext { clock, meter, readiness, drain: drain.clone() };
    let parts = EdgeParts { log: log.clone(), control: control.clone() };
    let edge = edge::start(settings.check(&data.join("edge"))?, parts, &context).await?;

    // The door stops before the edge, so that what it has taken is still answered.
    let doors = drain.part();
    let router = Router::new().route("/pub", post(take)).with_state(edge.door);
    let listener = Listener::bind(listen.parse()?, None).await?;
    println!("http://{}/pub", listener.local_addr()?);
    let device = DeviceKey { tenant: TenantId(1), driver: DriverId(1), device: DeviceNumber(1) };
    println!("{}", credential::issue(device, &control.snapshot().token_keys)?);
    serve("own tracks door", listener, router, ServeLimits::default(), &context.meter, &doors);

    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        () = drain.failed().cancelled() => {}
    }
    let has_ended = doors.stop(GRACE).await & drain.stop(GRACE).await;
    tokio::task::spawn_blocking(move || log.close()).await?;
    ensure!(has_ended && drain.failure().is_none(), "stopped before all was done: {:?}", drain.failure());
    Ok(())
}

/// What OwnTracks posts; it posts other things than locations too, which are answered and left.
#[derive(Deserialize)]
struct Posted {
    #[serde(rename = "_type")]
    kind: String,
    lat: Option<f64>,
    lon: Option<f64>,
    /// Unix seconds.
    tst: Option<i64>,
    /// Metres.
    acc: Option<f64>,
}

impl Posted {
    fn to_fix(&self) -> Option<Fix> {
        let position = Position::from_degrees(self.lat?, self.lon?)?;
        let measured = MeasuredTime::from_time(Time::from_secs(self.tst?));
        Some(Fix { accuracy_m: self.acc.map(|metres| metres as _), ..Fix::at(measured, position) })
    }
}

/// 200 lets the app forget the location, as does 400, which it could only repeat; all else makes it try again.
async fn take(State(door): State<DoorState>, headers: HeaderMap, body: Body) -> Response {
    let Some(device) = password(&headers).and_then(|password| door.check_credential(&password).ok()) else {
        return StatusCode::UNAUTHORIZED.into_response();
    };
    let body = match read_body(body, BODY_BYTES_MAX).await {
        Ok(body) => body,
        Err(problem) => return problem.into_response(),
    };
    let Ok(posted) = serde_json::from_slice::<Posted>(&body) else { return StatusCode::BAD_REQUEST.into_response() };
    if posted.kind != "location" {
        return Json(json!([])).into_response();
    }
    let Some(fix) = posted.to_fix() else { return StatusCode::BAD_REQUEST.into_response() };
    match door.submit(device, Door::OwnTracks, vec![fix]).await {
        // It is in the log, a rejected one with the reason.
        Ok(rejected) => {
            let say = |reason: &str| json!({"_type": "cmd", "action": "rejected", "reason": reason});
            Json(rejected.iter().map(|fix| say(fix.reason.name())).collect::<Value>()).into_response()
        }
        Err(NotTaken::Limited { wait }) => {
            (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, (wait.as_secs() + 1).to_string())]).into_response()
        }
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}

/// The password of HTTP's basic authentication; the name beside it proves nothing.
fn password(headers: &HeaderMap) -> Option<String> {
    let encoded = headers.get(AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
    let decoded = String::from_utf8(STANDARD.decode(encoded).ok()?).ok()?;
    decoded.split_once(':').map(|(_, password)| password.to_string())
}

const GRACE: Duration = Duration::from_secs(10);
const BODY_BYTES_MAX: usize = 4 << 10;
