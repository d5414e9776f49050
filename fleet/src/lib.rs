//! A simulated fleet on a real map, with ground truth and bad networks, and a replayer of recorded traces.
