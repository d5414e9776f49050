//! What the tags of an extract forbid, read and judged apart from the import: another reader of the file
//! (`osmpbfreader`'s own), the ways' points instead of our edges, and the OpenStreetMap wiki's rules written down a second
//! time, from the side of what is forbidden. A route is held against it way by way and point by point.

use std::collections::HashMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use anyhow::Context;
use maps::{EdgeId, Graph, Profile};
use osmpbfreader::{OsmId, OsmObj, OsmPbfReader, Relation, Tags};

/// An extract as it says itself.
pub struct Tagged {
    ways: HashMap<i64, Way>,
    /// By position in 10⁻⁷ degrees; a few points lie on one another.
    node_at: HashMap<(i32, i32), Vec<i64>>,
    /// Barriers and other points that say who may pass.
    node_tags: HashMap<i64, Tags>,
    /// By the way that one comes from.
    restrictions: HashMap<i64, Vec<Restriction>>,
}

struct Way {
    tags: Tags,
    nodes: Vec<i64>,
}

struct Restriction {
    is_only: bool,
    tags: Tags,
    via_node: Option<i64>,
    via_ways: Vec<i64>,
    to: Vec<i64>,
}

/// One step of a route: from a point to the next, on a way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Step {
    way: i64,
    from: i64,
    to: i64,
    /// Against the order of the way's points.
    is_backward: bool,
}

impl Tagged {
    pub fn read(extract: &Path) -> anyhow::Result<Tagged> {
        let file = File::open(extract).with_context(|| format!("open {}", extract.display()))?;
        let mut tagged = Tagged {
            ways: HashMap::new(),
            node_at: HashMap::new(),
            node_tags: HashMap::new(),
            restrictions: HashMap::new(),
        };
        for object in OsmPbfReader::new(BufReader::new(file)).iter() {
            match object.context("read the extract")? {
                OsmObj::Node(node) => {
                    tagged.node_at.entry((node.decimicro_lat, node.decimicro_lon)).or_default().push(node.id.0);
                    if !node.tags.is_empty() {
                        tagged.node_tags.insert(node.id.0, node.tags);
                    }
                }
                OsmObj::Way(way) => {
                    let nodes = way.nodes.iter().map(|node| node.0).collect();
                    tagged.ways.insert(way.id.0, Way { tags: way.tags, nodes });
                }
                OsmObj::Relation(relation) => tagged.take_restriction(&relation),
            }
        }
        Ok(tagged)
    }

    fn take_restriction(&mut self, relation: &Relation) {
        if !is(&relation.tags, "type", "restriction") {
            return;
        }
        let members = |role: &str| {
            let of_role = relation.refs.iter().filter(|member| member.role == role).map(|member| member.member);
            of_role.collect::<Vec<OsmId>>()
        };
        let ways = |role: &str| members(role).iter().filter_map(|id| Some(id.way()?.0)).collect::<Vec<i64>>();
        let via_nodes: Vec<i64> = members("via").iter().filter_map(|id| Some(id.node()?.0)).collect();
        let via_ways = ways("via");
        let keys = [
            "restriction",
            "restriction:vehicle",
            "restriction:motor_vehicle",
            "restriction:motorcar",
            "restriction:moped",
            "restriction:bicycle",
        ];
        let Some(kind) = keys.iter().find_map(|key| relation.tags.get(*key)) else {
            return;
        };
        let is_at_times = relation.tags.iter().any(|(key, value)| {
            key.starts_with("day_")
                || key.starts_with("hour_")
                || (key.starts_with("restriction") && value.contains('@'))
        });
        if is_at_times || (via_nodes.len() != 1 && via_ways.is_empty()) {
            return;
        }
        for from in ways("from") {
            self.restrictions.entry(from).or_default().push(Restriction {
                is_only: kind.starts_with("only_"),
                tags: relation.tags.clone(),
                via_node: via_nodes.first().copied().filter(|_| via_ways.is_empty()),
                via_ways: via_ways.clone(),
                to: ways("to"),
            });
        }
    }

