//! Small extracts drawn by hand, each with one thing that a mapper can say, and what becomes of it.

use maps::import::{ImportOptions, import_bytes};
use maps::{EdgeId, Graph, Profile};
use osmpbfreader::fileformat::{Blob, BlobHeader};
use osmpbfreader::osmformat::relation::MemberType;
use osmpbfreader::osmformat::{HeaderBlock, Node, PrimitiveBlock, PrimitiveGroup, Relation, StringTable, Way};
use protobuf::Message;

pub type Tags<'a> = &'a [(&'a str, &'a str)];

/// An extract in the making.
#[derive(Default)]
pub struct Sketch {
    texts: Vec<String>,
    group: PrimitiveGroup,
}

impl Sketch {
    fn text(&mut self, text: &str) -> u32 {
        if self.texts.is_empty() {
            self.texts.push(String::new());
        }
        self.texts.push(text.to_owned());
        self.texts.len() as u32 - 1
    }

    fn tags(&mut self, tags: Tags) -> (Vec<u32>, Vec<u32>) {
        tags.iter().map(|(key, value)| (self.text(key), self.text(value))).unzip()
    }

    /// A node anywhere, in 10⁻⁷ degrees.
    pub fn node_at(&mut self, id: i64, lat: i64, lon: i64, tags: Tags) -> &mut Self {
        self.node(id, 0, 0, tags);
        let node = self.group.nodes.last_mut().unwrap();
        node.set_lat(lat);
        node.set_lon(lon);
        self
    }

    /// Says of which version the way drawn last is, and whether it still is.
    pub fn way_edition(&mut self, version: i32, is_visible: bool) -> &mut Self {
        self.group.ways.last_mut().unwrap().info.mut_or_insert_default().set_version(version);
        self.group.ways.last_mut().unwrap().info.mut_or_insert_default().set_visible(is_visible);
        self
    }

    /// The same for the node drawn last.
    pub fn node_edition(&mut self, version: i32, is_visible: bool) -> &mut Self {
        self.group.nodes.last_mut().unwrap().info.mut_or_insert_default().set_version(version);
        self.group.nodes.last_mut().unwrap().info.mut_or_insert_default().set_visible(is_visible);
        self
    }

    /// Puts the places of nodes into the ways, and leaves out all nodes.
    pub fn locate_in_ways(&mut self) -> &mut Self {
        let nodes = std::mem::take(&mut self.group.nodes);
        for way in &mut self.group.ways {
            let (mut id, mut before) = (0, (0, 0));
            let (mut lats, mut lons) = (Vec::new(), Vec::new());
            for delta in &way.refs {
                id += delta;
                let node = nodes.iter().find(|node| node.id() == id).unwrap();
                push_zigzag(&mut lats, node.lat() - before.0);
                push_zigzag(&mut lons, node.lon() - before.1);
                before = (node.lat(), node.lon());
            }
            way.special_fields.mut_unknown_fields().add_length_delimited(9, lats);
            way.special_fields.mut_unknown_fields().add_length_delimited(10, lons);
        }
        self
    }

    /// A node so many hundred metres north and east of nowhere.
    pub fn node(&mut self, id: i64, north: i64, east: i64, tags: Tags) -> &mut Self {
        let mut node = Node::new();
        node.set_id(id);
        node.set_lat(440_000_000 + north * 9_000);
        node.set_lon(-300_000_000 + east * 12_500);
        (node.keys, node.vals) = self.tags(tags);
        self.group.nodes.push(node);
        self
    }

    pub fn way(&mut self, id: i64, nodes: &[i64], tags: Tags) -> &mut Self {
        let mut way = Way::new();
        way.set_id(id);
        let mut before = 0;
        for node in nodes {
            way.refs.push(node - before);
            before = *node;
        }
        (way.keys, way.vals) = self.tags(tags);
        self.group.ways.push(way);
        self
    }

