//! Writer and reader over a real log.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use daemon::{Clock, Drain};
use protocol::{DeliveryPolicy, DeviceKey, DeviceNumber, DriverId, PartitionId, TenantId, Time};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::log::embedded::{EmbeddedLog, EmbeddedLogConfig};
use crate::log::front::{Front, Gate};
use crate::log::{Append, Appended, Log, Topic};

#[tokio::test]
async fn a_reader_comes_to_what_was_written_before_and_after_it_began() {
    let (_folder, log) = log();
    let writer = ControlWriter::new(log.clone(), region_key());
    let policy = DeliveryPolicy { stale_after_s: 77, ..DeliveryPolicy::default() };
    writer.put_policy(TenantId(1), policy).await.unwrap();
    writer.rotate(Moment::of(NOW)).await.unwrap();
    let drain = Drain::default();

    let reader = ControlReader::start(log.clone(), region_key(), &drain, Clock::system());
    tokio::time::timeout(PATIENCE, reader.until_current()).await.unwrap();

    let before = reader.snapshot();
    assert_eq!(before.policy(TenantId(1)), policy);
    assert_eq!(before.policy(TenantId(2)), DeliveryPolicy::default());
    let credential = credential::issue(device(), &before.token_keys).unwrap();
    assert_eq!(before.check_credential(&credential), Ok(device()));
    writer.revoke(device()).await.unwrap();
    let mut changes = reader.subscribe();
    tokio::time::timeout(PATIENCE, changes.wait_for(|control| !control.revoked.is_empty())).await.unwrap().unwrap();
    assert_eq!(reader.snapshot().check_credential(&credential), Err(CredentialError::Revoked));
    assert!(!reader.is_degraded(Time(Clock::system().monotonic_ms())));
    assert!(drain.stop(PATIENCE).await);
    assert_eq!(drain.failure(), None);
}

