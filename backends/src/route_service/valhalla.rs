//! Valhalla's `route` service. Its manoeuvres say how long each stretch of the shape takes; within one, time runs evenly
//! with the distance. That is one question; times point by point would need a second (`trace_attributes`) for little.

use async_trait::async_trait;
use protocol::Position;
use protocol::record::{PlannedPoint, Vehicle};
use serde::{Deserialize, Serialize};

use super::http::{Answer, Http, said};
use super::settings::{ValhallaConfig, vehicle_number};
use super::way::{Line, decode, malformed, metres};
use super::{RouteService, RouteServiceError};

pub struct Valhalla {
    config: ValhallaConfig,
    http: Http,
}

impl Valhalla {
    pub fn open(config: ValhallaConfig) -> Result<Valhalla, RouteServiceError> {
        Ok(Valhalla { http: Http::new(config.timeout)?, config })
    }
}

#[async_trait]
impl RouteService for Valhalla {
    async fn route(
        &self,
        from: Position,
        to: Position,
        vehicle: Vehicle,
    ) -> Result<Vec<PlannedPoint>, RouteServiceError> {
        let costing = self.config.costings[vehicle_number(vehicle)].as_deref();
        let costing = costing.ok_or(RouteServiceError::NoProfile { vehicle })?;
        let place = |at: Position| Place { lat: at.lat(), lon: at.lon() };
        let locations = [place(from), place(to)];
        let question = Question { locations, costing, directions_type: "maneuvers", units: "kilometers" };
        let answer = self.http.ask(|client| client.post(self.config.route.clone()).json(&question)).await?;
        read(&answer, from, to)
    }
}

fn read(answer: &Answer, from: Position, to: Position) -> Result<Vec<PlannedPoint>, RouteServiceError> {
    if !answer.is_success {
        let refusal: Refusal = serde_json::from_slice(&answer.body).map_err(|error| malformed(&error.to_string()))?;
        let reason = said(&format!("{} {}", refusal.error_code, refusal.error));
        return Err(match refusal.error_code {
            NO_WAY_CODES_FIRST..=NO_WAY_CODES_LAST | NO_PATH_CODES_FIRST..=NO_PATH_CODES_LAST => {
                RouteServiceError::NoWay { reason }
            }
            _ => RouteServiceError::Refused { reason },
        });
    }
    let body: Body = serde_json::from_slice(&answer.body).map_err(|error| malformed(&error.to_string()))?;
    if body.trip.units != "kilometers" {
        return Err(malformed("lengths in units that were not asked for"));
    }
    let [leg] = <[Leg; 1]>::try_from(body.trip.legs).map_err(|legs| malformed(&format!("{} legs", legs.len())))?;
    let points = decode(&leg.shape)?;
    let hops_m: Vec<f64> = points.windows(2).map(|pair| metres(pair[0], pair[1])).collect();
    let hops_s = shared(&leg.maneuvers, &hops_m)?;
    let Summary { length, time } = leg.summary;
    Line { points, hops_m, hops_s, length_m: length * 1_000.0, seconds: time }.to_way(from, to)
}

/// Each manoeuvre's time shared among its hops by their lengths.
fn shared(maneuvers: &[Maneuver], hops_m: &[f64]) -> Result<Vec<f64>, RouteServiceError> {
    let mut hops_s = vec![0.0; hops_m.len()];
    let mut end_before = 0;
    for one in maneuvers {
        let is_next = one.begin_shape_index >= end_before && one.end_shape_index >= one.begin_shape_index;
        let stretch = one.begin_shape_index..one.end_shape_index;
        let Some(metres) = hops_m.get(stretch.clone()).filter(|_| is_next) else {
            return Err(malformed("a manoeuvre that does not lie on the shape"));
        };
        end_before = one.end_shape_index;
        let sum_m: f64 = metres.iter().sum();
        for (seconds, metres) in hops_s[stretch].iter_mut().zip(metres) {
            *seconds = if sum_m > 0.0 { one.time * metres / sum_m } else { 0.0 };
        }
    }
    Ok(hops_s)
}

