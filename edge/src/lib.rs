//! The daemon near the phones: listens, opens, judges, batches and ships fixes into the log.

pub mod intake;
