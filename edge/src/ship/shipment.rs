//! A shipment: what several parcels became, one entry for each partition, on its way to the log in one append.

use backends::log::{Append, Topic};
use bytes::Bytes;
use protocol::envelope::{EncodedRecords, encode_records};
use protocol::{EdgeId, PartitionId, Record, Time};
use wincode::{SchemaRead, SchemaWrite};

use crate::intake::Parcel;
use crate::intake::marks::Marks;

/// One parcel that went into a shipment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct Origin {
    pub thread: u32,
    pub sequence: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, SchemaWrite, SchemaRead)]
pub struct ShippedEntry {
    pub partition: u32,
    /// The envelope of a `RecordBatch`.
    pub value: Bytes,
}

/// As it is appended, and as it lies in the spool.
#[derive(Clone, PartialEq, Eq, Debug, Default, SchemaWrite, SchemaRead)]
pub struct Shipment {
    /// Which run of the process packed it: parcels of an earlier one have nobody left to tell.
    pub run: u64,
    pub origins: Vec<Origin>,
    pub record_count: u64,
    pub entries: Vec<ShippedEntry>,
}

impl Shipment {
    /// Packs parcels in order, below them a mark if one is due. The parcels stay whole.
    pub fn pack(run: u64, edge: EdgeId, parcels: &[Parcel], marks: &mut Marks, now: Time) -> Self {
        let mut origins = Vec::with_capacity(parcels.len());
        for parcel in parcels {
            marks.handle_parcel(parcel.thread, parcel.steps, parcel.received_before);
            origins.push(Origin { thread: parcel.thread as u32, sequence: parcel.sequence });
        }
        let mut mark = EncodedRecords::default();
        if let Some(received_before) = marks.poll_mark(now) {
            mark.push(&Record::Mark { edge, received_before });
        }
        let partition_count = parcels.iter().map(|parcel| parcel.partitions.len()).max().unwrap_or(0);
        let mut entries = Vec::new();
        for partition in 0..partition_count {
            let of_parcels = parcels.iter().filter_map(|parcel| parcel.partitions.get(partition));
            let parts = of_parcels.chain([&mark]).filter(|part| !part.is_empty());
            if parts.clone().next().is_some() {
                entries.push(ShippedEntry { partition: partition as u32, value: Bytes::from(encode_records(parts)) });
            }
        }
        let record_count = parcels.iter().map(Parcel::record_count).sum();
        Shipment { run, origins, record_count, entries }
    }

    pub fn len_bytes(&self) -> usize {
        self.entries.iter().map(|entry| entry.value.len()).sum()
    }

    /// What the log is asked to append; the bytes are shared, not copied.
    pub fn to_appends(&self) -> Vec<Append> {
        let append = |entry: &ShippedEntry| Append {
            topic: Topic::Records,
            partition: PartitionId(entry.partition),
            key: Bytes::new(),
            value: entry.value.clone(),
        };
        self.entries.iter().map(append).collect()
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len_bytes() + 64);
        wincode::serialize_into(&mut bytes, self).expect("a vector takes all that is written to it");
        bytes
    }

    /// None for what `to_bytes` did not write.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        wincode::deserialize_exact(bytes).ok()
    }
}
