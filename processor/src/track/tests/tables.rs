//! What others learned, in use: ETAs and plans follow the tables of the record, ways from outside and the driver's
//! vehicle; and who leaves his plan is told a new one at once.

use maps::eta::{Ahead, EtaLearner, FinishedTrip};
use maps::import::{ImportOptions, import_bytes};
use maps::speeds::{Learner, LiveLearner, Traversal};
use maps::town::{self as towns, TownOptions};
use maps::{EdgeId, Graph};
use protocol::record::{PlannedPoint, Vehicle};
use protocol::update::Plan;

use super::roads::{Trip, assign_trip, town, trip, trip_from};
use super::*;

#[test]
fn live_factors_raise_the_eta_with_the_next_fix_and_plans_time_their_way_by_them() {
    let mut world = begun(&trip(town(), 2));
    let before = eta_s(&world);

    let now = world.now();
    world.take(BodyKind::LiveSpeeds, live(&town().graph, now, |_| 4.0));
    assert_eq!(eta_s(&world), before, "a record of the partition says nothing of a driver");
    stand(&mut world, 4);

    let after = eta_s(&world);
    assert!(after > before * 2, "{before} s became {after} s");
    assert!(world.events().contains(&Event::EtaChanged));
}

#[test]
fn without_a_fix_the_eta_follows_the_tables_within_15_s() {
    let mut world = begun(&trip(town(), 2));
    let before = eta_s(&world);

    let now = world.now();
    world.take(BodyKind::LiveSpeeds, live(&town().graph, now, |_| 4.0));
    world.pass(16);

    assert!(eta_s(&world) > before * 2);
}

#[test]
fn speeds_of_the_week_take_effect_at_their_record_too() {
    let mut world = begun(&trip(town(), 2));
    let before = eta_s(&world);
    let graph = &town().graph;
    let mut learner = Learner::default();
    for hour in 0..200 {
        for edge in graph.edges().step_by(7) {
            let seconds = graph.duration_ms(edge, maps::Profile::Car) as f32 / 1000.0 * 3.0;
            let at = Time::from_secs(BEGIN_S - 3_600 * hour);
            learner.handle_traversal(graph, &Traversal { edge, length_cm: graph.length_cm(edge), seconds, at });
        }
    }

    world.take(BodyKind::Speeds, learner.table(graph).to_bytes());
    stand(&mut world, 8);

    assert!(eta_s(&world) * 2 > before * 3, "{before} s became {} s", eta_s(&world));
}

#[test]
fn a_new_plan_goes_round_what_is_slow_now_and_only_where_that_is_in_use() {
    let trips: Vec<Trip> = (2..12).map(|seed| trip(town(), seed)).collect();
    let mut changed = 0;
    for trip in &trips {
        let plan = plan_of(&begun(trip));
        let mut slow = World::on(town());
        let factors = jam(&plan, slow.now());
        slow.take(BodyKind::LiveSpeeds, factors);
        begin(&mut slow, trip);
        changed += usize::from(plan_of(&slow) != plan);

        assert_eq!(plan_of(&begun(trip)), plan, "the same map without the table plans as before");
    }
    assert!(changed >= 5, "{changed} of {} plans changed", trips.len());
}

