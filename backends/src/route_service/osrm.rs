//! OSRM's `route` service. Times and lengths are those of its annotations, from point to point, scaled to the route's
//! own: annotations leave out what turns cost.

use async_trait::async_trait;
use protocol::Position;
use protocol::record::{PlannedPoint, Vehicle};
use reqwest::Url;
use serde::Deserialize;

use super::http::{Answer, Http, said};
use super::settings::{OsrmConfig, vehicle_number};
use super::way::{Line, decode, malformed};
use super::{END_OFF_M_MAX, RouteService, RouteServiceError};

pub struct Osrm {
    config: OsrmConfig,
    http: Http,
}

impl Osrm {
    pub fn open(config: OsrmConfig) -> Result<Osrm, RouteServiceError> {
        Ok(Osrm { http: Http::new(config.timeout)?, config })
    }
}

#[async_trait]
impl RouteService for Osrm {
    async fn route(
        &self,
        from: Position,
        to: Position,
        vehicle: Vehicle,
    ) -> Result<Vec<PlannedPoint>, RouteServiceError> {
        let profile = self.config.profiles[vehicle_number(vehicle)].as_ref();
        let profile = profile.ok_or(RouteServiceError::NoProfile { vehicle })?;
        let url = question(profile, from, to)?;
        let answer = self.http.ask(|client| client.get(url.clone())).await?;
        read(&answer, from, to)
    }
}

fn question(profile: &Url, from: Position, to: Position) -> Result<Url, RouteServiceError> {
    let mut url = profile.clone();
    let ends = format!("{:.7},{:.7};{:.7},{:.7}", from.lon(), from.lat(), to.lon(), to.lat());
    let radius = format!("{END_OFF_M_MAX:.0};{END_OFF_M_MAX:.0}");
    let refused = |()| RouteServiceError::Refused { reason: "its address takes no path".to_owned() };
    url.path_segments_mut().map_err(refused)?.push(&ends);
    url.query_pairs_mut()
        .append_pair("overview", "full")
        .append_pair("geometries", "polyline6")
        .append_pair("annotations", "duration,distance")
        .append_pair("steps", "false")
        .append_pair("alternatives", "false")
        .append_pair("radiuses", &radius);
    Ok(url)
}

fn read(answer: &Answer, from: Position, to: Position) -> Result<Vec<PlannedPoint>, RouteServiceError> {
    let body: Body = serde_json::from_slice(&answer.body).map_err(|error| malformed(&error.to_string()))?;
    let reason = || said(&format!("{} {}", body.code, body.message.as_deref().unwrap_or_default()));
    match body.code.as_str() {
        "Ok" if answer.is_success => {}
        "NoRoute" | "NoSegment" => return Err(RouteServiceError::NoWay { reason: reason() }),
        _ => return Err(RouteServiceError::Refused { reason: reason() }),
    }
    let route = body.routes.into_iter().next().ok_or_else(|| malformed("no route"))?;
    let [leg] = <[Leg; 1]>::try_from(route.legs).map_err(|legs| malformed(&format!("{} legs", legs.len())))?;
    let line = Line {
        points: decode(&route.geometry)?,
        hops_m: leg.annotation.distance,
        hops_s: leg.annotation.duration,
        length_m: route.distance,
        seconds: route.duration,
    };
    line.to_way(from, to)
}

#[derive(Deserialize)]
struct Body {
    code: String,
    message: Option<String>,
    #[serde(default)]
    routes: Vec<Route>,
}

#[derive(Deserialize)]
struct Route {
    geometry: String,
    distance: f64,
    duration: f64,
    legs: Vec<Leg>,
}

#[derive(Deserialize)]
struct Leg {
    annotation: Annotation,
}

#[derive(Deserialize)]
struct Annotation {
    distance: Vec<f64>,
    duration: Vec<f64>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::super::conformance::{Engine, FROM, TO, put, suite};
    use super::super::{OsrmSettings, RouterConfig, RouterKind, RouterSettings};
    use super::*;

    #[tokio::test]
    async fn osrm_keeps_the_contract() {
        let spoil: Vec<fn(&mut Value)> = vec![
            |body| put(body, "/routes", json!([])),
            |body| put(body, "/routes/0/legs", json!([])),
            |body| put(body, "/routes/0/legs/0/annotation", Value::Null),
            |body| put(body, "/routes/0/legs/0/annotation/distance", json!([1.0])),
            |body| put(body, "/routes/0/legs/0/annotation/duration/3", json!("NaN")),
            |body| put(body, "/routes/0/legs/0/annotation/duration/3", json!(-0.5)),
            |body| put(body, "/routes/0/duration", Value::Null),
            |body| put(body, "/routes/0/duration", json!(-130.6)),
            |body| put(body, "/routes/0/duration", json!(0.1)),
            |body| put(body, "/routes/0/distance", json!(1e300)),
        ];
        let engine = Engine {
            open,
            read,
            route: include_str!("fixtures/osrm_route.json"),
            length_m: 1_710.5,
            seconds: 130.6,
            no_way: include_str!("fixtures/osrm_no_segment.json"),
            refused: include_str!("fixtures/osrm_refused.json"),
            line: "/routes/0/geometry",
            spoil,
        };

        suite(&engine).await;
    }

    #[test]
    fn questions_are_as_the_engine_takes_them() {
        let profile = Url::parse("http://127.0.0.1:5000/route/v1/driving").unwrap();

        let url = question(&profile, FROM, TO).unwrap();

        assert_eq!(url.path(), "/route/v1/driving/7.4174000,43.7318000;7.4299000,43.7406000");
        let asked: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        assert!(asked.contains(&("geometries".to_owned(), "polyline6".to_owned())), "{asked:?}");
    }

    fn open(address: &str, timeout: Duration) -> Box<dyn RouteService> {
        let osrm = OsrmSettings { car: format!("http://{address}/route/v1/driving"), ..OsrmSettings::default() };
        let timeout_ms = timeout.as_millis() as u32;
        let settings = RouterSettings { kind: RouterKind::Osrm, osrm, timeout_ms, ..RouterSettings::default() };
        let Ok(RouterConfig::Osrm(config)) = RouterConfig::try_from(settings) else { panic!("settings") };
        Box::new(Osrm::open(config).unwrap())
    }
}
