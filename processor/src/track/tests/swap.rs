//! Another version of the map under load: 2,000 drivers with deliveries under way, streets closed and others renumbered.

use maps::Profile;

use super::roads::{Trip, town, trip};
use super::tables::works;
use super::*;

#[test]
fn a_map_swapped_under_2000_drivers_loses_no_update_and_restarts_no_tracker() {
    let new = Arc::new(RoadMap::of(works(), BlobHash([9; 32])));
    assert_ne!(new.graph.edge_count(), town().graph.edge_count());
    let mut fleet = Fleet::on(town());
    fleet.drive(ROUNDS);
    let epochs: BTreeMap<DeliveryKey, Epoch> = fleet.views.iter().map(|(key, view)| (*key, view.epoch)).collect();
    assert_eq!(epochs.len(), DRIVERS);

    fleet.world.bodies.maps.push(new.clone());
    fleet.world.push(Record::InUse { kind: BodyKind::Map, hash: new.hash });
    fleet.drive(2);

    // Two fixes later everybody has a way on the new map, and is on its roads.
    let mut found = Vec::new();
    for (key, view) in &fleet.views {
        assert_eq!(view.epoch, epochs[key], "{key:?} was begun anew");
        let view = &view.view;
        assert!(view.plan.is_some() && view.eta.is_some_and(|eta| eta.basis == EtaBasis::Road), "{key:?}: {view:?}");
        let shown = view.position.unwrap();
        new.graph.candidates(shown.position, 2.0, Profile::Car, &mut found);
        assert!(!shown.snapped || !found.is_empty(), "{key:?} is on no road of the new map");
    }
    let snapped = fleet.views.values().filter(|view| view.view.position.unwrap().snapped).count();
    assert!(snapped * 10 >= DRIVERS * 9, "{snapped} of {DRIVERS} are on a road");

    fleet.drive(ROUNDS);
    fleet.world.pass(60);
    assert_eq!(fleet.folds_failed, 0);
    let crumbs = fleet.world.breadcrumbs.len();
    assert_eq!(crumbs, fleet.fixes, "one breadcrumb per fix");
    assert_eq!(fleet.world.partition.bodies(), [new.hash], "nobody stands on the old map any more");
}

/// Many drivers, each on a trip of his own.
struct Fleet {
    world: World,
    trips: Vec<Trip>,
    round: usize,
    fixes: usize,
    folds_failed: u64,
    /// As readers see them.
    views: BTreeMap<DeliveryKey, LiveView>,
    read: usize,
}

impl Fleet {
    fn on(map: Arc<RoadMap>) -> Fleet {
        let trips: Vec<Trip> = (0..TRIPS as u32).map(|seed| trip(map.clone(), seed + 1)).collect();
        let mut world = World::on(map);
        for i in 0..DRIVERS {
            let trip = &trips[i % TRIPS];
            let journal = vec![status(1, DeliveryState::PickedUp), assigned(2, Some(driver(i)), 1)];
            let mut delivery = delivery(Some(driver(i)), 1, journal);
            delivery.key.delivery = DeliveryId(i as u64 + 1);
            delivery.stops[0].position = trip.stops[0];
            delivery.stops[1].position = trip.stops[1];
            world.push(Record::Assign { to: driver(i).into(), delivery: Box::new(delivery) });
        }
        Fleet { world, trips, round: 0, fixes: 0, folds_failed: 0, views: BTreeMap::new(), read: 0 }
    }

    /// Each round is 4 s, in which each driver sends a fix: a quarter of them every second.
    fn drive(&mut self, rounds: usize) {
        for _ in 0..rounds {
            for quarter in 0..4 {
                self.world.pass(1);
                let mine = (0..DRIVERS).filter(|i| i % 4 == quarter);
                let records: Vec<Record> = mine.map(|i| self.fix(i)).collect();
                self.fixes += records.len();
                self.world.push_all(records);
                self.folds_failed += self.world.counts.folds_failed;
            }
            self.round += 1;
            self.read();
        }
    }

    fn fix(&mut self, i: usize) -> Record {
        let trip = &self.trips[i % TRIPS];
        let place = (i / TRIPS % 4 + self.round).min(trip.fixes.len() - 1);
        let position = trip.fixes[place];
        let mut fix = self.world.fix(0.0);
        fix.device = device(driver(i), 1);
        fix.number = Some(FixNumber(self.round as u64 + 1));
        fix.fix.position = position;
        Record::Fix(fix)
    }

    /// Takes the updates as a reader does; none may be missing, and each driver's dot is as old as his last fix.
    fn read(&mut self) {
        for update in &self.world.updates[self.read..] {
            let Update::Delivery(update) = update else { continue };
            assert!(!update.events.iter().any(|event| matches!(event, Event::FoldFailed { .. })));
            match self.views.get_mut(&update.key) {
                None => {
                    self.views.insert(update.key, LiveView::begin(update).expect("a keyframe comes first"));
                }
                Some(view) => assert_eq!(view.handle_update(update), Taken::Next, "{update:?}"),
            }
        }
        self.read = self.world.updates.len();
        let now = self.world.now();
        let fresh = |view: &LiveView| view.view.position.is_some_and(|p| now.millis_since(p.event_time) < 4_000);
        assert!(self.views.values().all(fresh), "a position is missing");
    }
}

fn driver(i: usize) -> DriverKey {
    DriverKey { tenant: TENANT, driver: DriverId(i as u32 + 10) }
}

const DRIVERS: usize = 2_000;
const TRIPS: usize = 40;
const ROUNDS: usize = 6;