#[test]
fn a_jam_that_nobody_has_told_of_for_an_hour_diverts_no_plan_any_more() {
    let trips: Vec<Trip> = (2..12).map(|seed| trip(town(), seed)).collect();
    let mut diverted = 0;
    for trip in &trips {
        let plan = plan_of(&begun(trip));
        let mut jammed = World::on(town());
        let factors = jam(&plan, jammed.now());
        jammed.take(BodyKind::LiveSpeeds, factors);
        begin(&mut jammed, trip);
        diverted += usize::from(plan_of(&jammed) != plan);

        let mut later = World::on(town());
        let factors = jam(&plan, later.now());
        let hash = BlobHash(SpeedTable::hash(&factors));
        later.push(Record::Offered { kind: BodyKind::LiveSpeeds, hash, size: factors.len() as u64 });
        later.take(BodyKind::LiveSpeeds, factors);
        later.pass(3_600);
        assert!(later.partition.state.bodies.is_in_use(BodyKind::LiveSpeeds, hash));
        let bodies = later.bodies.clone();
        let kept = later.partition.snapshot().unwrap();
        later.pass(1);
        later.partition =
            Partition::restore(&later.partition.snapshot().unwrap(), Generation::default(), &bodies).unwrap();
        assert!(!later.partition.state.bodies.is_in_use(BodyKind::LiveSpeeds, hash));
        assert_eq!(later.partition.offered(BodyKind::LiveSpeeds), None, "it is not to be taken into use again");
        begin(&mut later, trip);
        assert_eq!(plan_of(&later), plan);

        let mut again = Partition::restore(&kept, Generation::default(), &bodies).unwrap();
        let mut effects = Effects::default();
        for (i, batch) in later.log.iter().enumerate() {
            again.handle_entry(Offset(i as u64), batch, &bodies, &mut effects);
        }
        assert!(again.snapshot().unwrap() == later.partition.snapshot().unwrap(), "restored before it ended");
    }
    assert!(diverted >= 5, "{diverted} of {} plans were diverted", trips.len());
}

#[test]
fn tables_of_another_map_change_nothing_and_those_in_use_end_with_their_map() {
    let other = import_bytes(
        &towns::extract(&TownOptions { seed: 2, junctions: 100, ..TownOptions::default() }),
        &ImportOptions::default(),
    );
    let other = Graph::from_bytes(&other.unwrap()).unwrap();
    let trip = trip(town(), 2);
    let mut world = begun(&trip);
    let before = eta_s(&world);
    let now = world.now();

    world.take(BodyKind::LiveSpeeds, live(&other, now, |_| 4.0));
    stand(&mut world, 4);
    assert!(eta_s(&world).abs_diff(before) <= 10);

    let factors = live(&town().graph, world.now(), |_| 4.0);
    world.take(BodyKind::LiveSpeeds, factors);
    stand(&mut world, 8);
    assert!(eta_s(&world) > before * 2);

    let again = Arc::new(RoadMap::of(works(), BlobHash([9; 32])));
    world.bodies.maps.push(again);
    world.push(Record::InUse { kind: BodyKind::Map, hash: BlobHash([9; 32]) });
    stand(&mut world, 60);
    assert!(eta_s(&world) < before * 2, "{before} {}", eta_s(&world));
}

#[test]
fn the_eta_model_in_use_is_the_one_that_predicts() {
    let mut world = begun(&trip(town(), 2));
    let before = eta_s(&world);
    let mut learner = EtaLearner::default();
    for i in 0..2_000_i64 {
        let seconds = 100.0 + (i % 97) as f64 * 7.0;
        let asked = Time::from_secs(BEGIN_S - 400_000 + i * 100);
        learner.handle_finished(FinishedTrip {
            ahead: Ahead { seconds, length_m: seconds * 9.0, straight_m: seconds * 6.0, driven_m: 0.0, turns: 9 },
            asked,
            finished: Time(asked.0 + (seconds * 3_000.0) as i64),
            predicted_ms: (seconds * 1_200.0) as u32,
        });
    }
    let table = learner.table(world.now()).to_bytes();

    world.take(BodyKind::EtaModel, table);
    stand(&mut world, 8);

    assert!(eta_s(&world) * 2 > before * 3, "{before} s became {} s", eta_s(&world));
}

