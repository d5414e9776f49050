//! What a process has only one of and hands to each of its roles: `start(config, parts, context)`.

use crate::admin::Readiness;
use crate::{Clock, Drain, Meter};

/// Cheap to clone.
#[derive(Clone, Debug)]
pub struct ProcessContext {
    pub clock: Clock,
    pub meter: Meter,
    pub readiness: Readiness,
    /// Everything that a role begins is spawned here.
    pub drain: Drain,
}

impl ProcessContext {
    /// The same for a role that stops with this part of the drain.
    pub fn within(&self, part: &Drain) -> ProcessContext {
        ProcessContext { drain: part.clone(), ..self.clone() }
    }
}
