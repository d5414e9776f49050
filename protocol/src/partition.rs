//! Which partition a key falls into. The same function as Kafka's default partitioner, so that any Kafka client that
//! produces with our key bytes agrees with us; pinned by vectors.

use crate::id::PartitionId;

/// Kafka's default: murmur2, sign bit cleared, modulo the partition count.
pub fn partition_of(key: &[u8], partition_count: u32) -> PartitionId {
    assert!(partition_count > 0, "a topic has at least one partition");
    PartitionId((murmur2(key) & 0x7fff_ffff) % partition_count)
}

fn murmur2(data: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut h: u32 = 0x9747_b28c ^ data.len() as u32;
    let mut chunks = data.chunks_exact(4);
    for chunk in &mut chunks {
        let mut k = u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]).wrapping_mul(M);
        k ^= k >> 24;
        h = h.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let rest = chunks.remainder();
    if !rest.is_empty() {
        for (i, byte) in rest.iter().enumerate() {
            h ^= u32::from(*byte) << (8 * i);
        }
        h = h.wrapping_mul(M);
    }
    h ^= h >> 13;
    h = h.wrapping_mul(M);
    h ^ (h >> 15)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{DeliveryId, DeliveryKey, DriverId, DriverKey, TenantId, TrackerKey};

    #[test]
    fn it_agrees_with_kafka_on_the_values_of_kafkas_own_tests() {
        // org.apache.kafka.common.utils.UtilsTest.testMurmur2
        assert_eq!(murmur2(b"21") as i32, -973_932_308);
        assert_eq!(murmur2(b"foobar") as i32, -790_332_482);
        assert_eq!(murmur2(b"a-little-bit-long-string") as i32, -985_981_536);
        assert_eq!(murmur2(b"a-little-bit-longer-string") as i32, -1_486_304_829);
        assert_eq!(murmur2(b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8") as i32, -58_897_971);
        assert_eq!(murmur2(b"abc") as i32, 479_470_107);
    }

    #[test]
    fn key_bytes_are_pinned() {
        let driver = TrackerKey::Driver(DriverKey { tenant: TenantId(7), driver: DriverId(258) });
        let delivery = TrackerKey::Delivery(DeliveryKey { tenant: TenantId(7), delivery: DeliveryId(1 << 40) });

        assert_eq!(&*driver.key_bytes(), b"D\0\0\0\x07\0\0\x01\x02");
        assert_eq!(&*delivery.key_bytes(), b"O\0\0\0\x07\0\0\x01\0\0\0\0\0");
    }
}