#[test]
fn a_fold_under_changing_tables_and_maps_restored_anywhere_tells_the_same_bytes() {
    let graph = &town().graph;
    let trip = trip(town(), 4);
    let mut world = World::on(town());
    world.push(Record::Vehicle { driver: DRIVER, vehicle: Vehicle::Moped });
    world.push(assign_trip(&trip));
    for (i, position) in trip.fixes.iter().enumerate() {
        world.pass(4);
        if i % 5 == 1 {
            let factors = live(graph, world.now(), |edge| 1.0 + f64::from(edge.0 % 4) / 2.0 + (i % 3) as f64);
            world.take(BodyKind::LiveSpeeds, factors);
        }
        if i == trip.fixes.len() * 2 / 3 {
            world.bodies.maps.push(Arc::new(RoadMap::of(works(), BlobHash([9; 32]))));
            world.push(Record::InUse { kind: BodyKind::Map, hash: BlobHash([9; 32]) });
        }
        world.drive_at(*position);
    }
    world.pass(60);
    let bodies = world.bodies.clone();
    let fold = |every: usize| {
        let mut partition = Partition::new(PartitionId(0), Offset(0), Generation::default());
        let mut effects = Effects::default();
        for (i, batch) in world.log.iter().enumerate() {
            if every > 0 && i % every == 0 {
                partition = Partition::restore(&partition.snapshot().unwrap(), Generation::default(), &bodies).unwrap();
            }
            partition.handle_entry(Offset(i as u64), batch, &bodies, &mut effects);
        }
        (effects.updates, effects.breadcrumbs, partition.snapshot().unwrap())
    };

    let whole = fold(0);
    assert!(whole.0 == world.updates);
    assert!(fold(1) == whole, "restored before every entry");
    assert!(fold(7) == whole);
}

#[test]
fn a_fresh_route_and_its_eta_are_told_within_5_s_of_the_second_fix_far_off_the_plan() {
    let mut tried = 0;
    for seed in 0..12 {
        let there = trip(town(), 2);
        let away = trip_from(town(), there.fixes[0], seed);
        let mut world = begun(&there);
        let before = plan_of(&world);
        let off = |position: Position| {
            let pairs = before.points.windows(2);
            pairs.map(|pair| off_m(position, pair[0], pair[1])).fold(f64::INFINITY, f64::min)
        };
        // Nothing is heard of him until he is far off.
        let Some(first) = away.fixes.iter().position(|position| off(*position) > 560.0) else { continue };
        if first + 1 >= away.fixes.len() || off(away.fixes[first + 1]) < 560.0 {
            continue;
        }
        tried += 1;
        world.pass(4 * first as i64);
        world.drive_at(away.fixes[first]);
        assert_eq!(plan_of(&world), before, "one fix may be wrong");
        world.pass(4);
        let (told_before, second) = (world.updates.len(), world.now());

        world.drive_at(away.fixes[first + 1]);
        world.pass(4);

        let news: Vec<&DeliveryUpdate> = world.updates[told_before..]
            .iter()
            .filter_map(|update| match update {
                Update::Delivery(update) => Some(update),
                Update::Driver(_) | Update::Heartbeat { .. } => None,
            })
            .collect();
        let is_fresh = |update: &&DeliveryUpdate| match &update.body {
            DeliveryBody::Keyframe { view } => {
                view.plan.as_ref().is_some_and(|plan| *plan != before)
                    && view.eta.is_some_and(|eta| eta.basis == EtaBasis::Road)
                    && update.events.contains(&Event::EtaChanged)
            }
            DeliveryBody::Changed { .. } => false,
        };
        let fresh = news.iter().copied().find(is_fresh);
        let fresh = fresh.unwrap_or_else(|| panic!("seed {seed}: no fresh plan in {news:?}"));
        assert!(fresh.at.millis_since(second) <= 5_000);
        assert!(news.iter().any(|u| u.events.iter().any(|event| matches!(event, Event::OffRoute { off_m: 500.. }))));
        assert!(world.view().view.progress.unwrap().off_route_m < 100, "seed {seed}");
    }
    assert!(tried >= 3, "{tried} trips led far off");
}