    /// What a route does that it may not, in words; empty for a good one.
    pub fn violations(&self, graph: &Graph, edges: &[EdgeId], profile: Profile) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut steps = Vec::new();
        for edge in edges {
            match self.steps(graph, *edge) {
                Some(of_edge) => steps.extend(of_edge),
                None => wrong.push(format!("edge {} is not on way {}", edge.0, graph.osm_way(*edge))),
            }
        }
        let mut judged = HashMap::new();
        for step in &steps {
            let why = *judged.entry((step.way, step.is_backward)).or_insert_with(|| {
                self.ways.get(&step.way).and_then(|way| closed(&way.tags, profile, step.is_backward))
            });
            if let Some(why) = why {
                wrong.push(format!("way {}: {why}", step.way));
            }
        }
        for pair in steps.windows(2) {
            let is_through = pair[0].from != pair[1].to;
            if let Some(tags) = self.node_tags.get(&pair[0].to).filter(|tags| is_through && stops(tags, profile)) {
                wrong.push(format!("node {}: {}", pair[0].to, said(tags)));
            }
        }
        wrong.extend(self.turns(&steps, profile));
        wrong
    }

    /// An edge's line as steps between the points of its way.
    fn steps(&self, graph: &Graph, edge: EdgeId) -> Option<Vec<Step>> {
        let way = graph.osm_way(edge);
        let nodes = &self.ways.get(&way)?.nodes;
        let line: Vec<&Vec<i64>> =
            graph.geometry(edge).map(|p| self.node_at.get(&(p.lat_e7, p.lon_e7))).collect::<Option<_>>()?;
        let mut steps = Vec::new();
        for pair in line.windows(2) {
            let is_pair = |a: &i64, b: &i64| pair[0].contains(a) && pair[1].contains(b);
            let ahead = nodes.windows(2).find(|n| is_pair(&n[0], &n[1])).map(|n| (n[0], n[1], false));
            let (from, to, is_backward) =
                ahead.or_else(|| nodes.windows(2).find(|n| is_pair(&n[1], &n[0])).map(|n| (n[1], n[0], true)))?;
            steps.push(Step { way, from, to, is_backward });
        }
        Some(steps)
    }

    fn turns(&self, steps: &[Step], profile: Profile) -> Vec<String> {
        let mut wrong = Vec::new();
        for (at, step) in steps.iter().enumerate().take(steps.len().saturating_sub(1)) {
            for rule in self.restrictions.get(&step.way).into_iter().flatten().filter(|rule| rule.binds(profile)) {
                if let Some(said) = rule.broken(&steps[at..]) {
                    wrong.push(format!("from way {} at node {}: {said}", step.way, step.to));
                }
            }
        }
        wrong
    }

    /// Whether a way says itself that it is gravel, sand or the like.
    pub fn is_loose(&self, way: i64) -> bool {
        let surface = self.ways.get(&way).and_then(|way| way.tags.get("surface"));
        surface.is_some_and(|surface| LOOSE.contains(&surface.as_str()))
    }

    /// The most telling tags of a way.
    pub fn tags_of(&self, way: i64) -> String {
        self.ways.get(&way).map_or_else(|| "not in the extract".to_owned(), |way| said(&way.tags))
    }
}

impl Restriction {
    fn binds(&self, profile: Profile) -> bool {
        let excepted: Vec<&str> =
            self.tags.get("except").map_or(vec![], |text| text.split(';').map(str::trim).collect());
        let (own, groups): (&str, &[&str]) = match profile {
            Profile::Car => ("motorcar", &["motor_vehicle", "vehicle"]),
            Profile::Moped => ("moped", &["motor_vehicle", "vehicle"]),
            Profile::Bicycle => ("bicycle", &["vehicle"]),
            Profile::Foot => return false,
        };
        let names = |name: &str| name == own || groups.contains(&name);
        let is_general = self.tags.contains_key("restriction");
        let is_for_us = self.tags.keys().any(|key| key.strip_prefix("restriction:").is_some_and(names));
        (is_general || is_for_us) && !excepted.iter().any(|name| names(name))
    }

