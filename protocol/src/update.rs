//! Updates: what a tracker says to the outside. Those of a delivery are numbered without gaps within an epoch; a reader
//! keeps (epoch, number) and nothing else. Of a driver's own it keeps (generation, fold version, id). By
//! `LiveView::handle_update` and `LiveDriver::handle_update` every reader comes to the same view.

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use crate::delivery::{Delivery, JournalEntry, Milestone};
use crate::fix::{PhoneState, RejectReason, Verdict};
use crate::id::{AssignmentNumber, DeliveryId, DeliveryKey, DeviceKey, DriverKey, Offset, PartitionId};
use crate::position::Position;
use crate::record::{FixRecord, Vehicle};
use crate::time::{MeasuredTime, Time};

/// The place of an owner's claim. A later one is greater.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize, SchemaWrite, SchemaRead,
)]
pub struct Generation {
    /// Of the topic set: +1 at creation, move, restore and partition growth.
    pub incarnation: u32,
    pub claim: Offset,
}

/// One reign of one tracker over a delivery.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize, SchemaWrite, SchemaRead,
)]
pub struct Epoch {
    pub assignment: AssignmentNumber,
    pub generation: Generation,
}

/// Where in the records an update came from. Never compared across partitions.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize, SchemaWrite, SchemaRead,
)]
pub struct Source {
    pub partition: PartitionId,
    pub offset: Offset,
    pub index: u32,
    pub ordinal: u32,
}

/// The dot: the newest position that a driver's tracker believes, with what a page needs to say how old it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct ShownPosition {
    /// On the road where `snapped`, else as measured.
    pub position: Position,
    pub snapped: bool,
    pub confidence_percent: u8,
    pub heading_255: Option<u8>,
    pub speed_dm_s: Option<u16>,
    pub accuracy_m: Option<u8>,
    /// As the phone said it: the order of positions.
    pub measured: MeasuredTime,
    /// The server's time at which it was true, as far as we know: what its age is counted from. Never later than
    /// received, so a phone's wrong clock makes no position younger.
    pub event_time: Time,
    pub received: Time,
    /// The phone said it stands: an old position is still the right one.
    pub standing: bool,
}

impl ShownPosition {
    /// The server's clock was set: the position is as old as it was before.
    pub fn handle_clock_set(&mut self, by_ms: i64) {
        self.event_time = Time(self.event_time.0.saturating_add(by_ms));
        self.received = Time(self.received.0.saturating_add(by_ms));
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
#[serde(rename_all = "snake_case")]
pub enum Leg {
    ToPickup,
    AtPickup,
    ToDropOff,
    Arriving,
    AtDropOff,
}

/// How far he has come on his way to the stop ahead.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct Progress {
    pub leg: Leg,
    /// Along all plans that were made to this stop: a fresh one does not begin at nothing.
    pub along_m: u32,
    pub remaining_m: u32,
    pub off_route_m: u32,
}

/// What an ETA rests on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
#[serde(rename_all = "snake_case")]
pub enum EtaBasis {
    Road,
    /// There is no map here: said as such.
    StraightLine,
}

/// When the stop ahead is expected to be reached.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct Eta {
    pub arrival: Time,
    /// One in ten arrives before.
    pub p10: Time,
    /// One in ten arrives after.
    pub p90: Time,
    pub basis: EtaBasis,
    /// Which of the delivery's stops.
    pub stop: u8,
}

/// The way planned from where the driver was when it was made.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct Plan {
    pub points: Vec<Position>,
    pub length_m: u32,
    pub duration_s: u32,
}

