//! How keyspaces lie in memory and in tables, so that neither grows with what retention keeps on disk.
//!
//! Partitions are read by ranges of offsets alone, never by a single key that may be missing, so their tables have no
//! filters. Indexes of tables are read as blocks, through the cache and its budget: pinned ones would stay as long as
//! their tables do, which is days. Blocks are large, so that an index has few entries.

use fjall::config::{BlockSizePolicy, FilterPolicy, PinningPolicy};
use fjall::{AbstractTree, Database, Keyspace, KeyspaceCreateOptions};

/// Of one partition.
pub fn partition_options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default()
        .max_memtable_size(MEMTABLE_BYTES_MAX)
        .data_block_size_policy(BlockSizePolicy::all(BLOCK_BYTES))
        .filter_policy(FilterPolicy::disabled())
        .filter_block_pinning_policy(PinningPolicy::disabled())
        .index_block_pinning_policy(PinningPolicy::disabled())
}

/// Of the keyspace beside the partitions: a few hundred keys, one of which every batch writes anew.
pub fn meta_options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(META_MEMTABLE_BYTES_MAX)
}

/// Flushes the memtable of `meta` when it holds many old values of its few keys, and the largest of `partitions` until no
/// more than `bytes_max` waits in memory, and would be replayed at the next start.
pub fn bound_memory(
    database: &Database,
    meta: &Keyspace,
    partitions: &[Keyspace],
    bytes_max: u64,
) -> fjall::Result<()> {
    let mut excess = database.write_buffer_size().saturating_sub(bytes_max);
    let meta_bytes = meta.tree.active_memtable().size();
    if meta_bytes >= META_MEMTABLE_BYTES_MAX {
        meta.rotate_memtable()?;
        excess = excess.saturating_sub(meta_bytes);
    }
    let mut sizes: Vec<(u64, &Keyspace)> =
        partitions.iter().map(|keyspace| (keyspace.tree.active_memtable().size(), keyspace)).collect();
    sizes.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
    for (size, keyspace) in sizes {
        if excess == 0 || size == 0 {
            break;
        }
        keyspace.rotate_memtable()?;
        excess = excess.saturating_sub(size);
    }
    Ok(())
}

/// Large, so that busy partitions make few and large tables.
const MEMTABLE_BYTES_MAX: u64 = 16 << 20;
/// A memtable keeps every value that a key has had: what a quiet log writes of its commit number in two minutes.
const META_MEMTABLE_BYTES_MAX: u64 = 1 << 20;
/// One entry of an index for so much; a reader far behind reads whole blocks anyway.
const BLOCK_BYTES: u32 = 32 << 10;
/// Files of tables that are held open; others are opened for each block that is read of them.
pub const OPEN_TABLES_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use protocol::Offset;

    use super::super::layout::{Layout, Slot};
    use super::super::store::{Change, Store, StoreOptions};
    use super::*;

    #[test]
    fn values_that_a_key_had_before_do_not_pile_up_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), &Layout::new(1), StoreOptions::default()).unwrap();

        for _ in 0..40 {
            let value = vec![7; 64 << 10];
            store.write(vec![Change::Meta { key: b"commit/nobody".to_vec(), value }]).unwrap();
        }
        store.bound_memory(32 << 20).unwrap();

        eventually(|| store.memory().memtables_bytes < META_MEMTABLE_BYTES_MAX);
    }

    #[test]
    fn tables_take_no_memory_that_stays_and_few_descriptors() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), &Layout::new(1), StoreOptions::default()).unwrap();
        let tables = OPEN_TABLES_MAX as u64 + 20;

        for table in 0..tables {
            let entry = |n| Change::Entry { slot: Slot(0), offset: Offset(table * 100 + n), bytes: vec![7; 1 << 10] };
            store.write((0..100).map(entry).collect()).unwrap();
            store.bound_memory(0).unwrap();
            eventually(|| store.memory().memtables_bytes < 64 << 10);
        }

        let memory = store.memory();
        assert!(memory.tables >= tables / 2, "{memory:?}");
        assert_eq!(memory.pinned_bytes, 0);
        let open = std::fs::read_dir("/proc/self/fd").unwrap();
        let open = open.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
        let open = open.filter(|path| path.starts_with(folder.path())).count();
        assert!(open <= OPEN_TABLES_MAX + 8, "{open} files of {} tables are open", memory.tables);
    }

    fn eventually(is_so: impl Fn() -> bool) {
        let begun = Instant::now();
        while !is_so() {
            assert!(begun.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