    pub fn restriction(&mut self, kind: &str, from: i64, via: i64, to: i64, more: Tags) -> &mut Self {
        let via = ("via", via, MemberType::NODE);
        self.relation(kind, &[("from", from, MemberType::WAY), via, ("to", to, MemberType::WAY)], more)
    }

    pub fn restriction_over(&mut self, kind: &str, from: i64, via: &[i64], to: i64, more: Tags) -> &mut Self {
        let mut members = vec![("from", from, MemberType::WAY)];
        members.extend(via.iter().map(|way| ("via", *way, MemberType::WAY)));
        members.push(("to", to, MemberType::WAY));
        self.relation(kind, &members, more)
    }

    /// A relation that is no restriction, over some ways.
    pub fn line(&mut self, tags: Tags, ways: &[i64]) -> &mut Self {
        let members: Vec<_> = ways.iter().map(|way| ("", *way, MemberType::WAY)).collect();
        self.relation_of(tags, &members)
    }

    fn relation(&mut self, kind: &str, members: &[(&str, i64, MemberType)], more: Tags) -> &mut Self {
        let tags: Vec<_> = match kind {
            "" => [("type", "restriction")].iter().chain(more).copied().collect(),
            kind => [("type", "restriction"), ("restriction", kind)].iter().chain(more).copied().collect(),
        };
        self.relation_of(&tags, members)
    }

    fn relation_of(&mut self, tags: Tags, members: &[(&str, i64, MemberType)]) -> &mut Self {
        let mut relation = Relation::new();
        relation.set_id(1 + self.group.relations.len() as i64);
        (relation.keys, relation.vals) = self.tags(tags);
        let mut before = 0;
        for (role, id, kind) in members {
            relation.roles_sid.push(self.text(role) as i32);
            relation.memids.push(id - before);
            relation.types.push((*kind).into());
            before = *id;
        }
        self.group.relations.push(relation);
        self
    }

    pub fn graph(&mut self) -> Graph {
        let bytes = self.bytes(&|raw| {
            let mut blob = Blob::new();
            blob.set_raw(raw.to_vec());
            blob
        });
        Graph::from_bytes(&import_bytes(&bytes, &ImportOptions::default()).unwrap()).unwrap()
    }

    /// The extract, its blobs packed somehow.
    pub fn bytes(&mut self, pack: &dyn Fn(&[u8]) -> Blob) -> Vec<u8> {
        let mut table = StringTable::new();
        table.s = self.texts.iter().map(|text| text.clone().into_bytes()).collect();
        let mut bytes = blob("OSMHeader", &HeaderBlock::new(), pack);
        let group = std::mem::take(&mut self.group);
        let (mut nodes, mut ways, mut relations) =
            (PrimitiveGroup::new(), PrimitiveGroup::new(), PrimitiveGroup::new());
        (nodes.nodes, ways.ways, relations.relations) = (group.nodes, group.ways, group.relations);
        let mut block = PrimitiveBlock::new();
        block.stringtable = Some(table).into();
        block.primitivegroup = vec![nodes, ways, relations];
        bytes.extend(blob("OSMData", &block, pack));
        bytes
    }
}

