//! `wayfix maps fetch` against mirrors that behave as real ones do on bad days: they break off, change the file in
//! between, send wrong checksums, know no ranges, are slow, or are not there.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use sha2::{Digest, Sha256};
use tokio::process::Command;

use crate::harness::WAYFIX;

/// What the mirror has, and how it is today.
#[derive(Clone, Default)]
struct Conduct {
    body: Bytes,
    version: u32,
    /// The connection breaks after so many bytes of an answer, once for each entry.
    breaks: Vec<usize>,
    checksum: Option<String>,
    has_no_ranges: bool,
    has_no_version: bool,
    /// Sends parts of whatever it has, though asked only to if nothing changed.
    ignores_conditions: bool,
    pause: Duration,
}

/// A request for the file: its range header, and how many bytes were sent.
type Asked = (Option<String>, usize);

#[derive(Clone, Default)]
struct Mirror {
    conduct: Arc<Mutex<Conduct>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Mirror {
    /// With this file as europe/fixland, and its checksum.
    async fn start(body: &[u8]) -> Result<(Mirror, String)> {
        let mirror = Mirror::default();
        mirror.set(|conduct| conduct.serve(body));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/osm", listener.local_addr()?);
        let router = Router::new().fallback(answer).with_state(mirror.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        Ok((mirror, url))
    }

    fn set(&self, change: impl FnOnce(&mut Conduct)) {
        change(&mut self.conduct.lock().unwrap());
    }

    fn take_asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

impl Conduct {
    fn serve(&mut self, body: &[u8]) {
        self.body = Bytes::copy_from_slice(body);
        self.version += 1;
        let hex: String = Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect();
        self.checksum = Some(format!("{hex}  fixland-latest.osm.pbf\n"));
    }
}

async fn answer(State(mirror): State<Mirror>, method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let conduct = mirror.conduct.lock().unwrap().clone();
    match uri.path() {
        "/osm/europe/fixland-latest.osm.pbf" if method == Method::HEAD => StatusCode::OK.into_response(),
        "/osm/europe/fixland-latest.osm.pbf" => send(&mirror, &conduct, &headers),
        "/osm/europe/fixland-latest.osm.pbf.sha256" => {
            conduct.checksum.map_or(StatusCode::NOT_FOUND.into_response(), IntoResponse::into_response)
        }
        "/osm/index-v1-nogeom.json" => INDEX.into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn send(mirror: &Mirror, conduct: &Conduct, headers: &HeaderMap) -> Response {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let etag = format!("\"v{}\"", conduct.version);
    let range = text("range");
    let holds = conduct.ignores_conditions || text("if-range").is_none_or(|version| version == etag);
    let from = range.as_deref().filter(|_| holds && !conduct.has_no_ranges);
    let from = from.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let total = conduct.body.len();
    let mut response = Response::builder();
    if !conduct.has_no_version {
        response = response.header("etag", &etag);
    }
    if from.is_some_and(|from| from >= total) {
        mirror.asked.lock().unwrap().push((range, 0));
        let response = response.status(StatusCode::RANGE_NOT_SATISFIABLE);
        return response.header("content-range", format!("bytes */{total}")).body(Body::empty()).unwrap();
    }
    let rest = conduct.body.slice(from.unwrap_or(0)..);
    let breaks_after = mirror.conduct.lock().unwrap().breaks.pop();
    let sent = breaks_after.map_or(rest.len(), |after| after.min(rest.len()));
    mirror.asked.lock().unwrap().push((range, sent));
    if let Some(from) = from {
        response = response.status(StatusCode::PARTIAL_CONTENT);
        response = response.header("content-range", format!("bytes {from}-{}/{total}", total - 1));
    }
    let pieces: Vec<Bytes> = rest.slice(..sent).chunks(PIECE).map(Bytes::copy_from_slice).collect();
    let broken = breaks_after.map(|_| Err(std::io::Error::other("the cable was cut")));
    let pause = conduct.pause;
    let stream = stream::unfold(pieces.into_iter().map(Ok).chain(broken), move |mut left| async move {
        tokio::time::sleep(pause).await;
        left.next().map(|piece| (piece, left))
    });
    response.header("content-length", rest.len()).body(Body::from_stream(stream)).unwrap()
}

/// Bytes that a compressor or a wrong offset would change.
fn extract(seed: u8) -> Vec<u8> {
    (0..300_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ seed).collect()
}

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        Place { folder: tempfile::tempdir().unwrap() }
    }

    fn output(&self) -> PathBuf {
        self.folder.path().join("fixland.osm.pbf")
    }

    fn part(&self) -> PathBuf {
        self.folder.path().join("fixland.osm.pbf.part")
    }

    fn files(&self) -> Vec<String> {
        let names = std::fs::read_dir(self.folder.path()).unwrap();
        let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// In this folder, so that the output's name is the region's.
    async fn fetch(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(WAYFIX);
        command.args(["maps", "fetch"]).args(arguments).current_dir(self.folder.path());
        for name in ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"] {
            command.env_remove(name);
        }
        command.output().await.expect("the binary runs")
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &*String::from_utf8_lossy(&output.stdout)
}

#[tokio::test]
async fn an_extract_is_fetched_checked_and_named_after_its_region() {
    let (body, place) = (extract(1), Place::new());
    let (_, url) = Mirror::start(&body).await.unwrap();

    let fetched = place.fetch(&["europe/fixland", "--mirror", &url]).await;

    assert!(fetched.status.success(), "{}", said(&fetched));
    assert!(std::fs::read(place.output()).unwrap() == body);
    assert!(said(&fetched).contains("wayfix maps import fixland.osm.pbf -o fixland.wfm"), "{}", said(&fetched));
    assert_eq!(place.files(), ["fixland.osm.pbf"]);
}

#[tokio::test]
async fn a_second_call_asks_only_for_the_rest() {
    let (body, place) = (extract(1), Place::new());
    let (mirror, url) = Mirror::start(&body).await.unwrap();
    mirror.set(|conduct| conduct.breaks = vec![100_000]);
    let arguments = ["europe/fixland", "--mirror", &url, "--retries", "0"];

    let broken = place.fetch(&arguments).await;
    assert_eq!(broken.status.code(), Some(1));
    assert!(said(&broken).contains("goes on where it stopped"), "{}", said(&broken));
    assert_eq!(place.files(), ["fixland.osm.pbf.part", "fixland.osm.pbf.part.json"]);
    let here = std::fs::metadata(place.part()).unwrap().len() as usize;
    assert!((1..=100_000).contains(&here), "{here}");
    mirror.take_asked();

    let fetched = place.fetch(&arguments).await;

    assert!(fetched.status.success(), "{}", said(&fetched));
    assert_eq!(mirror.take_asked(), [(Some(format!("bytes={here}-")), body.len() - here)]);
    assert!(std::fs::read(place.output()).unwrap() == body);
    assert_eq!(place.files(), ["fixland.osm.pbf"]);
}

#[tokio::test]
async fn a_connection_that_breaks_is_made_again_for_the_rest() {
    let (body, place) = (extract(1), Place::new());
    let (mirror, url) = Mirror::start(&body).await.unwrap();
    mirror.set(|conduct| conduct.breaks = vec![50_000, 50_000]);

    let fetched = place.fetch(&["europe/fixland", "--mirror", &url]).await;

    assert!(fetched.status.success(), "{}", said(&fetched));
    assert!(std::fs::read(place.output()).unwrap() == body);
    let asked = mirror.take_asked();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(asked[1..].iter().all(|(range, _)| range.is_some()), "{asked:?}");
}

#[tokio::test]
async fn a_file_that_changed_at_the_mirror_begins_anew_and_never_mixes() {
    // The published checksum tells; or only the version; or the mirror sends the wrong part all the same.
    for (has_no_version, ignores_conditions) in [(false, false), (true, false), (false, true)] {
        let (old, new, place) = (extract(1), extract(2), Place::new());
        let (mirror, url) = Mirror::start(&old).await.unwrap();
        mirror.set(|conduct| {
            conduct.breaks = vec![100_000];
            conduct.has_no_version = has_no_version;
            conduct.ignores_conditions = ignores_conditions;
        });
        let arguments = ["europe/fixland", "--mirror", &url, "--retries", "0"];
        assert_eq!(place.fetch(&arguments).await.status.code(), Some(1));
        mirror.set(|conduct| conduct.serve(&new));

        let fetched = place.fetch(&arguments).await;

        assert!(fetched.status.success(), "{}", said(&fetched));
        assert!(said(&fetched).contains("began anew"), "{}", said(&fetched));
        assert!(std::fs::read(place.output()).unwrap() == new, "{has_no_version} {ignores_conditions}");
    }
}

#[tokio::test]
async fn without_a_checksum_the_version_alone_keeps_two_files_apart() {
    for ignores_conditions in [false, true] {
        let (old, new, place) = (extract(1), extract(2), Place::new());
        let (mirror, url) = Mirror::start(&old).await.unwrap();
        mirror.set(|conduct| {
            conduct.breaks = vec![100_000];
            conduct.ignores_conditions = ignores_conditions;
            conduct.checksum = None;
        });
        let arguments = ["europe/fixland", "--mirror", &url, "--retries", "0", "--unchecked"];
        assert_eq!(place.fetch(&arguments).await.status.code(), Some(1));
        mirror.set(|conduct| {
            conduct.serve(&new);
            conduct.checksum = None;
        });
        mirror.take_asked();

        let fetched = place.fetch(&arguments).await;

        assert!(fetched.status.success(), "{}", said(&fetched));
        assert!(mirror.take_asked()[0].0.is_some(), "the rest was asked for, under a condition");
        assert!(std::fs::read(place.output()).unwrap() == new, "{ignores_conditions}");
    }
}

#[tokio::test]
async fn a_wrong_checksum_leaves_nothing_that_could_be_taken_for_a_map() {
    let (body, place) = (extract(1), Place::new());
    let (mirror, url) = Mirror::start(&body).await.unwrap();
    mirror.set(|conduct| conduct.checksum = Some(format!("{:032x}  fixland-latest.osm.pbf\n", 7)));

    let fetched = place.fetch(&["europe/fixland", "--mirror", &url]).await;

    assert_eq!(fetched.status.code(), Some(1));
    assert!(said(&fetched).contains("md5 00000000000000000000000000000007"), "{}", said(&fetched));
    assert!(place.files().is_empty(), "{:?}", place.files());
}

#[tokio::test]
async fn a_mirror_without_a_checksum_is_refused_unless_told_otherwise() {
    let (body, place) = (extract(1), Place::new());
    let (mirror, url) = Mirror::start(&body).await.unwrap();
    mirror.set(|conduct| conduct.checksum = None);

    let refused = place.fetch(&["europe/fixland", "--mirror", &url]).await;
    let taken = place.fetch(&["europe/fixland", "--mirror", &url, "--unchecked"]).await;

    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("--unchecked"), "{}", said(&refused));
    assert!(taken.status.success() && said(&taken).contains("not checked"), "{}", said(&taken));
    assert!(std::fs::read(place.output()).unwrap() == body);
}

#[tokio::test]
async fn a_mirror_that_knows_no_ranges_sends_all_again() {
    let (body, place) = (extract(1), Place::new());
    let (mirror, url) = Mirror::start(&body).await.unwrap();
    mirror.set(|conduct| {
        conduct.breaks = vec![100_000];
        conduct.has_no_ranges = true;
    });

    let fetched = place.fetch(&["europe/fixland", "--mirror", &url]).await;

    assert!(fetched.status.success(), "{}", said(&fetched));
    assert_eq!(mirror.take_asked().last().unwrap().1, body.len());
    assert!(std::fs::read(place.output()).unwrap() == body);
}

#[tokio::test]
async fn a_part_that_was_whole_already_is_not_sent_again() {
    let (body, place) = (extract(1), Place::new());
    let (mirror, url) = Mirror::start(&body).await.unwrap();
    mirror.set(|conduct| conduct.breaks = vec![100_000]);
    let arguments = ["europe/fixland", "--mirror", &url, "--retries", "0"];
    assert_eq!(place.fetch(&arguments).await.status.code(), Some(1));
    // As if it had been killed after the last byte; the mirror then answers 416.
    std::fs::write(place.part(), &body).unwrap();
    mirror.take_asked();

    let fetched = place.fetch(&arguments).await;

    assert!(fetched.status.success(), "{}", said(&fetched));
    assert_eq!(mirror.take_asked(), [(Some(format!("bytes={}-", body.len())), 0)]);
    assert!(std::fs::read(place.output()).unwrap() == body);
}

#[tokio::test]
async fn a_part_longer_than_the_file_begins_anew() {
    let (body, place) = (extract(1), Place::new());
    let (mirror, url) = Mirror::start(&body).await.unwrap();
    mirror.set(|conduct| conduct.breaks = vec![100_000]);
    let arguments = ["europe/fixland", "--mirror", &url, "--retries", "0"];
    assert_eq!(place.fetch(&arguments).await.status.code(), Some(1));
    std::fs::write(place.part(), [&body[..], b"more"].concat()).unwrap();

    let fetched = place.fetch(&arguments).await;

    assert!(fetched.status.success(), "{}", said(&fetched));
    assert!(std::fs::read(place.output()).unwrap() == body);
}

#[tokio::test]
async fn a_slow_mirror_is_waited_for() {
    let (body, place) = (extract(1), Place::new());
    let (mirror, url) = Mirror::start(&body).await.unwrap();
    mirror.set(|conduct| conduct.pause = Duration::from_millis(100));

    let fetched = place.fetch(&["europe/fixland", "--mirror", &url]).await;

    assert!(fetched.status.success(), "{}", said(&fetched));
    assert!(std::fs::read(place.output()).unwrap() == body);
}

#[tokio::test]
async fn what_is_there_already_is_not_fetched_again() {
    let (body, place) = (extract(1), Place::new());
    let (mirror, url) = Mirror::start(&body).await.unwrap();
    std::fs::write(place.output(), &body).unwrap();

    let fetched = place.fetch(&["europe/fixland", "--mirror", &url]).await;

    assert!(fetched.status.success() && said(&fetched).contains("unchanged"), "{}", said(&fetched));
    assert!(mirror.take_asked().is_empty());
}

#[tokio::test]
async fn a_bare_name_is_found_and_a_misspelt_one_suggested() {
    let (body, place) = (extract(1), Place::new());
    let (_, url) = Mirror::start(&body).await.unwrap();

    let bare = place.fetch(&["fixland", "--mirror", &url]).await;
    let misspelt = place.fetch(&["europe/fixlamd", "--mirror", &url]).await;
    let strange = place.fetch(&["../../etc/passwd", "--mirror", &url]).await;

    assert!(bare.status.success(), "{}", said(&bare));
    assert!(said(&bare).contains("--country PT"), "{}", said(&bare));
    assert_eq!(misspelt.status.code(), Some(1));
    assert!(said(&misspelt).contains("did you mean europe/fixland"), "{}", said(&misspelt));
    assert!(!said(&misspelt).contains("atlantis"), "{}", said(&misspelt));
    assert!(said(&strange).contains("cannot be a region's name"), "{}", said(&strange));
}

#[tokio::test]
async fn a_mirror_that_is_not_there_is_named() {
    let place = Place::new();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();

    let fetched = place.fetch(&["europe/fixland", "--mirror", &format!("http://{closed}")]).await;

    assert_eq!(fetched.status.code(), Some(1));
    assert!(said(&fetched).contains(&format!("{closed}/europe/fixland-latest.osm.pbf")), "{}", said(&fetched));
    assert!(said(&fetched).contains("cannot be reached"), "{}", said(&fetched));
    assert!(place.files().is_empty());
}

#[tokio::test]
async fn a_full_disk_is_called_one() {
    let (body, place) = (extract(1), Place::new());
    let (_, url) = Mirror::start(&body).await.unwrap();
    std::os::unix::fs::symlink(Path::new("/dev/full"), place.part()).unwrap();

    let fetched = place.fetch(&["europe/fixland", "--mirror", &url]).await;

    assert_eq!(fetched.status.code(), Some(1));
    assert!(said(&fetched).contains("no space is left"), "{}", said(&fetched));
    assert!(!place.output().exists());
}

#[tokio::test]
async fn the_mirror_is_a_setting() {
    let (body, place) = (extract(1), Place::new());
    let (mirror, url) = Mirror::start(&body).await.unwrap();
    let file = place.folder.path().join("wayfix.toml");
    std::fs::write(&file, format!("[maps]\nmirror = {url:?}\n")).unwrap();

    let by_file = place.fetch(&["europe/fixland", "-o", "a.osm.pbf", "--config", "wayfix.toml"]).await;
    let by_variable = Command::new(WAYFIX)
        .args(["maps", "fetch", "europe/fixland", "-o", "b.osm.pbf"])
        .current_dir(place.folder.path())
        .env("WAYFIX__MAPS__MIRROR", &url)
        .output()
        .await
        .unwrap();
    let nonsense = place.fetch(&["europe/fixland", "--mirror", "ftp://example.org"]).await;

    assert!(by_file.status.success(), "{}", said(&by_file));
    assert!(by_variable.status.success(), "{}", said(&by_variable));
    assert_eq!(mirror.take_asked().len(), 2);
    assert_eq!(nonsense.status.code(), Some(64), "{}", said(&nonsense));
}

const PIECE: usize = 20_000;
const INDEX: &str = r#"{"type": "FeatureCollection", "features": [
    {"type": "Feature", "properties": {"id": "fixland", "name": "Fixland", "iso3166-1:alpha2": ["PT"],
        "urls": {"pbf": "https://download.example.org/europe/fixland-latest.osm.pbf"}}},
    {"type": "Feature", "properties": {"id": "atlantis", "name": "Atlantis",
        "urls": {"pbf": "https://download.example.org/ocean/atlantis-latest.osm.pbf"}}}]}"#;
