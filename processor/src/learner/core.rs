//! The learner itself: breadcrumbs and updates in, tables out. No clock, no log, no store.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use maps::eta::EtaTable;
use maps::matcher::Scratch;
use maps::speeds::{Hexagons, Hop, Learner as SpeedLearner, LiveFactors, LiveLearner, Predecessors, RoadSpeed};
use maps::speeds::{SpeedTable, Traversal};
use maps::{EdgeId, Graph};
use protocol::record::{BlobHash, BodyKind, Vehicle};
use protocol::update::{BreadcrumbBatch, DriverBody, DriverUpdate, SnappedPosition};
use protocol::{Breadcrumb, Offset, PartitionId, Position, Time, Update, UpdateBatch, Verdict};

use super::counts::{Counts, LeftOut};
use super::drivers::{Drivers, Place};
use super::state::State;
use super::trips::{Heard, Junctions};
use crate::config::LearnerConfig;

pub struct Learner {
    config: LearnerConfig,
    state: State,
    ground: Option<Ground>,
    drivers: Drivers,
    due: Due,
    /// What was driven since live factors were told.
    is_live_news: bool,
    /// Anything was learned since the state was kept.
    is_state_news: bool,
    outputs: VecDeque<Output>,
    counts: Counts,
    traversals: Vec<Traversal>,
}

/// A map, and what is made of it.
struct Ground {
    hash: BlobHash,
    graph: Arc<Graph>,
    hexagons: Hexagons,
    junctions: Junctions,
    scratch: Scratch,
    usual: SpeedTable,
    told: LiveFactors,
}

/// When what is to be looked at next.
struct Due {
    live: Time,
    live_told: Time,
    speeds: Time,
    eta: Time,
    cells: Time,
    state: Time,
    state_told: Time,
}

/// What the learner has to say.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// To be stored, then offered to every partition.
    Table { kind: BodyKind, hash: BlobHash, body: Vec<u8> },
    /// How fast one gets along in every cell.
    Cells { at: Time, speeds: Vec<RoadSpeed> },
    /// To be kept for whoever learns on.
    State { body: Vec<u8> },
    /// No record names it any more.
    Expired { hash: BlobHash },
}

