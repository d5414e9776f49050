//! The real engines, from the environment that `./x bench maps` makes (or the one named by `WAYFIX_ENGINES`, a folder
//! with `bin/python` that has `osrm-bindings` and `pyvalhalla`), each served by its own HTTP server on Monaco. Without
//! them, or without the extract, these checks are skipped, said aloud.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use protocol::Position;
use protocol::record::Vehicle;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::conformance::{FROM, TO, is_way};
use super::way::metres;
use super::{
    OsrmSettings, RouteService, RouteServiceError, RouterConfig, RouterKind, RouterSettings, ValhallaSettings,
};

#[tokio::test]
async fn the_real_engines_keep_the_contract() {
    let Some(engines) = Engines::start() else { return };
    for (name, service) in engines.services() {
        let way = service.route(FROM, TO, Vehicle::Car).await.expect("a way across Monaco");
        is_way(&way);
        let (length_m, seconds) = (way[way.len() - 1].along_cm / 100, way[way.len() - 1].along_ms / 1_000);
        assert!(
            (1_500..2_000).contains(&length_m) && (80..240).contains(&seconds),
            "{name}: {length_m} m, {seconds} s"
        );

        let nowhere = Position::from_degrees(43.5, 7.5).expect("in the sea");
        let answer = service.route(FROM, nowhere, Vehicle::Car).await;
        assert!(matches!(answer, Err(RouteServiceError::NoWay { .. })), "{name}: {answer:?}");

        let mut random = SmallRng::seed_from_u64(7);
        let mut ways = 0;
        for _ in 0..200 {
            let mut place = || Position {
                lat_e7: random.random_range(437_270_000..437_480_000),
                lon_e7: random.random_range(74_120_000..74_380_000),
            };
            let (from, to) = (place(), place());
            match service.route(from, to, Vehicle::Car).await {
                Ok(way) => {
                    let end = way[way.len() - 1];
                    let straight_m = metres(way[0].position, end.position);
                    assert!(f64::from(end.along_cm) / 100.0 >= 0.99 * straight_m, "{name}: {from:?} {to:?} {end:?}");
                    assert!(way.windows(2).all(|pair| pair[0].along_ms <= pair[1].along_ms), "{name}");
                    ways += 1;
                }
                Err(error) => assert!(matches!(error, RouteServiceError::NoWay { .. }), "{name}: {error}"),
            }
        }
        assert!(ways > 100, "{name}: {ways} ways");
        println!("{name}: {ways} of 200 ways");
    }
}

/// Both servers, until it is dropped.
struct Engines {
    script: Child,
    osrm: String,
    valhalla: String,
}

impl Engines {
    fn start() -> Option<Engines> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
        let named = std::env::var_os("WAYFIX_ENGINES").map(PathBuf::from);
        let python = named.unwrap_or_else(|| root.join("target/bench/peers")).join("bin/python");
        let data = std::env::var_os("WAYFIX_DATA").map_or_else(|| root.join("../shared/data"), PathBuf::from);
        let extract = data.join("maps/monaco.osm.pbf");
        let has_engines = Command::new(&python).args(["-c", "import osrm, valhalla"]).stderr(Stdio::null()).status();
        if !has_engines.is_ok_and(|status| status.success()) || !extract.exists() {
            println!(
                "SKIPPED: the real engines need {} with osrm-bindings and pyvalhalla, and {}",
                python.display(),
                extract.display()
            );
            return None;
        }
        let work = tempfile::tempdir().expect("a folder").keep();
        let script = root.join("backends/src/route_service/fixtures/engines.py");
        let mut child = Command::new(python)
            .args([&script, &extract, &work])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("Python starts");
        let mut said = String::new();
        let stdout = child.stdout.take().expect("piped");
        BufReader::new(stdout).read_line(&mut said).expect("it says where they are");
        let mut ports = said.split_whitespace();
        let mut address = || format!("http://127.0.0.1:{}", ports.next().expect("a port each"));
        Some(Engines { osrm: address(), valhalla: address(), script: child })
    }

    fn services(&self) -> [(&'static str, Arc<dyn RouteService>); 2] {
        let open = |settings: RouterSettings| {
            let config = RouterConfig::try_from(settings).expect("good settings");
            super::open(&config).expect("a client").expect("not the embedded one")
        };
        let base = || RouterSettings { timeout_ms: 10_000, ..RouterSettings::default() };
        let osrm = OsrmSettings { car: format!("{}/route/v1/driving", self.osrm), ..OsrmSettings::default() };
        let valhalla = ValhallaSettings { url: self.valhalla.clone(), ..ValhallaSettings::default() };
        [
            ("OSRM", open(RouterSettings { kind: RouterKind::Osrm, osrm, ..base() })),
            ("Valhalla", open(RouterSettings { kind: RouterKind::Valhalla, valhalla, ..base() })),
        ]
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        // The script ends both servers and removes its folder when nobody holds its input any more.
        drop(self.script.stdin.take());
        let _ = self.script.wait();
    }
}
