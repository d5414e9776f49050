//! What was taken and is durable in the journal, but in no segment yet: by driver and day, packed as soon as there are
//! some, so that half a million fixes wait in some 20 MB. Readers look here first, then into the segments.

use std::collections::{BTreeSet, HashMap};
use std::mem;

use protocol::{Breadcrumb, DeliveryKey, DeviceNumber, DriverId, DriverKey, Position};

use super::codec;
use super::home::Home;

/// What makes a fix one and the same, within its driver.
pub(super) type Identity = (i64, DeviceNumber, Position);

pub(super) fn identity(breadcrumb: &Breadcrumb) -> Identity {
    let fix = &breadcrumb.record.fix;
    (fix.measured.0, breadcrumb.record.device.device, fix.position)
}

#[derive(Default)]
pub(super) struct Pending {
    drivers: HashMap<DriverKey, PendingDriver>,
    /// Who has breadcrumbs of a delivery here.
    deliveries: HashMap<DeliveryKey, BTreeSet<DriverId>>,
    bytes: usize,
    count: u64,
}

#[derive(Default)]
struct PendingDriver {
    days: Vec<PendingDay>,
    /// What the segments have of him; None: not looked up yet.
    sealed: Option<Sealed>,
    newest_ds: Option<i64>,
}

/// What is to be known of a driver's segments to see that a fix is new without looking into them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Sealed {
    /// Strays aside.
    pub newest_ds: Option<i64>,
    pub has_strays: bool,
}

/// One driver's breadcrumbs of one day.
#[derive(Clone)]
pub(super) struct PendingDay {
    pub home: Home,
    packs: Vec<Pack>,
    loose: Vec<Breadcrumb>,
}

#[derive(Clone)]
struct Pack {
    first_ds: i64,
    last_ds: i64,
    /// Of the identities in it.
    prints: Box<[u32]>,
    bytes: Box<[u8]>,
}

impl Pending {
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn count(&self) -> u64 {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// None: not looked up yet.
    pub fn sealed(&self, driver: DriverKey) -> Option<Sealed> {
        self.drivers.get(&driver)?.sealed
    }

    pub fn set_sealed(&mut self, driver: DriverKey, sealed: Sealed) {
        if let Some(known) = self.drivers.get_mut(&driver) {
            known.sealed = Some(sealed);
            return;
        }
        self.bytes += DRIVER_BYTES;
        self.drivers.insert(driver, PendingDriver { sealed: Some(sealed), ..PendingDriver::default() });
    }

    pub fn contains(&self, breadcrumb: &Breadcrumb) -> bool {
        let Some(driver) = self.drivers.get(&breadcrumb.record.device.driver_key()) else { return false };
        let sought = identity(breadcrumb);
        driver.newest_ds.is_some_and(|newest| sought.0 <= newest) && driver.days.iter().any(|day| day.contains(sought))
    }

    pub fn push(&mut self, breadcrumb: Breadcrumb) {
        let key = breadcrumb.record.device.driver_key();
        if let Some(delivery) = breadcrumb.delivery {
            let delivery = DeliveryKey { tenant: key.tenant, delivery };
            let drivers = self.deliveries.entry(delivery).or_insert_with(|| {
                self.bytes += DRIVER_BYTES;
                BTreeSet::new()
            });
            drivers.insert(key.driver);
        }
        let driver = self.drivers.entry(key).or_insert_with(|| {
            self.bytes += DRIVER_BYTES;
            PendingDriver::default()
        });
        driver.newest_ds = driver.newest_ds.max(Some(breadcrumb.record.fix.measured.0));
        let home = Home::of(&breadcrumb);
        let day = match driver.days.iter().position(|day| day.home == home) {
            Some(at) => &mut driver.days[at],
            None => {
                driver.days.push(PendingDay { home, packs: Vec::new(), loose: Vec::new() });
                let last = driver.days.len() - 1;
                &mut driver.days[last]
            }
        };
        self.count += 1;
        self.bytes += size_of::<Breadcrumb>();
        day.loose.push(breadcrumb);
        if day.loose.len() >= LOOSE_MAX {
            self.bytes -= day.loose.len() * size_of::<Breadcrumb>();
            self.bytes += day.pack();
        }
    }

    pub fn drivers(&self) -> Vec<DriverKey> {
        self.drivers.iter().filter(|(_, driver)| !driver.days.is_empty()).map(|(key, _)| *key).collect()
    }

    pub fn days(&self, driver: DriverKey) -> Vec<PendingDay> {
        self.drivers.get(&driver).map(|driver| driver.days.clone()).unwrap_or_default()
    }

    pub fn drivers_of(&self, delivery: DeliveryKey) -> Vec<DriverId> {
        self.deliveries.get(&delivery).map(|drivers| drivers.iter().copied().collect()).unwrap_or_default()
    }

    /// All of it is in segments.
    pub fn clear(&mut self) {
        *self = Pending::default();
    }
}

impl PendingDay {
    fn contains(&self, sought: Identity) -> bool {
        let print = print_of(sought);
        let may_hold =
            |pack: &&Pack| (pack.first_ds..=pack.last_ds).contains(&sought.0) && pack.prints.contains(&print);
        let is_same = |breadcrumb: &Breadcrumb| identity(breadcrumb) == sought;
        self.loose.iter().any(is_same)
            || self.packs.iter().filter(may_hold).any(|pack| pack.breadcrumbs().iter().any(is_same))
    }

