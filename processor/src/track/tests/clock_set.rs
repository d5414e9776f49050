//! The server's wall clock is set, forward and back, while it runs and while it is stopped: the dot moves on, ages are
//! right, and nobody is silent, or never silent, because of it.

use super::*;

const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS;
const STEPS_MS: [i64; 4] = [2_000, 2 * HOUR_MS, 2 * DAY_MS, 20 * 365 * DAY_MS];

/// How an owner's clock comes to be set.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    /// While it runs.
    Running,
    /// Between two owners on a machine that went on.
    Stopped,
    /// Between two owners of which nobody knows what their clocks have in common.
    Unknown,
}

/// A world whose wall clock is off by so much.
struct Wrong {
    world: World,
    off_ms: i64,
    owner: OwnerId,
    east_m: f64,
    fixes: usize,
}

impl Wrong {
    fn begin() -> Wrong {
        let mut world = World::new();
        world.push(Record::WallOffset { owner: OwnerId(1), boot: 1, offset_ms: 0 });
        world.push(assign(DRIVER, TO_READY));
        Wrong { world, off_ms: 0, owner: OwnerId(1), east_m: 0.0, fixes: 0 }
    }

    fn set(&mut self, by_ms: i64, way: Way) {
        self.off_ms += by_ms;
        self.world.now_ms += by_ms;
        let at = self.world.now();
        let owner = OwnerId(self.owner.0 + u64::from(way != Way::Running));
        let wall = Record::WallOffset { owner, boot: 1, offset_ms: self.off_ms };
        let claim = Record::Claim { owner, at, incarnation: 1 };
        self.owner = owner;
        match way {
            Way::Running => self.world.push(wall),
            Way::Stopped => self.world.push_all(vec![wall, claim]),
            Way::Unknown => self.world.push(claim),
        }
    }

    fn pass(&mut self, seconds: i64) {
        for _ in 0..seconds {
            self.world.now_ms += 1_000;
            let at = self.world.now();
            let owner = self.owner;
            self.world.push_all(vec![Record::Mark { edge: EDGE, received_before: at }, Record::Tick { owner, at }]);
        }
    }

    /// A fix of a phone whose clock is right, and where the dot is then.
    fn drive(&mut self) {
        self.east_m += 40.0;
        self.fixes += 1;
        let mut fix = self.world.fix(self.east_m);
        fix.fix.measured = MeasuredTime::from_time(Time(self.world.now_ms - self.off_ms));
        self.world.push(Record::Fix(fix));
    }

    fn drive_on(&mut self, fixes: usize) {
        for _ in 0..fixes {
            self.drive();
            self.pass(4);
        }
    }

    fn dot(&self) -> ShownPosition {
        let (of_driver, of_delivery) = (self.world.view_of_driver().position, self.world.view().view.position);
        assert_eq!(of_driver, of_delivery);
        of_driver.expect("there is a dot")
    }

    fn silences(&self, since: usize) -> Vec<SilentCause> {
        let of_driver = self.world.updates[since..].iter().filter_map(|update| match update {
            Update::Driver(update) => Some(&update.events),
            Update::Delivery(_) | Update::Heartbeat { .. } => None,
        });
        let silent = |event: &Event| if let Event::Silent { cause } = event { Some(*cause) } else { None };
        of_driver.flatten().filter_map(silent).collect()
    }

    /// The next fix moves the dot, and its age is right.
    fn assert_moves(&mut self, case: &str) {
        let before = self.dot();
        self.drive();
        let dot = self.dot();
        assert_ne!(dot.position, before.position, "{case}: the dot stands");
        let age_ms = self.world.now().millis_since(dot.event_time);
        assert!((0..=200).contains(&age_ms), "{case}: the age is {age_ms} ms");
        assert_eq!(dot.received, self.world.now(), "{case}");
        self.pass(4);
    }
}

#[test]
fn a_clock_that_is_set_stops_no_dot_and_silences_nobody_who_is_heard() {
    for step_ms in STEPS_MS.into_iter().flat_map(|ms| [ms, -ms]) {
        for way in [Way::Running, Way::Stopped] {
            let case = format!("{step_ms} ms, {way:?}");
            let mut wrong = Wrong::begin();
            wrong.drive_on(30);
            let since = wrong.world.updates.len();
            for by_ms in [step_ms, -step_ms] {
                wrong.set(by_ms, way);
                let told = wrong.dot();
                let age_ms = wrong.world.now().millis_since(told.event_time);
                assert!((3_800..=4_200).contains(&age_ms), "{case}: told at once, not {age_ms} ms");
                for _ in 0..10 {
                    wrong.assert_moves(&case);
                }
            }

            assert_eq!(wrong.silences(since), [], "{case}");
            wrong.pass(120);
            let measured: std::collections::BTreeSet<_> =
                wrong.world.breadcrumbs.iter().map(|crumb| crumb.record.fix.measured).collect();
            assert_eq!((measured.len(), wrong.world.breadcrumbs.len()), (wrong.fixes, wrong.fixes), "{case}: all once");
        }
    }
}

