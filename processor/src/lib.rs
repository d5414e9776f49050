//! The fold: records in, updates out; and the sinks that carry updates on.
