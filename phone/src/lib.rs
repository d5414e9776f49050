//! The driver's side: queue, seal, send, retry; what an app binds to.
