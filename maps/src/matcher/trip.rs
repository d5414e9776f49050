//! A whole trip through the online matcher, fed fix by fix as live, and the driven route as lines.

use protocol::{Fix, MeasuredTime, Position};

use super::{Matched, Matcher, Observation, Scratch, Snapped};
use crate::class::Profile;
use crate::geo;
use crate::graph::{EdgeId, Graph};

/// Feeds the fixes one by one; answers the final word on each, in order.
pub fn match_trip(graph: &Graph, scratch: &mut Scratch, profile: Profile, fixes: &[Fix]) -> Vec<Matched> {
    let mut matcher = Matcher::new(profile);
    let mut matched = Vec::with_capacity(fixes.len());
    for (tag, fix) in (0..).zip(fixes) {
        if matcher.poll_timeout().is_some_and(|due| due < fix.measured) {
            // As live, where a clock runs on while no fix comes: no place waits for longer than the look-ahead.
            matcher.handle_timeout(MeasuredTime(fix.measured.0.saturating_sub(1)));
            while let Some(one) = matcher.poll_matched(graph, scratch) {
                matched.push(one);
            }
        }
        matcher.handle_fix(graph, scratch, &Observation::of(tag, fix));
        while let Some(one) = matcher.poll_matched(graph, scratch) {
            matched.push(one);
        }
    }
    matcher.flush();
    while let Some(one) = matcher.poll_matched(graph, scratch) {
        matched.push(one);
    }
    matched
}

/// The driven route as lines; a break begins a new one.
pub fn route_parts(graph: &Graph, matched: &[Matched]) -> Vec<Vec<Position>> {
    let mut parts: Vec<Vec<Position>> = Vec::new();
    let mut last: Option<Snapped> = None;
    for one in matched {
        let Some(snapped) = one.snapped else { continue };
        if one.is_break {
            parts.push(vec![snapped.position]);
            last = Some(snapped);
            continue;
        }
        let (Some(part), Some(from)) = (parts.last_mut(), last) else { continue };
        let mut at = (from.edge, from.along_cm);
        for edge in &one.route {
            // Turning round on an edge goes no further than where it was turned.
            if graph.reverse(at.0) == Some(*edge) {
                at = (*edge, graph.length_cm(*edge).saturating_sub(at.1));
            } else {
                push_stretch(graph, at, graph.length_cm(at.0), part);
                at = (*edge, 0);
            }
        }
        push_stretch(graph, at, snapped.along_cm, part);
        last = Some(Snapped { along_cm: snapped.along_cm.max(at.1), ..snapped });
    }
    parts
}

/// Adds the points of an edge between two places of it, the first one left out.
fn push_stretch(graph: &Graph, (edge, from_cm): (EdgeId, u32), to_cm: u32, part: &mut Vec<Position>) {
    let mut along_cm = 0.0;
    let mut previous: Option<Position> = None;
    for point in graph.geometry(edge) {
        along_cm += previous.map_or(0.0, |p| geo::distance_cm(p, point));
        previous = Some(point);
        if along_cm > f64::from(from_cm) && along_cm < f64::from(to_cm) {
            part.push(point);
        }
    }
    if to_cm > from_cm {
        part.push(graph.position_at(edge, to_cm));
    }
}
