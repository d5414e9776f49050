//! Map tiles: drawn by whoever is handed in, off the sockets' threads, a few at a time, and kept in memory up to a
//! bound. The oldest kept goes first: tiles are asked for in bursts around one place.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::metrics::GatewayMetrics;

/// Draws tiles. Called on a blocking thread.
pub trait TileSource: Send + Sync + 'static {
    /// None: there is nothing in this tile.
    fn tile(&self, zoom: u8, x: u32, y: u32) -> Result<Option<Bytes>, String>;

    fn describe(&self) -> TileSet;
}

/// What TileJSON says of a map.
#[derive(Clone, PartialEq, Debug)]
pub struct TileSet {
    pub name: String,
    /// Changes when any tile does; letters, digits, `-` and `.` only.
    pub version: String,
    /// As its licence asks for.
    pub attribution: String,
    /// West, south, east, north.
    pub bounds: [f64; 4],
    pub zoom_min: u8,
    pub zoom_max: u8,
    pub layers: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct TileAddress {
    zoom: u8,
    x: u32,
    y: u32,
}

impl fmt::Display for TileAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.zoom, self.x, self.y)
    }
}

impl TileAddress {
    /// None: there is no such tile.
    pub fn parse(zoom: &str, x: &str, y_mvt: &str) -> Option<Self> {
        let zoom: u8 = zoom.parse().ok().filter(|zoom| *zoom <= ZOOM_MAX)?;
        let within = |text: &str| text.parse::<u32>().ok().filter(|n| *n < 1 << zoom);
        Some(TileAddress { zoom, x: within(x)?, y: within(y_mvt.strip_suffix(".mvt")?)? })
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum TileError {
    /// Too many are waiting to be drawn.
    Busy,
    Failed(String),
}

pub(crate) struct Tiles {
    shown: Mutex<Arc<Shown>>,
    bytes_max: usize,
    drawing: Arc<Semaphore>,
    metrics: Arc<GatewayMetrics>,
}

/// One version of the map, with the tiles of it that were drawn: so none of two versions meet.
pub(crate) struct Shown {
    source: Arc<dyn TileSource>,
    set: TileSet,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    tiles: HashMap<TileAddress, Option<Bytes>>,
    order: VecDeque<TileAddress>,
    bytes: usize,
    bytes_max: usize,
}

impl Shown {
    fn new(source: Arc<dyn TileSource>, bytes_max: usize) -> Arc<Self> {
        let kept = Mutex::new(Kept { bytes_max, ..Kept::default() });
        Arc::new(Shown { set: source.describe(), source, kept })
    }

    pub fn describe(&self) -> &TileSet {
        &self.set
    }

    pub fn version(&self) -> &str {
        &self.set.version
    }
}

impl Tiles {
    pub fn new(source: Arc<dyn TileSource>, bytes_max: usize, metrics: Arc<GatewayMetrics>) -> Self {
        let shown = Mutex::new(Shown::new(source, bytes_max));
        Tiles { shown, bytes_max, drawing: Arc::new(Semaphore::new(DRAWING_MAX)), metrics }
    }

    pub fn show(&self, source: Arc<dyn TileSource>) {
        *self.shown.lock() = Shown::new(source, self.bytes_max);
    }

    pub fn shown(&self) -> Arc<Shown> {
        self.shown.lock().clone()
    }

    /// What has begun to be drawn is drawn to its end and kept, and counts until then, whether anybody still waits or not.
    pub async fn tile(&self, shown: &Arc<Shown>, address: TileAddress) -> Result<Option<Bytes>, TileError> {
        if address.zoom > shown.set.zoom_max || address.zoom < shown.set.zoom_min {
            return Ok(None);
        }
        if let Some(tile) = self.kept(shown, address) {
            return Ok(tile);
        }
        let permit = tokio::time::timeout(DRAWING_WAIT, self.drawing.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = permit else { return Err(TileError::Busy) };
        // Whoever waited for the same tile before has drawn it.
        if let Some(tile) = self.kept(shown, address) {
            return Ok(tile);
        }
        let (shown, metrics) = (shown.clone(), self.metrics.clone());
        let drawing = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            let tile = shown.source.tile(address.zoom, address.x, address.y)?;
            metrics.tiles_drawn.increment(1);
            shown.kept.lock().keep(address, tile.clone());
            Ok(tile)
        });
        drawing.await.map_err(|error| TileError::Failed(error.to_string()))?.map_err(TileError::Failed)
    }

    fn kept(&self, shown: &Shown, address: TileAddress) -> Option<Option<Bytes>> {
        let tile = shown.kept.lock().tiles.get(&address).cloned();
        if tile.is_some() {
            self.metrics.tiles_kept.increment(1);
        }
        tile
    }
}

impl Kept {
    fn keep(&mut self, address: TileAddress, tile: Option<Bytes>) {
        let bytes = cost(&tile);
        if bytes > self.bytes_max || self.tiles.contains_key(&address) {
            return;
        }
        while self.bytes + bytes > self.bytes_max {
            let Some(oldest) = self.order.pop_front() else { break };
            if let Some(gone) = self.tiles.remove(&oldest) {
                self.bytes -= cost(&gone);
            }
        }
        self.bytes += bytes;
        self.order.push_back(address);
        self.tiles.insert(address, tile);
    }
}

fn cost(tile: &Option<Bytes>) -> usize {
    ENTRY_BYTES + tile.as_ref().map_or(0, Bytes::len)
}

const ZOOM_MAX: u8 = 22;
/// What a kept tile costs beside its bytes.
const ENTRY_BYTES: usize = 96;
/// Drawing is work for a core; customers' frames come first.
const DRAWING_MAX: usize = 2;
const DRAWING_WAIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