#[test]
fn who_is_far_from_every_road_gets_a_plan_every_30_s_at_most() {
    let trip = trip(town(), 2);
    let graph = &town().graph;
    let (low, high) = (graph.bbox().south_west, graph.bbox().north_east);
    let mut corners = [low, high].map(|lat| [low, high].map(|lon| (lat, lon))).into_iter().flatten();
    let mut found = Vec::new();
    let field = corners.find_map(|(lat, lon)| {
        let corner = Position { lat_e7: lat.lat_e7, lon_e7: lon.lon_e7 };
        graph.candidates(corner, 560.0, maps::Profile::Car, &mut found);
        found.is_empty().then_some(corner)
    });
    let field = field.expect("the town is round, so no road is near some corner");
    let mut world = begun(&trip);
    world.pass(600);
    let (plans, keyframes) = (world.wanted.len(), keyframes(&world));

    for _ in 0..60 {
        world.pass(4);
        world.drive_at(field);
    }

    let view = world.view().view;
    assert!(view.plan.is_some() && view.progress.unwrap().off_route_m > 500, "{:?}", view.progress);
    let plans = world.wanted.len() - plans;
    assert!((2..=240 / 30 + 1).contains(&plans), "{plans} plans in 240 s");
    let keyframes = self::keyframes(&world) - keyframes;
    assert!(keyframes <= plans + 240 / 55 + 1, "{keyframes} keyframes in 240 s");
}

#[test]
fn an_outside_way_takes_the_place_of_the_plan_that_it_was_asked_for_and_of_no_other() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));
    world.drive(-2_000.0);
    assert_eq!(world.view().view.eta.unwrap().basis, EtaBasis::StraightLine);
    let wanted = *world.wanted.last().expect("nobody here knows a way");
    assert_eq!((wanted.from, wanted.destination, wanted.stop), (east(-2_000.0), east(500.0), 0));
    let way = || vec![east(-2_000.0), east(-1_000.0), east(500.0)];
    let stale = [
        RouteWanted { made: Time(wanted.made.0 - 1), ..wanted },
        RouteWanted { stop: 1, ..wanted },
        RouteWanted { epoch: Epoch { assignment: AssignmentNumber(9), ..wanted.epoch }, ..wanted },
    ];
    for stale in stale {
        world.push(planned(stale, way()));
        assert_eq!((world.counts.planned_late, world.view().view.plan), (1, None));
    }
    world.push(planned(wanted, way()));

    let view = world.view().view;
    assert_eq!(view.eta.unwrap().basis, EtaBasis::Road);
    let plan = view.plan.unwrap();
    assert_eq!(plan.points, way());
    assert!(plan.length_m.abs_diff(2_500) <= 1 && plan.duration_s.abs_diff(312) <= 1, "{plan:?}");
    world.pass(4);
    world.drive(-1_900.0);
    let progress = world.view().view.progress.unwrap();
    assert!(progress.along_m.abs_diff(100) <= 1 && progress.remaining_m.abs_diff(2_400) <= 1, "{progress:?}");
    world.push(planned(wanted, way()));
    assert_eq!(world.counts.planned_late, 1, "once is enough");
}

#[test]
fn how_far_he_has_come_does_not_jump_back_with_another_plan_or_vehicle() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));
    world.drive(-4_000.0);
    let answer = |world: &mut World| {
        let wanted = *world.wanted.last().unwrap();
        world.push(planned(wanted, vec![wanted.from, wanted.destination]));
        assert_eq!(world.counts.planned_late, 0);
    };
    let come_m = |world: &World| world.view().view.progress.unwrap().along_m;
    answer(&mut world);
    for east_m in [-3_950.0, -3_500.0, -3_000.0] {
        world.pass(20);
        world.drive(east_m);
    }
    assert!(come_m(&world).abs_diff(1_000) <= 1, "{}", come_m(&world));

    // A detour: the way is kept until there is an answer for another.
    let plane = geo::Plane::at(east(-3_000.0));
    let asked = world.wanted.len();
    for beside_m in [0.0, 20.0] {
        world.pass(20);
        world.drive_at(plane.to_position((beside_m * 100.0, 20_000.0)));
    }
    assert!(world.wanted.len() > asked && world.view().view.plan.is_some());
    answer(&mut world);
    assert!(come_m(&world).abs_diff(1_000) <= 30, "{}", come_m(&world));
    let before = come_m(&world);

    world.push(Record::Vehicle { driver: DRIVER, vehicle: Vehicle::Bicycle });
    assert!(world.view().view.plan.is_none() && come_m(&world) == before);
    answer(&mut world);
    assert_eq!(come_m(&world), before);
    world.push(ledger(DRIVER, status(6, DeliveryState::PickedUp)));
    assert_eq!(come_m(&world), 0, "another stop is another way");
}