/// Why nothing is heard.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
#[serde(rename_all = "snake_case")]
pub enum SilentCause {
    /// The edge that last served him is well, he is not heard.
    Driver,
    /// No marks: it is our own back end that is silent.
    BackEnd,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    Moved,
    EtaChanged,
    FenceEntered {
        fence: String,
    },
    FenceLeft {
        fence: String,
    },
    FenceDwelt {
        fence: String,
    },
    StopEntered {
        stop: u8,
    },
    StopLeft {
        stop: u8,
    },
    Stationary {
        since: Time,
    },
    MovingAgain,
    MovingAway,
    OffRoute {
        off_m: u32,
    },
    BackOnRoute,
    Silent {
        cause: SilentCause,
    },
    HeardAgain,
    Journal {
        entry: JournalEntry,
    },
    /// What the clerk may write to the ledger.
    Proposed {
        proposal: Proposal,
    },
    PhoneStateChanged {
        state: PhoneState,
    },
    /// A record could not be folded; the tracker was emptied.
    FoldFailed {
        source: Source,
    },
}

/// What a tracker would have the ledger say.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
#[serde(tag = "propose", rename_all = "snake_case")]
pub enum Proposal {
    PickedUp { stop: u8 },
    Milestone { milestone: Milestone, stop: u8 },
}

/// The current state of one delivery: the whole of what a watcher may know.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct DeliveryView {
    /// With the journal, the stops and the policy.
    pub delivery: Delivery,
    pub position: Option<ShownPosition>,
    pub progress: Option<Progress>,
    pub eta: Option<Eta>,
    pub plan: Option<Plan>,
    pub silent: Option<SilentCause>,
}

/// The current state of one driver.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct DriverView {
    pub key: DriverKey,
    pub lead: Option<DeviceKey>,
    pub position: Option<ShownPosition>,
    pub phone_state: Option<PhoneState>,
    pub battery_percent: Option<u8>,
    pub deliveries: Vec<DeliveryId>,
    pub silent: Option<SilentCause>,
    pub vehicle: Vehicle,
}

/// The part of a view that an update replaces. An absent part stays as it was; what can vanish is doubly optional.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct Changed {
    pub position: Option<ShownPosition>,
    pub progress: Option<Option<Progress>>,
    pub eta: Option<Option<Eta>>,
    pub silent: Option<Option<SilentCause>>,
    pub phone_state: Option<PhoneState>,
    pub battery_percent: Option<u8>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
#[serde(tag = "body", rename_all = "snake_case")]
pub enum DeliveryBody {
    Keyframe { view: Box<DeliveryView> },
    Changed { changed: Changed },
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
#[serde(tag = "body", rename_all = "snake_case")]
pub enum DriverBody {
    Keyframe { view: Box<DriverView> },
    Changed { changed: Changed },
}

/// What a tracker says of one delivery.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct DeliveryUpdate {
    pub key: DeliveryKey,
    pub epoch: Epoch,
    /// From 1, without gaps within the epoch; the first is a keyframe.
    pub number: u64,
    pub source: Source,
    /// The fold's time.
    pub at: Time,
    pub events: Vec<Event>,
    pub body: DeliveryBody,
    /// The tracker lets the delivery go with this update: finished, or another's from here.
    pub is_last: bool,
}

/// What a tracker says of its driver.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct DriverUpdate {
    pub key: DriverKey,
    pub generation: Generation,
    pub fold_version: u32,
    pub source: Source,
    pub at: Time,
    pub events: Vec<Event>,
    pub body: DriverBody,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
#[wincode(tag_encoding = "u8")]
#[serde(tag = "update", rename_all = "snake_case")]
pub enum Update {
    Delivery(DeliveryUpdate),
    Driver(DriverUpdate),
    /// Written every 5 s per source and updates partition, so that a reader knows how far it is behind.
    Heartbeat {
        source: PartitionId,
        offset: Offset,
        at: Time,
    },
}

impl Update {
    /// Whether every build that reads plain batches knows all that it says (`Record::is_plain`).
    pub fn is_plain(&self) -> bool {
        match self {
            Update::Delivery(update) => update.events.iter().all(Event::is_plain),
            Update::Driver(update) => update.events.iter().all(Event::is_plain),
            Update::Heartbeat { .. } => true,
        }
    }
}