    /// Packs what is loose and answers the bytes it takes.
    fn pack(&mut self) -> usize {
        let mut loose = mem::take(&mut self.loose);
        loose.sort_unstable_by_key(identity);
        let (Some(first), Some(last)) = (loose.first(), loose.last()) else { return 0 };
        let (first_ds, last_ds) = (first.record.fix.measured.0, last.record.fix.measured.0);
        let mut bytes = Vec::with_capacity(LOOSE_MAX * 40);
        codec::encode(&loose, &mut bytes);
        let prints = loose.iter().map(|breadcrumb| print_of(identity(breadcrumb))).collect();
        let pack = Pack { first_ds, last_ds, prints, bytes: bytes.into_boxed_slice() };
        let size = size_of::<Pack>() + size_of::<u32>() * pack.prints.len() + pack.bytes.len();
        self.packs.push(pack);
        size
    }

    /// Measured within the range, in no order.
    pub fn within(&self, from_ds: i64, until_ds: i64, into: &mut Vec<Breadcrumb>) {
        let is_within = |breadcrumb: &Breadcrumb| (from_ds..until_ds).contains(&breadcrumb.record.fix.measured.0);
        for pack in self.packs.iter().filter(|pack| pack.last_ds >= from_ds && pack.first_ds < until_ds) {
            into.extend(pack.breadcrumbs().into_iter().filter(is_within));
        }
        into.extend(self.loose.iter().copied().filter(is_within));
    }

    /// All, in order of measured time.
    pub fn in_order(&self) -> Vec<Breadcrumb> {
        let mut all: Vec<Breadcrumb> = self.packs.iter().flat_map(Pack::breadcrumbs).collect();
        all.extend_from_slice(&self.loose);
        all.sort_unstable_by_key(identity);
        all
    }
}

impl Pack {
    fn breadcrumbs(&self) -> Vec<Breadcrumb> {
        codec::decode(&self.bytes).expect("they were encoded in this process")
    }
}

/// 32 bits of an identity: no two that differ in one second or one metre have the same.
fn print_of((measured_ds, device, position): Identity) -> u32 {
    let mixed = (measured_ds as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(u64::from(device.0) << 40)
        .wrapping_add((position.lat_e7 as u32 as u64) << 20)
        .wrapping_add(position.lon_e7 as u32 as u64);
    (mixed ^ (mixed >> 32)) as u32
}

/// So many of a driver's day are kept as they are; more are packed.
const LOOSE_MAX: usize = 16;
/// About what the maps take for a driver or a delivery.
const DRIVER_BYTES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trail_store::samples::{DRIVER, drive};

    #[test]
    fn what_waits_is_found_and_comes_back_in_order() {
        let mut pending = Pending::default();
        let mut all = drive(DRIVER.driver.0, 500);
        let (waiting, absent) = all.split_at(450);
        let mut mixed = waiting.to_vec();
        mixed.reverse();
        mixed.swap(3, 300);

        mixed.iter().for_each(|breadcrumb| pending.push(*breadcrumb));

        assert!(waiting.iter().all(|breadcrumb| pending.contains(breadcrumb)));
        assert!(!absent.iter().any(|breadcrumb| pending.contains(breadcrumb)));
        let mut moved = waiting[7];
        moved.record.fix.position.lat_e7 += 1;
        assert!(!pending.contains(&moved));
        let in_order: Vec<Breadcrumb> = pending.days(DRIVER).iter().flat_map(PendingDay::in_order).collect();
        assert_eq!(in_order, waiting);
        assert_eq!(pending.drivers(), [DRIVER]);
        all.truncate(450);
        let delivery = DeliveryKey { tenant: DRIVER.tenant, delivery: all[0].delivery.unwrap() };
        assert_eq!(pending.drivers_of(delivery), [DRIVER.driver]);
    }

    #[test]
    fn a_fix_that_waits_takes_some_50_bytes() {
        let mut pending = Pending::default();

        drive(DRIVER.driver.0, 16_000).into_iter().for_each(|breadcrumb| pending.push(breadcrumb));

        let each = pending.bytes() as f64 / pending.count() as f64;
        assert!(each < 50.0, "{each}");
    }
}