#[test]
fn a_way_asked_for_by_car_is_not_taken_by_who_took_the_bicycle_meanwhile() {
    let mut world = World::new();
    world.push(assign(DRIVER, TO_READY));
    world.drive(-2_000.0);
    let by_car = *world.wanted.last().unwrap();
    world.push(Record::Vehicle { driver: DRIVER, vehicle: Vehicle::Bicycle });
    let by_bicycle = *world.wanted.last().unwrap();
    assert_eq!((by_car.vehicle, by_bicycle.vehicle), (Vehicle::Car, Vehicle::Bicycle));

    world.push(planned(by_car, vec![by_car.from, by_car.destination]));
    assert_eq!((world.counts.planned_late, world.view().view.plan), (1, None));
    world.push(planned(by_bicycle, vec![by_bicycle.from, by_bicycle.destination]));
    assert!(world.view().view.plan.is_some());
}

#[test]
fn who_travels_by_bicycle_is_expected_later_and_stays_a_cyclist_through_everything() {
    let trip = trip(town(), 4);
    let by_car = eta_s(&begun(&trip));
    let mut world = World::on(town());
    world.push(Record::Vehicle { driver: DRIVER, vehicle: Vehicle::Bicycle });
    begin(&mut world, &trip);
    let by_bicycle = eta_s(&world);
    assert!(by_bicycle * 2 > by_car * 3, "{by_car} s by car, {by_bicycle} s by bicycle");

    let factors = live(&town().graph, world.now(), |_| 9.0);
    world.take(BodyKind::LiveSpeeds, factors);
    stand(&mut world, 8);
    assert!(eta_s(&world).abs_diff(by_bicycle) < by_bicycle / 10, "no traffic stops a bicycle");
    assert_eq!(world.wanted.last().unwrap().vehicle, Vehicle::Bicycle);
}

#[test]
fn a_driver_who_changes_his_vehicle_loses_no_breadcrumb() {
    let trip = trip(town(), 4);
    let mut world = World::on(town());
    world.push(assign_trip(&trip));
    for (i, position) in trip.fixes.iter().enumerate() {
        world.pass(4);
        world.drive_at(*position);
        if i == trip.fixes.len() / 2 {
            world.push(Record::Vehicle { driver: DRIVER, vehicle: Vehicle::Moped });
        }
    }
    world.pass(60);

    assert_eq!(world.breadcrumbs.len(), trip.fixes.len());
    let placed = world.breadcrumbs.iter().filter(|crumb| crumb.snapped.is_some()).count();
    assert!(placed * 10 >= trip.fixes.len() * 9, "{placed} of {}", trip.fixes.len());
}

#[test]
fn maps_of_other_regions_stay_in_use_beside_each_other() {
    let far = TownOptions { centre: Position { lat_e7: 430_000_000, lon_e7: -300_000_000 }, ..TownOptions::default() };
    let far = import_bytes(&towns::extract(&far), &ImportOptions::default()).unwrap();
    let far = Arc::new(RoadMap::of(Graph::from_bytes(&far).unwrap(), BlobHash([8; 32])));
    let mut world = World::on(town());
    world.bodies.maps.push(far.clone());
    world.push(Record::InUse { kind: BodyKind::Map, hash: far.hash });

    assert_eq!(world.partition.regions().len(), 2);
    begin(&mut world, &trip(town(), 2));
    assert_eq!(world.view().view.eta.unwrap().basis, EtaBasis::Road);
    let mut there = World::on(town());
    there.bodies = world.bodies.clone();
    there.push(Record::InUse { kind: BodyKind::Map, hash: far.hash });
    begin(&mut there, &trip(far, 3));
    let view = there.view().view;
    assert!(view.eta.unwrap().basis == EtaBasis::Road && view.position.unwrap().snapped);
}