    use daemon::Meter;

    use super::*;

    struct Counted(Mutex<u32>);

    /// Draws until it is told to end.
    #[derive(Default)]
    struct Slow {
        now: AtomicU32,
        most: AtomicU32,
        may_end: AtomicBool,
    }

    impl TileSource for Slow {
        fn tile(&self, zoom: u8, x: u32, y: u32) -> Result<Option<Bytes>, String> {
            self.most.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            while !self.may_end.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(1));
            }
            self.now.fetch_sub(1, Ordering::SeqCst);
            Counted(Mutex::new(0)).tile(zoom, x, y)
        }

        fn describe(&self) -> TileSet {
            Counted(Mutex::new(0)).describe()
        }
    }

    impl TileSource for Counted {
        fn tile(&self, _zoom: u8, x: u32, _y: u32) -> Result<Option<Bytes>, String> {
            *self.0.lock() += 1;
            if x == 7 { Err("torn".to_string()) } else { Ok(Some(Bytes::from(vec![0; 100]))) }
        }

        fn describe(&self) -> TileSet {
            TileSet {
                name: String::new(),
                version: "1".into(),
                attribution: String::new(),
                bounds: [0.0; 4],
                zoom_min: 0,
                zoom_max: 14,
                layers: vec![],
            }
        }
    }

    #[tokio::test]
    async fn a_tile_is_drawn_once_and_no_more_are_kept_than_there_is_room_for() {
        let source = Arc::new(Counted(Mutex::new(0)));
        let metrics = Arc::new(GatewayMetrics::new(&Meter::discard()));
        let tiles = Tiles::new(source.clone(), 2 * (100 + ENTRY_BYTES), metrics);
        let at = |x: &str| TileAddress::parse("10", x, "1.mvt").unwrap();

        for x in ["1", "1", "2", "3", "3", "1"] {
            assert!(tiles.tile(&tiles.shown(), at(x)).await.unwrap().is_some());
        }

        assert_eq!(*source.0.lock(), 4);
        assert_eq!(tiles.tile(&tiles.shown(), at("7")).await, Err(TileError::Failed("torn".to_string())));
        assert!(tiles.shown().kept.lock().bytes <= 2 * (100 + ENTRY_BYTES));
    }

    #[tokio::test]
    async fn drawings_that_nobody_waits_for_any_more_are_counted_and_kept() {
        let source = Arc::new(Slow::default());
        let tiles = Tiles::new(source.clone(), 1 << 20, Arc::new(GatewayMetrics::new(&Meter::discard())));
        let shown = tiles.shown();
        let at = |x: u32| TileAddress::parse("10", &x.to_string(), "1.mvt").unwrap();

        for x in 1..=10 {
            let gone = tokio::time::timeout(Duration::from_millis(20), tiles.tile(&shown, at(x))).await;
            assert!(gone.is_err(), "nothing was drawn yet");
        }
        let most = source.most.load(Ordering::SeqCst);
        source.may_end.store(true, Ordering::SeqCst);

        assert_eq!(most as usize, DRAWING_MAX);
        let _all = tokio::time::timeout(DRAWING_WAIT, tiles.drawing.acquire_many(DRAWING_MAX as u32)).await.unwrap();
        assert!([1, 2].iter().all(|x| shown.kept.lock().tiles.contains_key(&at(*x))));
    }

    #[tokio::test]
    async fn another_map_shows_its_own_tiles_and_none_that_were_kept() {
        let [old, new] = [0, 0].map(|drawn| Arc::new(Counted(Mutex::new(drawn))));
        let tiles = Tiles::new(old.clone(), 1 << 20, Arc::new(GatewayMetrics::new(&Meter::discard())));
        let address = TileAddress::parse("10", "1", "1.mvt").unwrap();
        let asked_before = tiles.shown();
        assert!(tiles.tile(&asked_before, address).await.unwrap().is_some());

        tiles.show(new.clone());
        assert!(tiles.tile(&tiles.shown(), address).await.unwrap().is_some());
        assert!(tiles.tile(&asked_before, address).await.unwrap().is_some());

        assert_eq!((*old.0.lock(), *new.0.lock()), (1, 1));
    }

    #[test]
    fn what_is_no_tile_is_none() {
        assert!(TileAddress::parse("14", "16383", "0.mvt").is_some());
        for (z, x, y) in
            [("14", "16384", "0.mvt"), ("23", "0", "0.mvt"), ("-1", "0", "0.mvt"), ("3", "0", "0"), ("", "", "")]
        {
            assert!(TileAddress::parse(z, x, y).is_none(), "{z}/{x}/{y}");
        }
    }
}