fn push_zigzag(bytes: &mut Vec<u8>, number: i64) {
    let mut rest = (number << 1 ^ number >> 63) as u64;
    while rest >= 0x80 {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
}

fn blob(kind: &str, content: &impl Message, pack: &dyn Fn(&[u8]) -> Blob) -> Vec<u8> {
    let blob = pack(&content.write_to_bytes().unwrap()).write_to_bytes().unwrap();
    let mut header = BlobHeader::new();
    header.set_type(kind.to_owned());
    header.set_datasize(blob.len() as i32);
    let header = header.write_to_bytes().unwrap();
    [&(header.len() as u32).to_be_bytes()[..], &header, &blob].concat()
}

/// A crossing at node 5: ways 1 from the south, 2 to the north, 3 to the west, 4 to the east.
fn crossing() -> Sketch {
    let mut sketch = Sketch::default();
    let street: Tags = &[("highway", "residential")];
    sketch.node(1, -1, 0, &[]).node(2, 1, 0, &[]).node(3, 0, -1, &[]).node(4, 0, 1, &[]).node(5, 0, 0, &[]);
    sketch.way(1, &[1, 5], street).way(2, &[5, 2], street).way(3, &[5, 3], street).way(4, &[5, 4], street);
    sketch
}

/// The edge of a way that arrives at its end, or the one that leaves.
fn edge(graph: &Graph, way: i64, arrives_north_or_at: impl Fn(&Graph, EdgeId) -> bool) -> EdgeId {
    let mut edges = graph.edges().filter(|e| graph.osm_way(*e) == way && arrives_north_or_at(graph, *e));
    let found = edges.next().unwrap();
    assert_eq!(edges.next(), None);
    found
}

fn is_middle(graph: &Graph, node: maps::NodeId) -> bool {
    let p = graph.node_position(node).unwrap();
    (p.lat_e7, p.lon_e7) == (440_000_000, -300_000_000)
}

fn into(graph: &Graph, way: i64) -> EdgeId {
    edge(graph, way, |g, e| is_middle(g, g.to(e)))
}

fn out(graph: &Graph, way: i64) -> EdgeId {
    edge(graph, way, |g, e| is_middle(g, g.from(e)))
}

/// The ways to which one may turn from way 1.
fn turns(graph: &Graph, profile: Profile) -> Vec<i64> {
    let from = into(graph, 1);
    let mut ways: Vec<i64> = (1..=4).filter(|way| graph.is_turn_allowed(from, out(graph, *way), profile)).collect();
    ways.sort_unstable();
    ways
}

#[test]
fn a_forbidden_turn_is_forbidden_and_no_other() {
    let graph = crossing().restriction("no_left_turn", 1, 5, 3, &[]).graph();

    assert_eq!(turns(&graph, Profile::Car), [1, 2, 4]);
    assert_eq!(turns(&graph, Profile::Bicycle), [1, 2, 4]);
    assert_eq!(turns(&graph, Profile::Foot), [1, 2, 3, 4]);
    assert!(graph.is_turn_allowed(into(&graph, 2), out(&graph, 3), Profile::Car));
    assert_eq!((graph.summary().restrictions, graph.summary().restrictions_left_out), (1, 0));
}

#[test]
fn the_only_turn_forbids_all_others() {
    let graph = crossing().restriction("only_straight_on", 1, 5, 2, &[("except", "bicycle;psv")]).graph();

    assert_eq!(turns(&graph, Profile::Car), [2]);
    assert_eq!(turns(&graph, Profile::Bicycle), [1, 2, 3, 4]);
}

#[test]
fn a_u_turn_can_be_forbidden() {
    let graph = crossing().restriction("no_u_turn", 1, 5, 1, &[]).graph();

    assert_eq!(turns(&graph, Profile::Car), [2, 3, 4]);
    assert!(graph.is_u_turn(into(&graph, 1), out(&graph, 1)));
}

#[test]
fn a_sign_on_a_way_that_goes_through_holds_both_ways() {
    let mut sketch = Sketch::default();
    let street: Tags = &[("highway", "residential")];
    sketch.node(1, -1, 0, &[]).node(2, 1, 0, &[]).node(3, 0, -1, &[]).node(5, 0, 0, &[]);
    sketch.way(1, &[1, 5, 2], street).way(3, &[5, 3], street);
    let graph = sketch.restriction("only_straight_on", 1, 5, 1, &[]).graph();

    let arriving: Vec<EdgeId> =
        graph.edges().filter(|e| graph.osm_way(*e) == 1 && is_middle(&graph, graph.to(*e))).collect();
    assert_eq!(arriving.len(), 2);
    for from in arriving {
        let open = graph.out_edges(graph.to(from)).filter(|to| graph.is_turn_allowed(from, *to, Profile::Car));
        let open: Vec<EdgeId> = open.collect();
        assert_eq!(open.len(), 1);
        assert!(graph.osm_way(open[0]) == 1 && !graph.is_u_turn(from, open[0]));
    }
}

#[test]
fn restrictions_that_cannot_be_kept_are_counted() {
    let mut sketch = crossing();
    sketch.restriction("no_left_turn", 1, 5, 77, &[]); // a way outside the extract
    sketch.restriction("no_left_turn", 1, 99, 3, &[]); // a node outside
    sketch.restriction("strange", 1, 5, 3, &[]);
    sketch.restriction("no_right_turn", 1, 5, 4, &[]);
    let graph = sketch.graph();

    assert_eq!((graph.summary().restrictions, graph.summary().restrictions_left_out), (1, 3));
}

#[test]
fn a_bollard_stops_cars_and_nobody_else() {
    let mut sketch = Sketch::default();
    sketch.node(1, -1, 0, &[]).node(5, 0, 0, &[("barrier", "bollard")]).node(2, 1, 0, &[]);
    let graph = sketch.way(1, &[1, 5, 2], &[("highway", "residential")]).graph();

    let from = graph.edges().find(|e| is_middle(&graph, graph.to(*e))).unwrap();
    let on = graph.out_edges(graph.to(from)).find(|e| !graph.is_u_turn(from, *e)).unwrap();
    let back = graph.reverse(from).unwrap();
    assert!(!graph.is_turn_allowed(from, on, Profile::Car));
    assert!(!graph.is_turn_allowed(from, on, Profile::Moped));
    assert!(graph.is_turn_allowed(from, on, Profile::Bicycle));
    assert!(graph.is_turn_allowed(from, back, Profile::Car));
}

#[test]
fn a_way_is_cut_where_its_points_are_missing() {
    let mut sketch = Sketch::default();
    sketch.node(1, 0, 0, &[]).node(2, 0, 1, &[]).node(4, 0, 3, &[]).node(5, 0, 4, &[]);
    let graph = sketch.way(1, &[1, 2, 3, 4, 5], &[("highway", "residential")]).graph();

    assert_eq!((graph.edge_count(), graph.node_count()), (4, 4));
    assert!(graph.edges().all(|e| (9_000..11_000).contains(&graph.length_cm(e))));
}

#[test]
fn a_closed_way_without_a_junction_can_be_travelled_round() {
    let mut sketch = Sketch::default();
    sketch.node(1, 0, 0, &[]).node(2, 0, 1, &[]).node(3, 1, 1, &[]).node(4, 1, 0, &[]);
    let graph = sketch.way(1, &[1, 2, 3, 4, 1], &[("highway", "residential"), ("oneway", "yes")]).graph();

    let cars: Vec<EdgeId> = graph.edges().filter(|e| graph.allows(*e, Profile::Car)).collect();
    assert_eq!(cars.len(), 2);
    assert_eq!((graph.to(cars[0]), graph.to(cars[1])), (graph.from(cars[1]), graph.from(cars[0])));
    assert!(cars.iter().all(|e| graph.is_connected(*e, Profile::Car)));
}

#[test]
fn the_same_point_twice_is_one_and_a_way_of_one_point_is_none() {
    let mut sketch = Sketch::default();
    sketch.node(1, 0, 0, &[]).node(2, 0, 1, &[]);
    let street: Tags = &[("highway", "residential"), ("name", "Straße der Ölmühle")];
    let graph =
        sketch.way(1, &[1, 1, 2, 2], street).way(2, &[1], street).way(3, &[2, 2], street).way(4, &[], street).graph();

    assert_eq!(graph.edge_count(), 2);
    assert!(graph.edges().all(|e| graph.name(e) == "Straße der Ölmühle" && graph.geometry(e).len() == 2));
}
