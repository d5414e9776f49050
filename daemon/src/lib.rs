//! What every Wayfix process needs and that knows nothing of deliveries: clock, settings, logs, metrics, drain, retry.