impl Learner {
    pub fn new(config: LearnerConfig, state: State, now: Time) -> Learner {
        Learner {
            drivers: Drivers::new(config.drivers_max),
            due: Due {
                live: now,
                live_told: now - config.live_every,
                speeds: now,
                eta: now,
                cells: now,
                state: now + config.state_every,
                state_told: now,
            },
            config,
            state,
            ground: None,
            is_live_news: false,
            is_state_news: false,
            outputs: VecDeque::new(),
            counts: Counts::default(),
            traversals: Vec::new(),
        }
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    pub fn drivers(&self) -> &Drivers {
        &self.drivers
    }

    /// What happened since this was last asked.
    pub fn take_counts(&mut self) -> Counts {
        std::mem::take(&mut self.counts)
    }

    /// This map is in use from here on. What was learned on another goes to the edges that lie where its edges lay.
    pub fn handle_map(&mut self, hash: BlobHash, graph: &Arc<Graph>, now: Time) {
        if self.ground.as_ref().is_some_and(|ground| ground.hash == hash) {
            return;
        }
        let (before, state) = (self.ground.take(), &mut self.state);
        let usual = match before {
            _ if state.map == Some(hash) => usual_of(state, graph, now),
            Some(before) => {
                // From here on the usual week is all that was learned: today must not say it again.
                let learned = state.speeds.table(&before.graph);
                state.live.handle_usual(&before.graph, &before.usual, &learned, now);
                let predecessors = Predecessors::of(&before.graph, graph);
                state.speeds.carry_over(&predecessors, &before.graph, graph);
                state.live.carry_over(&predecessors, &before.graph, graph);
                state.usual.clear();
                state.speeds.table(graph)
            }
            // Nobody has the map that these edges were of.
            None => {
                (state.speeds, state.live) = (Default::default(), LiveLearner::new(now));
                state.usual.clear();
                state.speeds.table(graph)
            }
        };
        state.map = Some(hash);
        self.drivers.forget();
        self.ground = Some(Ground {
            hash,
            hexagons: Hexagons::of(graph),
            junctions: Junctions::of(graph),
            scratch: Scratch::new(),
            usual,
            told: LiveFactors::usual(graph, now),
            graph: graph.clone(),
        });
        // Tables of the map before are of no use on this one.
        (self.due.speeds, self.due.live, self.due.cells) = (now, now, now);
        // What was told last may differ from the usual, even where nothing is left to say so.
        self.is_live_news = state.live.edges_len() > 0 || state.bodies.has(BodyKind::LiveSpeeds);
        if self.is_live_news {
            self.due.live_told = now - self.config.live_every * LIVE_QUIET_TIMES;
        }
    }

    /// Takes an entry of the trail once; those below what was read before are passed by.
    pub fn handle_trail(&mut self, partition: PartitionId, offset: Offset, batch: &BreadcrumbBatch, now: Time) {
        if self.state.trail.get(&partition).is_some_and(|next| offset < *next) {
            return;
        }
        for breadcrumb in &batch.breadcrumbs {
            self.handle_breadcrumb(breadcrumb, now);
        }
        self.skip_trail(partition, offset);
    }

    /// An entry that cannot be read.
    pub fn skip_trail(&mut self, partition: PartitionId, offset: Offset) {
        self.state.trail.insert(partition, Offset(offset.0 + 1));
    }

    /// Takes an entry of the updates once.
    pub fn handle_updates(&mut self, partition: PartitionId, offset: Offset, batch: &UpdateBatch) {
        if self.state.updates.get(&partition).is_some_and(|next| offset < *next) {
            return;
        }
        for update in &batch.updates {
            self.handle_update(update);
        }
        self.skip_updates(partition, offset);
    }

    pub fn skip_updates(&mut self, partition: PartitionId, offset: Offset) {
        self.state.updates.insert(partition, Offset(offset.0 + 1));
    }

    /// What was read was appended so long ago.
    pub fn handle_lag(&mut self, lag_ms: i64, now: Time) {
        self.drivers.handle_lag(lag_ms, now);
    }

    pub fn handle_breadcrumb(&mut self, breadcrumb: &Breadcrumb, now: Time) {
        self.counts.breadcrumbs += 1;
        let left_out = match self.place(breadcrumb, now) {
            Ok(Place::Hop(Hop::Driven)) => return self.learn(now),
            Ok(Place::Hop(Hop::Begun)) => LeftOut::Begun,
            Ok(Place::Hop(Hop::Stood)) => LeftOut::Stood,
            Ok(Place::Hop(Hop::Late)) => LeftOut::Late,
            Ok(Place::Hop(Hop::Gap)) => LeftOut::Gap,
            Ok(Place::Hop(Hop::TooFast)) => LeftOut::TooFast,
            Ok(Place::Hop(Hop::NoWay)) => LeftOut::NoWay,
            Ok(Place::NotByCar) => LeftOut::NotByCar,
            Ok(Place::NoRoom) => LeftOut::NoRoom,
            Err(left_out) => left_out,
        };
        self.counts.left_out[left_out as usize] += 1;
    }

    fn place(&mut self, breadcrumb: &Breadcrumb, now: Time) -> Result<Place, LeftOut> {
        let snapped =
            breadcrumb.snapped.filter(|_| breadcrumb.verdict == Verdict::Accepted).ok_or(LeftOut::Unplaced)?;
        let key = breadcrumb.record.device.driver_key();
        if !self.drivers.is_heard(key) {
            return Err(LeftOut::NotHeard);
        }
        if self.state.not_by_car.contains(&key) {
            return Err(LeftOut::NotByCar);
        }
        let ground = self.ground.as_mut().ok_or(LeftOut::NoMap)?;
        if !is_on(&ground.graph, &snapped) {
            return Err(LeftOut::OtherMap);
        }
        let (measured, received) = (breadcrumb.record.fix.measured, breadcrumb.record.received);
        // A backlog or a wrong clock: nobody can say which, so nobody can say what hour it was.
        if received.millis_since(measured.to_time()).abs() > APART_MS_MAX {
            return Err(LeftOut::Late);
        }
        let to = (EdgeId(snapped.edge), snapped.along_cm);
        let (graph, scratch) = (&ground.graph, &mut ground.scratch);
        self.traversals.clear();
        Ok(self.drivers.handle_place(graph, scratch, key, (to, measured), now, &mut self.traversals))
    }

    /// From what was just driven.
    fn learn(&mut self, now: Time) {
        let Some(ground) = &self.ground else { return };
        for traversal in &mut self.traversals {
            traversal.at = traversal.at.min(now);
            self.state.speeds.handle_traversal(&ground.graph, traversal);
            if now.millis_since(traversal.at) <= LIVE_MS_MAX {
                self.state.live.handle_traversal(&ground.graph, &ground.usual, traversal);
                self.is_live_news = true;
            }
        }
        self.counts.traversals += self.traversals.len() as u64;
        self.is_state_news = true;
    }

    pub fn handle_update(&mut self, update: &Update) {
        let update = match update {
            Update::Delivery(update) => update,
            Update::Driver(update) => return self.handle_driver(update),
            Update::Heartbeat { .. } => return,
        };
        let Some(ground) = &self.ground else { return };
        if self.state.is_by_other(update) {
            self.state.trips.forget(update.key);
            return;
        }
        match self.state.trips.handle_update(&ground.junctions, update) {
            Heard::Nothing => {}
            Heard::Begun => self.counts.trips_begun += 1,
            Heard::Finished(trips) => {
                self.counts.trips_finished += 1;
                trips.into_iter().for_each(|trip| self.state.eta.handle_finished(trip));
                self.is_state_news = true;
            }
            Heard::NoRoom => self.counts.deliveries_refused += 1,
        }
    }

    fn handle_driver(&mut self, update: &DriverUpdate) {
        let DriverBody::Keyframe { view } = &update.body else { return };
        let others = &mut self.state.not_by_car;
        if view.vehicle == Vehicle::Car {
            others.remove(&update.key);
        } else if others.len() < OTHERS_MAX {
            others.insert(update.key);
        }
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Wake me then.
    pub fn poll_timeout(&self) -> Time {
        let Due { live, speeds, eta, cells, state, .. } = self.due;
        live.min(speeds).min(eta).min(cells).min(state)
    }

    pub fn handle_timeout(&mut self, now: Time) {
        self.fade(now);
        if now >= self.due.speeds {
            self.due.speeds = now + self.config.speeds_every;
            self.tell_speeds(now);
        }
        if now >= self.due.live {
            self.due.live = now + LIVE_LOOK_EVERY;
            self.tell_live(now);
        }
        if now >= self.due.eta {
            self.due.eta = now + self.config.eta_every;
            self.tell_eta(now);
        }
        if now >= self.due.cells {
            self.due.cells = now + CELLS_EVERY;
            self.tell_cells(now);
        }
        if now >= self.due.state {
            self.due.state = now + self.config.state_every;
            let is_old = now.since(self.due.state_told) >= STATE_AGAIN;
            if self.is_state_news || is_old {
                self.keep_state(now);
            }
        }
    }

    /// Lets go of the bodies that nobody can need any more, by the time for what is kept.
    pub fn handle_kept(&mut self, kept: Time) {
        let expired = self.state.bodies.take_expired(kept);
        self.outputs.extend(expired.into_iter().map(|hash| Output::Expired { hash }));
    }

    /// The clock was set: what is due in an hour is due in an hour.
    pub fn handle_clock_set(&mut self, by_ms: i64) {
        let Due { live, live_told, speeds, eta, cells, state, state_told } = &mut self.due;
        let faded = &mut self.state.faded;
        for time in [live, live_told, speeds, eta, cells, state, state_told, faded] {
            time.0 = time.0.saturating_add(by_ms);
        }
    }

    /// Whoever learns on begins here.
    pub fn keep_state(&mut self, now: Time) {
        (self.is_state_news, self.due.state_told) = (false, now);
        self.outputs.retain(|output| !matches!(output, Output::State { .. }));
        self.outputs.push_back(Output::State { body: self.state.to_bytes() });
    }

    fn fade(&mut self, now: Time) {
        if now.millis_since(self.state.faded) >= DAY_MS {
            self.state.faded = now;
            self.state.speeds.fade(A_DAY_LATER);
        }
    }

    fn tell_speeds(&mut self, now: Time) {
        let Some(ground) = &mut self.ground else { return };
        if self.state.speeds.edges_len() == 0 {
            return;
        }
        let table = self.state.speeds.table(&ground.graph);
        let body = table.to_bytes();
        if body == self.state.usual {
            return;
        }
        self.state.live.handle_usual(&ground.graph, &ground.usual, &table, now);
        self.state.usual.clone_from(&body);
        ground.usual = table;
        self.is_live_news = true;
        self.offer(BodyKind::Speeds, body, now);
    }

    fn tell_live(&mut self, now: Time) {
        let Some(ground) = &mut self.ground else { return };
        let since = now.since(self.due.live_told);
        // What was told fades with its evidence: that is told too, until all is as usual.
        let has_more = self.is_live_news || !ground.told.is_usual();
        if !has_more || since < self.config.live_every {
            return;
        }
        let factors = self.state.live.factors(&ground.graph, now);
        let is_moved = factors.largest_change(&ground.told) > LIVE_CHANGE;
        if !is_moved && since < self.config.live_every * LIVE_QUIET_TIMES {
            return;
        }
        let body = factors.to_bytes();
        ground.told = factors;
        (self.is_live_news, self.due.live_told) = (false, now);
        self.offer(BodyKind::LiveSpeeds, body, now);
    }

    fn tell_eta(&mut self, now: Time) {
        let table = self.state.eta.table(now);
        if *table == EtaTable::default() {
            return;
        }
        let body = table.to_bytes();
        let hash = BlobHash(SpeedTable::hash(&body));
        if self.state.eta_told != Some(hash) {
            self.state.eta_told = Some(hash);
            self.offer(BodyKind::EtaModel, body, now);
        }
    }

    fn tell_cells(&mut self, at: Time) {
        let Some(ground) = &self.ground else { return };
        let speeds = ground.hexagons.speeds(&ground.graph, &ground.usual, Some(&ground.told), at);
        self.outputs.retain(|output| !matches!(output, Output::Cells { .. }));
        self.outputs.push_back(Output::Cells { at, speeds });
    }

    /// What of this kind was not fetched yet is old.
    fn offer(&mut self, kind: BodyKind, body: Vec<u8>, now: Time) {
        let hash = BlobHash(SpeedTable::hash(&body));
        self.outputs.retain(|output| !matches!(output, Output::Table { kind: old, .. } if *old == kind));
        self.outputs.push_back(Output::Table { kind, hash, body });
        self.state.bodies.push(kind, hash, now);
        self.is_state_news = true;
    }
}

/// The usual week that the evidence of today was held against before a restart. Before the first table was told that
/// was the empty road; where it cannot be known, neither can today.
fn usual_of(state: &mut State, graph: &Graph, now: Time) -> SpeedTable {
    if state.usual.is_empty() {
        return SpeedLearner::default().table(graph);
    }
    SpeedTable::from_bytes(&state.usual, graph).unwrap_or_else(|_| {
        state.live = LiveLearner::new(now);
        state.speeds.table(graph)
    })
}

/// Whether the place lies on this map where the breadcrumb says.
fn is_on(graph: &Graph, snapped: &SnappedPosition) -> bool {
    let edge = EdgeId(snapped.edge);
    let is_near = |a: Position, b: Position| {
        a.lat_e7.abs_diff(b.lat_e7) <= PLACE_OFF_E7_MAX && a.lon_e7.abs_diff(b.lon_e7) <= PLACE_OFF_E7_MAX * 2
    };
    edge.index() < graph.edge_count() && is_near(graph.position_at(edge, snapped.along_cm), snapped.position)
}

/// Drivers by something else than a car that are remembered, 8 B each.
const OTHERS_MAX: usize = 1_000_000;
/// Some two metres.
const PLACE_OFF_E7_MAX: u32 = 200;
/// Between measured and received.
const APART_MS_MAX: i64 = 600_000;
/// Older traversals say nothing of right now.
const LIVE_MS_MAX: i64 = 300_000;
/// So often it is looked whether live factors have moved enough to be told.
const LIVE_LOOK_EVERY: Duration = Duration::from_secs(1);
const LIVE_CHANGE: f64 = 0.05;
/// While there is traffic they are told once in so many times the interval, moved or not.
const LIVE_QUIET_TIMES: u32 = 6;
/// So a live store that lost everything is whole again in a minute.
const CELLS_EVERY: Duration = Duration::from_secs(50);
/// The note of where the state lies is kept for three days.
const STATE_AGAIN: Duration = Duration::from_secs(24 * 3600);
const DAY_MS: i64 = 24 * 3_600_000;
/// The last seven weeks matter.
const A_DAY_LATER: f64 = 0.98;
