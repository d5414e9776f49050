//! Routes for every profile over one map: each profile's router is made when it is first asked for.

use std::sync::{Arc, OnceLock};

use super::{Dijkstra, Endpoint, Hierarchy, Reach, Route, Router, Weights};
use crate::class::Profile;
use crate::graph::Graph;

pub struct Routing {
    graph: Arc<Graph>,
    routers: [OnceLock<Box<dyn Router>>; Profile::ALL.len()],
}

impl Routing {
    pub fn new(graph: Arc<Graph>) -> Routing {
        Routing { graph, routers: Default::default() }
    }

    pub fn graph(&self) -> &Arc<Graph> {
        &self.graph
    }

    /// A profile's router. The first call for a profile takes some hundred milliseconds on a city.
    pub fn router(&self, profile: Profile) -> &dyn Router {
        let router = self.routers[usize::from(profile.number())].get_or_init(|| {
            let weights = Weights::free_flow(&self.graph, profile);
            match Hierarchy::new(self.graph.clone(), weights) {
                Some(hierarchy) => Box::new(hierarchy),
                None => Box::new(Dijkstra::new(self.graph.clone(), Weights::free_flow(&self.graph, profile))),
            }
        });
        &**router
    }

    pub fn route(&self, from: &Endpoint, to: &Endpoint, profile: Profile) -> Option<Route> {
        self.router(profile).route(from, to)
    }

    pub fn one_to_many(&self, from: &Endpoint, to: &[Endpoint], profile: Profile) -> Vec<Option<Reach>> {
        self.router(profile).one_to_many(from, to)
    }

    /// New times for the profile they were made for.
    pub fn reweight(&self, weights: Weights) {
        self.router(weights.profile()).reweight(weights);
    }
}