#[test]
fn who_is_silent_is_so_in_his_time_however_the_clock_is_set() {
    let timeout_s = DeliveryPolicy::default().stale_after_ms() / 1_000;
    for step_ms in STEPS_MS.into_iter().flat_map(|ms| [ms, -ms]) {
        for way in [Way::Running, Way::Stopped] {
            let case = format!("{step_ms} ms, {way:?}");
            let mut wrong = Wrong::begin();
            wrong.drive_on(10);
            let since = wrong.world.updates.len();

            wrong.set(step_ms, way);
            wrong.pass(timeout_s - 10);
            assert_eq!(wrong.silences(since), [], "{case}: not before his time");
            wrong.set(-step_ms, way);
            wrong.pass(20);

            assert_eq!(wrong.silences(since), [SilentCause::Driver], "{case}");
            assert!(wrong.world.view().view.silent.is_some(), "{case}");
            wrong.assert_moves(&case);
            assert!(wrong.world.view().view.silent.is_none(), "{case}: heard again");
        }
    }
}

#[test]
fn where_nobody_knows_how_far_it_was_set_what_lies_in_the_future_is_brought_back() {
    for step_ms in STEPS_MS {
        let case = format!("{step_ms} ms back");
        let mut wrong = Wrong::begin();
        wrong.set(step_ms, Way::Running);
        wrong.drive_on(30);

        wrong.set(-step_ms, Way::Unknown);
        wrong.pass(1);

        let since = wrong.world.updates.len();
        for _ in 0..10 {
            wrong.assert_moves(&case);
        }
        assert_eq!(wrong.silences(since), [], "{case}");
        wrong.pass(120);
        assert_eq!(wrong.silences(since), [SilentCause::Driver], "{case}");
    }
}

#[test]
fn whoever_sleeps_is_not_forgotten_and_wakes_where_he_was() {
    for step_ms in [4 * DAY_MS, -4 * DAY_MS] {
        for way in [Way::Running, Way::Stopped] {
            let case = format!("{step_ms} ms, {way:?}");
            let mut wrong = Wrong::begin();
            let mut fix = wrong.world.fix(2_000.0);
            fix.device = device(OTHER, 1);
            wrong.world.push(Record::Fix(fix));
            let fell_asleep = wrong.world.now();
            wrong.pass(1_300);
            assert_eq!(wrong.world.partition.dormant_len(), 1, "{case}");

            wrong.set(step_ms, way);
            wrong.pass(60);

            assert_eq!(wrong.world.partition.dormant_len(), 1, "{case}: he sleeps on");
            let shown = wrong.world.partition.driver_view(OTHER).and_then(|view| view.position).expect("he is known");
            assert_eq!(shown.event_time, Time(fell_asleep.0 + step_ms), "{case}");
        }
    }
}

#[test]
fn another_machines_clock_moves_nothing() {
    let mut wrong = Wrong::begin();
    wrong.drive_on(10);
    let before = wrong.dot();

    let (owner, at) = (OwnerId(9), Time(wrong.world.now_ms + 500));
    wrong.world.push_all(vec![
        Record::WallOffset { owner, boot: 2, offset_ms: 99 * DAY_MS },
        Record::Claim { owner, at, incarnation: 1 },
    ]);
    wrong.world.push(Record::WallOffset { owner: OwnerId(1), boot: 1, offset_ms: DAY_MS });

    assert_eq!(wrong.dot().event_time, before.event_time);
    assert_eq!(wrong.world.partition.clock().now(), at);
}

#[test]
fn what_was_stamped_before_a_step_back_and_lands_after_it_silences_nobody_and_hides_no_silence() {
    let timeout_s = DeliveryPolicy::default().stale_after_ms() / 1_000;
    for back_ms in [2 * HOUR_MS, 2 * DAY_MS] {
        let case = format!("{back_ms} ms back");
        let mut wrong = Wrong::begin();
        wrong.drive_on(30);
        let since = wrong.world.updates.len();
        let (before, mut late) = (wrong.world.now(), wrong.world.fix(1_200.0));
        late.fix.measured = MeasuredTime::from_time(Time(before.0 - wrong.off_ms));
        wrong.fixes += 1;

        wrong.set(-back_ms, Way::Running);
        let ping = HeardRecord {
            device: device(DRIVER, 1),
            session_start: 1,
            lowest_held: FixNumber(0),
            edge: EDGE,
            door: Door::Udp,
            received: before,
            phone_state: Some(PhoneState(PhoneState::STANDING)),
        };
        let mark = Record::Mark { edge: EDGE, received_before: before };
        wrong.world.push_all(vec![Record::Fix(late), Record::Heard(ping), mark]);
        wrong.pass(2);
        for _ in 0..5 {
            wrong.assert_moves(&case);
        }
        assert!(!stands(&wrong.world.updates[since..]), "{case}: he drives");
        assert_eq!(wrong.silences(since), [], "{case}");
        wrong.pass(timeout_s + 15);
        assert_eq!(wrong.silences(since), [SilentCause::Driver], "{case}");
    }
}