#[derive(Serialize)]
struct Question<'a> {
    locations: [Place; 2],
    costing: &'a str,
    directions_type: &'a str,
    units: &'a str,
}

#[derive(Serialize)]
struct Place {
    lat: f64,
    lon: f64,
}

#[derive(Deserialize)]
struct Body {
    trip: Trip,
}

#[derive(Deserialize)]
struct Trip {
    units: String,
    legs: Vec<Leg>,
}

#[derive(Deserialize)]
struct Leg {
    shape: String,
    maneuvers: Vec<Maneuver>,
    summary: Summary,
}

#[derive(Deserialize)]
struct Maneuver {
    begin_shape_index: usize,
    end_shape_index: usize,
    time: f64,
}

#[derive(Deserialize)]
struct Summary {
    length: f64,
    time: f64,
}

#[derive(Deserialize)]
struct Refusal {
    error_code: u32,
    error: String,
}

/// "Locations are in unconnected regions", "No suitable edges near location".
const NO_WAY_CODES_FIRST: u32 = 170;
const NO_WAY_CODES_LAST: u32 = 171;
/// "No route found", "No path could be found for input".
const NO_PATH_CODES_FIRST: u32 = 441;
const NO_PATH_CODES_LAST: u32 = 442;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::super::conformance::{Engine, FROM, TO, put, suite};
    use super::super::{RouterConfig, RouterKind, RouterSettings, ValhallaSettings};
    use super::*;

    #[tokio::test]
    async fn valhalla_keeps_the_contract() {
        let spoil: Vec<fn(&mut Value)> = vec![
            |body| put(body, "/trip/legs", json!([])),
            |body| put(body, "/trip/units", json!("miles")),
            |body| put(body, "/trip/legs/0/maneuvers/2/end_shape_index", json!(99_999)),
            |body| put(body, "/trip/legs/0/maneuvers/2/begin_shape_index", json!(0)),
            |body| put(body, "/trip/legs/0/maneuvers/2/begin_shape_index", json!(-1)),
            |body| put(body, "/trip/legs/0/maneuvers/2/time", json!("NaN")),
            |body| put(body, "/trip/legs/0/maneuvers/2/time", json!(-3.0)),
            |body| put(body, "/trip/legs/0/summary/time", Value::Null),
            |body| put(body, "/trip/legs/0/summary/time", json!(0.001)),
            |body| put(body, "/trip/legs/0/summary/length", json!(-1.7)),
        ];
        let engine = Engine {
            open,
            read,
            route: include_str!("fixtures/valhalla_route.json"),
            length_m: 1_705.0,
            seconds: 116.738,
            no_way: include_str!("fixtures/valhalla_no_edges.json"),
            refused: include_str!("fixtures/valhalla_refused.json"),
            line: "/trip/legs/0/shape",
            spoil,
        };

        suite(&engine).await;
    }

    #[test]
    fn times_are_those_of_the_manoeuvres() {
        let body = include_str!("fixtures/valhalla_route.json");
        let recorded: Value = serde_json::from_str(body).unwrap();

        let way = read(&Answer { is_success: true, body: body.into() }, FROM, TO).unwrap();

        let mut seconds = 0.0;
        for one in recorded["trip"]["legs"][0]["maneuvers"].as_array().unwrap() {
            seconds += one["time"].as_f64().unwrap();
            let point = way[one["end_shape_index"].as_u64().unwrap() as usize];
            assert!((f64::from(point.along_ms) / 1_000.0 - seconds).abs() < 0.2, "{point:?} after {seconds} s");
        }
    }

    fn open(address: &str, timeout: Duration) -> Box<dyn RouteService> {
        let valhalla =
            ValhallaSettings { url: format!("http://{address}"), foot: String::new(), ..ValhallaSettings::default() };
        let timeout_ms = timeout.as_millis() as u32;
        let settings = RouterSettings { kind: RouterKind::Valhalla, valhalla, timeout_ms, ..RouterSettings::default() };
        let Ok(RouterConfig::Valhalla(config)) = RouterConfig::try_from(settings) else { panic!("settings") };
        Box::new(Valhalla::open(config).unwrap())
    }
}