impl Event {
    fn is_plain(&self) -> bool {
        match self {
            Event::Moved
            | Event::EtaChanged
            | Event::FenceEntered { .. }
            | Event::FenceLeft { .. }
            | Event::FenceDwelt { .. }
            | Event::StopEntered { .. }
            | Event::StopLeft { .. }
            | Event::Stationary { .. }
            | Event::MovingAgain
            | Event::MovingAway
            | Event::OffRoute { .. }
            | Event::BackOnRoute
            | Event::Silent { .. }
            | Event::HeardAgain
            | Event::Journal { .. }
            | Event::Proposed { .. }
            | Event::PhoneStateChanged { .. }
            | Event::FoldFailed { .. } => true,
        }
    }
}

/// Updates of one partition that travel together: one entry of the log.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct UpdateBatch {
    pub updates: Vec<Update>,
}

/// A fix kept for history, once its snapping is final.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct Breadcrumb {
    pub record: FixRecord,
    /// The tracker's word where it differs from the edge's.
    pub verdict: Verdict,
    pub snapped: Option<SnappedPosition>,
    /// The delivery under way at that time, if any.
    pub delivery: Option<DeliveryId>,
    pub source: Source,
}

/// A fix placed on the road graph, as history keeps it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct SnappedPosition {
    pub position: Position,
    pub edge: u32,
    pub along_cm: u32,
    pub off_cm: u32,
    pub confidence_percent: u8,
}

#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct BreadcrumbBatch {
    pub breadcrumbs: Vec<Breadcrumb>,
}

impl Breadcrumb {
    pub fn reject_reason(&self) -> Option<RejectReason> {
        match self.verdict {
            Verdict::Accepted => None,
            Verdict::Rejected(reason) => Some(reason),
        }
    }
}

/// What a reader did with an update.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// The view is now that of a new epoch, or of a keyframe that skipped numbers.
    Whole,
    /// The next number of the same epoch.
    Next,
    /// Seen before, from an older epoch, or after a gap that only a keyframe can close.
    Dropped,
}

/// One delivery's view as a reader keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct LiveView {
    pub epoch: Epoch,
    pub number: u64,
    pub at: Time,
    pub view: DeliveryView,
    pub is_last: bool,
}

impl LiveView {
    /// The view a reader begins with: only a keyframe can begin one.
    pub fn begin(update: &DeliveryUpdate) -> Option<Self> {
        match &update.body {
            DeliveryBody::Keyframe { view } => Some(LiveView {
                epoch: update.epoch,
                number: update.number,
                at: update.at,
                view: (**view).clone(),
                is_last: update.is_last,
            }),
            DeliveryBody::Changed { .. } => None,
        }
    }

    /// Takes an update by the rule of readers: a higher epoch from its keyframe on; in the same epoch only number + 1,
    /// or a keyframe with a higher number; everything else is dropped.
    pub fn handle_update(&mut self, update: &DeliveryUpdate) -> Taken {
        let taken = update.taken_after(self.epoch, self.number);
        if taken == Taken::Dropped {
            return taken;
        }
        match &update.body {
            DeliveryBody::Keyframe { view } => self.view.clone_from(view),
            DeliveryBody::Changed { changed } => self.view.handle_changed(changed, &update.events),
        }
        self.epoch = update.epoch;
        self.number = update.number;
        self.at = update.at;
        self.is_last = update.is_last;
        taken
    }
}

impl DeliveryUpdate {
    /// The rule of readers, for one that took number `number` of `epoch` last.
    pub fn taken_after(&self, epoch: Epoch, number: u64) -> Taken {
        if self.epoch < epoch || (self.epoch == epoch && self.number <= number) {
            return Taken::Dropped;
        }
        let is_next = self.epoch == epoch && self.number == number + 1;
        match &self.body {
            DeliveryBody::Keyframe { .. } | DeliveryBody::Changed { .. } if is_next => Taken::Next,
            DeliveryBody::Keyframe { .. } => Taken::Whole,
            DeliveryBody::Changed { .. } => Taken::Dropped,
        }
    }
}