/// Standing at the beginning of a trip that was given to him.
fn begun(trip: &Trip) -> World {
    let mut world = World::on(town());
    begin(&mut world, trip);
    world
}

fn begin(world: &mut World, trip: &Trip) {
    world.push(assign_trip(trip));
    world.pass(4);
    world.drive_at(trip.fixes[0]);
}

/// Says every 4 s that he is where he was.
fn stand(world: &mut World, seconds: i64) {
    let here = world.view().view.position.unwrap().position;
    for _ in 0..seconds / 4 {
        world.pass(4);
        world.drive_at(here);
    }
}

/// How long it is said to take from now.
fn eta_s(world: &World) -> u64 {
    let arrival = world.view().view.eta.expect("he is on his way").arrival;
    arrival.millis_since(world.now()).max(0) as u64 / 1000
}

fn keyframes(world: &World) -> usize {
    world.deliveries().filter(|update| matches!(update.body, DeliveryBody::Keyframe { .. })).count()
}

fn plan_of(world: &World) -> Plan {
    world.view().view.plan.expect("there is a plan")
}

/// Factors after everybody has driven every edge so many times as slowly as usual.
fn live(graph: &Graph, now: Time, factor: impl Fn(EdgeId) -> f64) -> Vec<u8> {
    let usual = SpeedTable::free_flow(graph);
    let mut learner = LiveLearner::new(now);
    for edge in graph.edges().filter(|edge| graph.allows(*edge, maps::Profile::Car)) {
        let seconds = f64::from(graph.duration_ms(edge, maps::Profile::Car)) / 1000.0 * factor(edge);
        let traversal = Traversal { edge, length_cm: graph.length_cm(edge), seconds: seconds as f32, at: now };
        for _ in 0..20 {
            learner.handle_traversal(graph, &usual, &traversal);
        }
    }
    learner.factors(graph, now).to_bytes()
}

/// An outside router's answer: straight from place to place, at 8 m/s.
fn planned(wanted: RouteWanted, places: Vec<Position>) -> Record {
    let mut along_m = 0.0;
    let mut before = places[0];
    let mut point = |position| {
        along_m += geo::distance_cm(before, position) / 100.0;
        before = position;
        PlannedPoint { position, along_cm: (along_m * 100.0) as u32, along_ms: (along_m * 125.0) as u32 }
    };
    Record::Planned {
        to: wanted.to,
        delivery: wanted.delivery,
        epoch: wanted.epoch,
        stop: wanted.stop,
        made: wanted.made,
        way: places.into_iter().map(&mut point).collect(),
    }
}

/// Factors after everybody has crept along this plan.
fn jam(plan: &Plan, now: Time) -> Vec<u8> {
    let graph = &town().graph;
    let is_on_plan = |edge: EdgeId| {
        let middle = graph.position_at(edge, graph.length_cm(edge) / 2);
        plan.points.windows(2).any(|pair| off_m(middle, pair[0], pair[1]) < 3.0)
    };
    live(graph, now, |edge| if is_on_plan(edge) { 9.0 } else { 1.0 })
}

/// The same town with some streets closed.
pub(super) fn works() -> Graph {
    let options = TownOptions { works_every: 12, ..TownOptions::default() };
    Graph::from_bytes(&import_bytes(&towns::extract(&options), &ImportOptions::default()).unwrap()).unwrap()
}

/// How far a place lies beside a stretch.
fn off_m(place: Position, from: Position, to: Position) -> f64 {
    let plane = geo::Plane::at(place);
    let ((ax, ay), (bx, by)) = (plane.to_cm(from), plane.to_cm(to));
    let (dx, dy) = (bx - ax, by - ay);
    let share = (-(ax * dx + ay * dy) / (dx * dx + dy * dy).max(1e-9)).clamp(0.0, 1.0);
    let (x, y) = (ax + share * dx, ay + share * dy);
    (x * x + y * y).sqrt() / 100.0
}
