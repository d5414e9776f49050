//! The one rule of readers, for deliveries and for drivers: whatever owners write beside and after each other, and
//! however often a reader reads it again, its view never goes back and is what the newest owner said last.

use proptest::prelude::*;
use protocol::record::Vehicle;
use protocol::update::{
    Changed, DeliveryBody, DeliveryUpdate, DeliveryView, DriverBody, DriverUpdate, DriverView, Epoch, Generation,
    LiveDriver, Source, Taken,
};
use protocol::{
    AssignmentNumber, Delivery, DeliveryId, DeliveryKey, DeliveryPolicy, DeliveryState, DriverId, DriverKey, LiveView,
    Offset, PartitionId, TenantId, Time,
};

/// What one owner says next: to which owner of three it belongs, and whether it is a keyframe.
type Said = (usize, bool);

proptest! {
    #[test]
    fn a_drivers_view_is_what_its_newest_owner_said_last(
        said in prop::collection::vec((0..3usize, any::<bool>()), 1..60),
        read_again in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
    ) {
        let log = driver_log(&said);
        let mut live: Option<LiveDriver> = None;
        for update in with_repeats(&log, &read_again) {
            let before = live.as_ref().map(LiveDriver::place);
            let taken = match &mut live {
                Some(live) => live.handle_update(&update),
                None => {
                    live = LiveDriver::begin(&update);
                    if live.is_some() { Taken::Whole } else { Taken::Dropped }
                }
            };
            let after = live.as_ref().map(LiveDriver::place);
            prop_assert!(before <= after, "it went back");
            prop_assert_eq!(taken == Taken::Dropped, before == after);
        }

        prop_assert_eq!(live.map(|live| (live.generation.claim.0, live.view.battery_percent)), newest(&said));
    }

    #[test]
    fn a_deliverys_view_is_what_its_newest_owner_said_last(
        said in prop::collection::vec((0..3usize, any::<bool>()), 1..60),
        read_again in prop::collection::vec(any::<prop::sample::Index>(), 0..3),
    ) {
        let log = delivery_log(&said);
        let mut live: Option<LiveView> = None;
        for update in with_repeats(&log, &read_again) {
            let before = live.as_ref().map(LiveView::place);
            let taken = match &mut live {
                Some(live) => live.handle_update(&update),
                None => {
                    live = LiveView::begin(&update);
                    if live.is_some() { Taken::Whole } else { Taken::Dropped }
                }
            };
            let after = live.as_ref().map(LiveView::place);
            prop_assert!(before <= after, "it went back");
            prop_assert_eq!(taken == Taken::Dropped, before == after);
        }

        let said_last = live.map(|live| (live.epoch.generation.claim.0, Some(live.number as u8)));
        prop_assert_eq!(said_last, newest(&said));
    }

    /// A gap that a fault made: nothing is taken on top of it before the next keyframe.
    #[test]
    fn after_a_gap_a_delivery_waits_for_a_keyframe(lost in 2..10u64) {
        let key_at = 12;
        let said: Vec<Said> = (1..=15).map(|number| (0, number == 1 || number == key_at)).collect();
        let log = delivery_log(&said);
        let mut live = LiveView::begin(&log[0]).expect("the first is a keyframe");
        for update in log.iter().skip(1).filter(|update| update.number != lost) {
            let taken = live.handle_update(update);

            let expected = match update.number {
                number if number < lost || number > key_at => Taken::Next,
                number if number == key_at => Taken::Whole,
                _ => Taken::Dropped,
            };
            prop_assert_eq!(taken, expected, "number {}", update.number);
        }
    }
}

/// What a reader must come to: of the owner with the highest generation that gave a keyframe, what it said last.
fn newest(said: &[Said]) -> Option<(u64, Option<u8>)> {
    let owner = said.iter().filter(|(_, is_keyframe)| *is_keyframe).map(|(owner, _)| *owner).max()?;
    let count = said.iter().filter(|(other, _)| *other == owner).count();
    Some((owner as u64, Some(count as u8)))
}

/// The log as it is, with some of it read again in between.
fn with_repeats<T: Clone>(log: &[T], read_again: &[prop::sample::Index]) -> Vec<T> {
    let mut read: Vec<T> = Vec::new();
    for index in read_again {
        read.extend_from_slice(&log[..=index.index(log.len())]);
    }
    read.extend_from_slice(log);
    read
}

/// Its battery says how many updates its owner has written.
fn driver_log(said: &[Said]) -> Vec<DriverUpdate> {
    let mut counts = [0u8; 3];
    let update = |(at, (owner, is_keyframe)): (usize, &Said)| {
        counts[*owner] += 1;
        let battery_percent = Some(counts[*owner]);
        let body = if *is_keyframe {
            DriverBody::Keyframe { view: Box::new(driver_view(battery_percent)) }
        } else {
            DriverBody::Changed { changed: Changed { battery_percent, ..Changed::default() } }
        };
        let source = Source { partition: PartitionId(3), offset: Offset(at as u64), index: 0, ordinal: 0 };
        let generation = generation(*owner);
        DriverUpdate { key: DRIVER, generation, fold_version: 1, source, at: Time(0), events: Vec::new(), body }
    };
    said.iter().enumerate().map(update).collect()
}

fn delivery_log(said: &[Said]) -> Vec<DeliveryUpdate> {
    let mut counts = [0; 3];
    let update = |(owner, is_keyframe): &Said| {
        counts[*owner] += 1;
        let body = if *is_keyframe {
            DeliveryBody::Keyframe { view: Box::new(delivery_view()) }
        } else {
            DeliveryBody::Changed { changed: Changed::default() }
        };
        DeliveryUpdate {
            key: DELIVERY,
            epoch: Epoch { assignment: AssignmentNumber(1), generation: generation(*owner) },
            number: counts[*owner],
            source: Source::default(),
            at: Time(0),
            events: Vec::new(),
            body,
            is_last: false,
        }
    };
    said.iter().map(update).collect()
}

fn generation(owner: usize) -> Generation {
    Generation { incarnation: 1, claim: Offset(owner as u64) }
}

fn driver_view(battery_percent: Option<u8>) -> DriverView {
    DriverView {
        key: DRIVER,
        lead: None,
        position: None,
        phone_state: None,
        battery_percent,
        deliveries: Vec::new(),
        silent: None,
        vehicle: Vehicle::Car,
    }
}

fn delivery_view() -> DeliveryView {
    let delivery = Delivery {
        key: DELIVERY,
        state: DeliveryState::Ready,
        assignment: AssignmentNumber(1),
        driver: Some(DRIVER.driver),
        stops: Vec::new(),
        policy: DeliveryPolicy::default(),
        journal: Vec::new(),
        reference: String::new(),
        created: Time(0),
    };
    DeliveryView { delivery, position: None, progress: None, eta: None, plan: None, silent: None }
}

const DRIVER: DriverKey = DriverKey { tenant: TenantId(1), driver: DriverId(2) };
const DELIVERY: DeliveryKey = DeliveryKey { tenant: TenantId(1), delivery: DeliveryId(5) };
