//! What every one must keep.