    /// Whether the steps that follow one on the way that the rule begins with break it. Only what cannot be read in two
    /// ways counts: the way must end at the junction, or the turn must be onto another way.
    fn broken(&self, steps: &[Step]) -> Option<String> {
        let said =
            || self.tags.iter().find(|(key, _)| key.starts_with("restriction")).map(|(_, value)| value.to_string());
        let (here, mut next) = (steps[0], 1);
        match self.via_node {
            Some(node) if node != here.to => return None,
            Some(_) => {}
            None => {
                if !self.via_ways.contains(&steps[1].way) || here.way == steps[1].way {
                    return None;
                }
                let mut passed = Vec::new();
                while next < steps.len() && self.via_ways.contains(&steps[next].way) {
                    passed.push(steps[next].way);
                    next += 1;
                }
                if next == steps.len() || self.via_ways.iter().any(|way| !passed.contains(way)) {
                    return None;
                }
            }
        }
        let onto = steps[next];
        let is_named = self.to.contains(&onto.way);
        let is_back = onto.to == steps[next - 1].from;
        let is_u_turn_rule = said().is_some_and(|said| said.ends_with("_u_turn"));
        let is_broken = match self.is_only {
            true => !is_named && onto.way != here.way,
            // From a way onto itself: turning round is meant, or going straight on, by the rule's name.
            false if onto.way == here.way => is_named && self.via_node.is_some() && is_u_turn_rule && is_back,
            false => is_named,
        };
        is_broken.then(said).flatten()
    }
}

fn is(tags: &Tags, key: &str, value: &str) -> bool {
    tags.get(key).is_some_and(|v| v == value)
}

/// Why a way is closed to a profile in a direction.
fn closed(tags: &Tags, profile: Profile, is_backward: bool) -> Option<&'static str> {
    let way = if is_backward { ":backward" } else { ":forward" };
    let in_direction = asked(tags, profile, way);
    match in_direction.or_else(|| asked(tags, profile, "")) {
        Some(true) => {}
        Some(false) => return Some("a tag forbids it"),
        None if !is_of_use(tags, profile) => return Some("a kind of way that is not for it"),
        None => {}
    }
    let wrong_way = match one_way(tags, profile) {
        Some(true) => is_backward,
        Some(false) => !is_backward,
        None => false,
    };
    (wrong_way && in_direction != Some(true)).then_some("against a one-way street")
}

/// What the most special key of access says: may go, may not go, or nothing. Of a list the most open word counts.
fn asked(tags: &Tags, profile: Profile, suffix: &str) -> Option<bool> {
    let keys: &[&str] = match profile {
        Profile::Car => &["motorcar", "motor_vehicle", "vehicle", "access"],
        Profile::Moped => &["moped", "motor_vehicle", "vehicle", "access"],
        Profile::Bicycle => &["bicycle", "vehicle", "access"],
        Profile::Foot => &["foot", "access"],
    };
    let closed = ["no", "agricultural", "forestry", "use_sidepath", "emergency", "military", "psv", "bus", "hgv"];
    let open = ["yes", "designated", "permissive", "official", "public", "dismount"];
    let limited = ["private", "destination", "customers", "delivery", "permit", "residents"];
    for key in keys {
        let Some(value) = tags.get(format!("{key}{suffix}").as_str()) else { continue };
        let words: Vec<String> = value.split(';').map(|word| word.trim().to_lowercase()).collect();
        let has = |list: &[&str]| words.iter().any(|word| list.contains(&word.as_str()));
        match (has(&open), has(&limited), has(&closed)) {
            (true, ..) if *key != "access" => return Some(true),
            (true, ..) => {}
            // For those with business there: a key of its own opens, plain access no wider than the kind of way is.
            (_, true, _) => return (*key != "access").then_some(true),
            (_, _, true) => return Some(false),
            (false, false, false) => {}
        }
    }
    None
}

/// Whether a kind of way is for a profile where no tag says more.
fn is_of_use(tags: &Tags, profile: Profile) -> bool {
    let Some(highway) = tags.get("highway").map(|value| value.as_str()) else {
        return is(tags, "route", "ferry");
    };
    let is_motorroad = is(tags, "motorroad", "yes");
    let is_road = matches!(
        highway.trim_end_matches("_link"),
        "trunk"
            | "primary"
            | "secondary"
            | "tertiary"
            | "unclassified"
            | "residential"
            | "living_street"
            | "service"
            | "track"
            | "road"
    );
    match profile {
        Profile::Car => is_road || matches!(highway, "motorway" | "motorway_link"),
        Profile::Moped => is_road && !is_motorroad,
        Profile::Bicycle => (is_road && !is_motorroad) || matches!(highway, "cycleway" | "path" | "bridleway"),
        Profile::Foot => {
            let has_pavement = tags.get("sidewalk").is_some_and(|v| !matches!(v.as_str(), "no" | "none" | "separate"));
            has_pavement || (!is_motorroad && !matches!(highway, "motorway" | "motorway_link"))
        }
    }
}

