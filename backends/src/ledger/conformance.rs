//! What every delivery ledger must keep, whatever it stands on.
