//! The words of Wayfix and their bytes: ids, fixes, records, updates, frames, and the sealed datagram.