impl LiveView {
    /// What orders the views of one delivery: of two, the greater is the newer.
    pub fn place(&self) -> (Epoch, u64) {
        (self.epoch, self.number)
    }
}

/// One driver's view as a reader keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, SchemaWrite, SchemaRead)]
pub struct LiveDriver {
    pub generation: Generation,
    pub fold_version: u32,
    pub source: Source,
    pub at: Time,
    pub view: DriverView,
}

impl LiveDriver {
    /// The view a reader begins with: only a keyframe can begin one.
    pub fn begin(update: &DriverUpdate) -> Option<Self> {
        match &update.body {
            DriverBody::Keyframe { view } => Some(LiveDriver {
                generation: update.generation,
                fold_version: update.fold_version,
                source: update.source,
                at: update.at,
                view: (**view).clone(),
            }),
            DriverBody::Changed { .. } => None,
        }
    }

    /// What orders the views of one driver: of two, the greater is the newer. His records all lie in one partition, so
    /// offsets are compared within it.
    pub fn place(&self) -> (Generation, u32, Source) {
        (self.generation, self.fold_version, self.source)
    }

    /// Takes an update by the rule of readers: another generation or fold version that is higher from its keyframe on;
    /// in the same only what is newer; everything else is dropped.
    pub fn handle_update(&mut self, update: &DriverUpdate) -> Taken {
        if (update.generation, update.fold_version, update.source) <= self.place() {
            return Taken::Dropped;
        }
        let is_same = (update.generation, update.fold_version) == (self.generation, self.fold_version);
        match &update.body {
            DriverBody::Keyframe { view } => self.view.clone_from(view),
            DriverBody::Changed { changed } if is_same => self.view.handle_changed(changed),
            DriverBody::Changed { .. } => return Taken::Dropped,
        }
        self.generation = update.generation;
        self.fold_version = update.fold_version;
        self.source = update.source;
        self.at = update.at;
        if is_same { Taken::Next } else { Taken::Whole }
    }
}

impl DeliveryView {
    fn handle_changed(&mut self, changed: &Changed, events: &[Event]) {
        if let Some(position) = changed.position {
            self.position = Some(position);
        }
        if let Some(progress) = changed.progress {
            self.progress = progress;
        }
        if let Some(eta) = changed.eta {
            self.eta = eta;
        }
        if let Some(silent) = changed.silent {
            self.silent = silent;
        }
        for event in events {
            if let Event::Journal { entry } = event {
                self.delivery.handle_entry(entry.clone());
            }
        }
    }
}

impl Delivery {
    /// Takes a ledger event once: an entry that is not newer than the last is passed by.
    pub fn handle_entry(&mut self, entry: JournalEntry) -> bool {
        use crate::delivery::{JOURNAL_MAX, JournalKind};
        if entry.number <= self.last_number() {
            return false;
        }
        match &entry.kind {
            JournalKind::Status { status, .. } => self.state = *status,
            JournalKind::Assigned { driver, assignment } => {
                self.driver = *driver;
                self.assignment = *assignment;
            }
            JournalKind::Milestone { .. } => {}
        }
        if self.journal.len() >= JOURNAL_MAX {
            self.journal.remove(0);
        }
        self.journal.push(entry);
        true
    }
}

impl DriverView {
    /// Takes the changed part of a driver's own update.
    pub fn handle_changed(&mut self, changed: &Changed) {
        if let Some(position) = changed.position {
            self.position = Some(position);
        }
        if let Some(silent) = changed.silent {
            self.silent = silent;
        }
        if let Some(state) = changed.phone_state {
            self.phone_state = Some(state);
        }
        if let Some(battery) = changed.battery_percent {
            self.battery_percent = Some(battery);
        }
    }
}