#[tokio::test]
async fn what_holds_is_the_same_whoever_reads_it_and_however() {
    let (_folder, log) = log();
    let writer = ControlWriter::new(log.clone(), region_key());
    for day in 0..10 {
        writer.rotate(Moment::of(NOW + DAY * day)).await.unwrap();
    }
    let drain = Drain::default();
    let reader = ControlReader::start(log.clone(), region_key(), &drain, Clock::system());
    tokio::time::timeout(PATIENCE, reader.until_current()).await.unwrap();

    let loaded = Control::load(&*log, &region_key()).await.unwrap();

    assert_eq!(*reader.snapshot(), loaded);
    let now = NOW + DAY * 9;
    let sealing = loaded.sealing_key(now).unwrap();
    assert_eq!(sealing.span.kid, Kid(9 % 4));
    assert_eq!(loaded.opening_key(Kid(8 % 4), now).map(|key| key.span.kid), Some(Kid(0)));
    assert_eq!(loaded.opening_key(Kid(0), now + DAY * 5), None, "a key past its end opens nothing");
    assert!(loaded.fleet_keys.len() >= 3 && loaded.fleet_keys.len() <= 4);
    drain.stop(PATIENCE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_first_starts_at_once_one_makes_the_keys_and_all_have_them() {
    let (_folder, log) = log();
    let slow: Arc<dyn Log> = Arc::new(Slow(log.clone()));
    let starting: Vec<_> = (0..5)
        .map(|_| {
            let slow = slow.clone();
            tokio::spawn(async move {
                let writer = ControlWriter::new(slow.clone(), region_key());
                writer.until_keys(Clock::system(), &CancellationToken::new()).await.unwrap();
                Control::load(&*slow, &region_key()).await.unwrap()
            })
        })
        .collect();

    let mut known = Vec::new();
    for start in starting {
        known.push(tokio::time::timeout(PATIENCE, start).await.expect("a start does not wait for ever").unwrap());
    }

    let token_keys: Vec<_> = known.iter().map(|control| control.token_keys.clone()).collect();
    assert!(!token_keys[0].is_empty());
    assert!(token_keys.iter().all(|keys| *keys == token_keys[0]), "whoever issues a credential, all can check it");
    let sealing = |control: &Control| control.sealing_key(Time(Clock::system().now_ms())).cloned();
    assert!(known.iter().all(|control| sealing(control).is_some() && sealing(control) == sealing(&known[0])));
}

/// A log to which an entry takes a while: long enough for another start to look and find nothing.
struct Slow(Arc<dyn Log>);

impl Front for Slow {
    fn behind(&self) -> &dyn Log {
        &*self.0
    }

    fn gate(&self) -> Arc<dyn Gate> {
        Arc::new(Wait)
    }
}

struct Wait;

#[async_trait]
impl Gate for Wait {
    async fn pass(&self, _: &[Append]) -> Option<Appended> {
        tokio::time::sleep(Duration::from_millis(20)).await;
        None
    }
}

#[tokio::test]
async fn rotating_twice_changes_nothing() {
    let (_folder, log) = log();
    let writer = ControlWriter::new(log.clone(), region_key());
    writer.rotate(Moment::of(NOW)).await.unwrap();
    let before = Control::load(&*log, &region_key()).await.unwrap();

    writer.rotate(Moment::of(NOW)).await.unwrap();

    assert_eq!(Control::load(&*log, &region_key()).await.unwrap(), before);
    assert_eq!(before.fleet_keys.len(), 2, "one in use and one to come");
}

#[tokio::test]
async fn garbage_and_other_regions_keys_are_passed_by() {
    let (_folder, log) = log();
    let other = ControlWriter::new(log.clone(), RegionKey::new(Secret::new([9; 32])));
    other.put_token_key(TokenKeyId(1), &Secret::random()).await.unwrap();
    other.rotate(Moment::of(NOW)).await.unwrap();
    for (key, value) in [(&b"?"[..], &b"x"[..]), (b"F\0", b"x"), (b"", b""), (b"P\0\0\0\x01", b"W")] {
        let (key, value) = (bytes::Bytes::from_static(key), bytes::Bytes::from_static(value));
        let append = Append { topic: Topic::Control, partition: PartitionId(0), key, value };
        log.append(&[append]).await.into_offsets().unwrap();
    }
    let writer = ControlWriter::new(log.clone(), region_key());
    writer.revoke(device()).await.unwrap();

    let control = Control::load(&*log, &region_key()).await.unwrap();

    assert!(control.fleet_keys.is_empty() && control.token_keys.is_empty());
    assert_eq!(control.revoked.len(), 1);
}

#[tokio::test]
async fn control_that_cannot_be_read_grows_old_and_goes_on_to_hold() {
    let (_folder, log) = log();
    ControlWriter::new(log.clone(), region_key()).revoke(device()).await.unwrap();
    let drain = Drain::default();
    let reader = ControlReader::start(log.clone(), region_key(), &drain, Clock::system());
    assert!(reader.is_degraded(Time(Clock::system().monotonic_ms())), "nothing is known yet");
    tokio::time::timeout(PATIENCE, reader.until_current()).await.unwrap();
    let current = Time(Clock::system().monotonic_ms());

    drain.stop(PATIENCE).await;

    assert!(!reader.is_degraded(current));
    assert!(reader.is_degraded(current + DEGRADED_AFTER + Duration::from_secs(1)));
    assert_eq!(reader.snapshot().revoked.len(), 1);
}

#[tokio::test]
async fn the_rotation_makes_the_first_keys_by_itself() {
    let (_folder, log) = log();
    let drain = Drain::default();
    let reader = ControlReader::start(log.clone(), region_key(), &drain, Clock::system());

    ControlWriter::new(log.clone(), region_key()).start_rotation(&drain, Clock::system());

    let mut changes = reader.subscribe();
    let has_keys = |control: &Arc<Control>| control.fleet_keys.len() == 2 && !control.token_keys.is_empty();
    tokio::time::timeout(PATIENCE, changes.wait_for(has_keys)).await.unwrap().unwrap();
    assert!(drain.stop(PATIENCE).await);
    assert_eq!(drain.failure(), None);
}

fn log() -> (tempfile::TempDir, Arc<dyn Log>) {
    let folder = tempfile::tempdir().unwrap();
    let config = EmbeddedLogConfig { partitions: 1, ..EmbeddedLogConfig::default() };
    let log = Arc::new(EmbeddedLog::open(folder.path(), config).unwrap());
    (folder, log)
}

fn region_key() -> RegionKey {
    RegionKey::new(Secret::new([4; 32]))
}

fn device() -> DeviceKey {
    DeviceKey { tenant: TenantId(1), driver: DriverId(2), device: DeviceNumber(3) }
}

const NOW: Time = Time(1_700_000_000_000);
const DAY: Duration = Duration::from_secs(24 * 3600);
const PATIENCE: Duration = Duration::from_secs(20);