fn stands(updates: &[Update]) -> bool {
    let is_stationary = |event: &Event| matches!(event, Event::Stationary { .. });
    updates.iter().any(|update| match update {
        Update::Driver(update) => update.events.iter().any(is_stationary),
        Update::Delivery(_) | Update::Heartbeat { .. } => false,
    })
}

#[test]
fn after_a_mark_of_before_a_step_back_nobody_is_visited_at_every_tick() {
    let mut wrong = Wrong::begin();
    wrong.drive_on(30);
    let before = wrong.world.now();
    wrong.set(-2 * HOUR_MS, Way::Running);
    wrong.world.push(Record::Mark { edge: EDGE, received_before: before });
    wrong.drive_on(2);

    assert!(visits(&mut wrong.world, 14) <= 4);
}

#[test]
fn while_a_mark_stands_or_falls_behind_nobody_is_visited_at_every_tick() {
    for (behind_each_s, visits_max) in [(1_000, 15), (500, 50)] {
        let mut world = World::new();
        for second in 0..25 {
            world.pass(1);
            if second % 4 == 0 {
                world.drive(0.0);
            }
        }
        let stood = world.now();
        let mut visits = 0;
        for second in 1..=200 {
            world.now_ms += 1_000;
            let received_before = Time(stood.0 + second * (1_000 - behind_each_s));
            world.push_all(vec![
                Record::Mark { edge: EDGE, received_before },
                Record::Heard(HeardRecord {
                    device: device(OTHER, 1),
                    session_start: 1,
                    lowest_held: FixNumber(0),
                    edge: EDGE,
                    door: Door::Udp,
                    received: received_before,
                    phone_state: None,
                }),
            ]);
            visits += u32::from(is_visited(&mut world));
        }
        assert!(visits <= visits_max, "{visits} visits");
    }
}

/// At how many of the next ticks the driver is visited.
fn visits(world: &mut World, seconds: u32) -> u32 {
    let visited = |_| {
        world.now_ms += 1_000;
        world.push(Record::Mark { edge: EDGE, received_before: world.now() });
        u32::from(is_visited(world))
    };
    (0..seconds).map(visited).sum()
}

/// Ticks, and says whether the driver was visited.
fn is_visited(world: &mut World) -> bool {
    let before = world.partition.trackers.visits_of(TrackerKey::Driver(DRIVER));
    world.push(Record::Tick { owner: OwnerId(1), at: world.now() });
    world.partition.trackers.visits_of(TrackerKey::Driver(DRIVER)) > before
}

#[test]
fn the_fixes_of_an_outage_of_the_fold_leave_nobody_silent_after_it() {
    let mut wrong = Wrong::begin();
    wrong.drive_on(10);
    let since = wrong.world.updates.len();

    // Nobody folds for two minutes; edges go on, and then another owner folds what has piled up.
    for _ in 0..30 {
        wrong.drive();
        for _ in 0..4 {
            wrong.world.now_ms += 1_000;
            wrong.world.push(Record::Mark { edge: EDGE, received_before: wrong.world.now() });
        }
    }
    wrong.set(0, Way::Unknown);
    wrong.pass(1);

    assert_eq!(wrong.silences(since), []);
    wrong.assert_moves("after the outage");
}

#[test]
fn a_claim_by_a_clock_that_the_edges_contradict_moves_no_time_until_its_owner_ticks() {
    for off_ms in [2 * HOUR_MS, -2 * HOUR_MS, 20_000] {
        let mut wrong = Wrong::begin();
        wrong.drive_on(10);
        let (since, now) = (wrong.world.updates.len(), wrong.world.now());

        let (owner, at) = (OwnerId(9), Time(now.0 + off_ms));
        wrong.world.push(Record::Claim { owner, at, incarnation: 1 });
        for _ in 0..20 {
            wrong.world.now_ms += 1_000;
            wrong.world.push(Record::Mark { edge: EDGE, received_before: wrong.world.now() });
            wrong.drive();
        }
        assert_eq!(wrong.world.partition.clock().now(), now, "{off_ms}");
        wrong.owner = OwnerId(10);
        wrong.set(0, Way::Unknown);
        wrong.pass(2);

        assert_eq!(wrong.silences(since), [], "{off_ms}");
        assert_eq!(wrong.world.partition.clock().now(), wrong.world.now());
        wrong.assert_moves("by the right clock");
    }
}
