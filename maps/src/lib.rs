//! OpenStreetMap extracts to road graphs: import, index, snap, match, route, predict, draw.