/// Whether a street goes one way for a profile: along its points, or against them.
fn one_way(tags: &Tags, profile: Profile) -> Option<bool> {
    let read = |value: &str| match value {
        "yes" | "1" | "true" => Some(Some(true)),
        "-1" | "reverse" => Some(Some(false)),
        "no" | "0" | "false" => Some(None),
        _ => None,
    };
    let said = |key: &str| tags.get(key).and_then(|value| read(value));
    let is_round = tags.get("junction").is_some_and(|v| matches!(v.as_str(), "roundabout" | "circular"));
    let of_all = said("oneway").unwrap_or((is_round || is(tags, "highway", "motorway")).then_some(true));
    let of_motor = || said("oneway:motor_vehicle").or_else(|| said("oneway:vehicle")).unwrap_or(of_all);
    match profile {
        Profile::Car => said("oneway:motorcar").unwrap_or_else(of_motor),
        Profile::Moped => said("oneway:moped").or_else(|| said("oneway:mofa")).unwrap_or_else(of_motor),
        Profile::Foot => match tags.get("conveying").map(|v| v.as_str()) {
            Some("forward") => Some(true),
            Some("backward") => Some(false),
            _ => said("oneway:foot").unwrap_or(None),
        },
        Profile::Bicycle => {
            if let Some(own) = said("oneway:bicycle") {
                return own;
            }
            let is_against = tags.iter().any(|(key, value)| {
                let is_lane = key.starts_with("cycleway");
                (is_lane && value.starts_with("opposite")) || (is_lane && key.ends_with(":oneway") && value != "yes")
            });
            if is_against { None } else { of_all }
        }
    }
}

/// Whether a point of a way stops a profile. Only a barrier does: `bicycle=no` on a crossing speaks of those who cross.
fn stops(tags: &Tags, profile: Profile) -> bool {
    if !tags.contains_key("barrier") {
        return false;
    }
    if let Some(may) = asked(tags, profile, "") {
        return !may;
    }
    let is_private = ["access", "vehicle", "motor_vehicle"].iter().any(|key| {
        tags.get(*key).is_some_and(|v| v == "private" || v == "destination" || v == "customers" || v == "permit")
    });
    let is_motor = matches!(profile, Profile::Car | Profile::Moped);
    match tags.get("barrier").map(|value| value.as_str()) {
        Some("bollard") => {
            is_motor && !is_private && !tags.get("bollard").is_some_and(|v| v == "rising" || v == "removable")
        }
        Some(
            "block" | "chain" | "cycle_barrier" | "motorcycle_barrier" | "jersey_barrier" | "planter" | "log"
            | "debris" | "rope" | "bus_trap",
        ) => is_motor && !is_private,
        Some("stile" | "turnstile" | "kissing_gate" | "full-height_turnstile") => {
            profile != Profile::Foot && !is_private
        }
        _ => false,
    }
}

/// Tags in words, without those that say nothing of access.
fn said(tags: &Tags) -> String {
    let dull = [
        "name",
        "source",
        "created_by",
        "lanes",
        "maxspeed",
        "ref",
        "lit",
        "width",
        "wikidata",
        "wikipedia",
        "note",
        "int_ref",
        "alt_name",
        "old_name",
    ];
    let telling = tags.iter().filter(|(key, _)| !dull.iter().any(|d| key.starts_with(d)));
    let mut all: Vec<String> = telling.map(|(key, value)| format!("{key}={value}")).collect();
    all.sort_by_key(|text| (!text.starts_with("highway"), text.clone()));
    all.truncate(9);
    all.join(" ")
}

const LOOSE: &[&str] =
    &["unpaved", "gravel", "fine_gravel", "pebblestone", "grass", "sand", "mud", "rock", "ground", "dirt", "earth"];
