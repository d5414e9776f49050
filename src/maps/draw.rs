//! A page that draws matched trips over the roads around them and needs nothing else: no server, no network. What lies
//! near is written into it once, as numbers relative to its corner.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use maps::geo::Bbox;
use maps::{EdgeId, Graph};
use protocol::Position;
use serde_json::{Value, json};

use super::matching::MatchedTrip;

pub fn write_page(page: &Path, graph: &Graph, trips: &[MatchedTrip]) -> Result<()> {
    let fixes = trips.iter().flat_map(|trip| trip.trace.fixes.iter().map(|fix| fix.position));
    let bbox = Bbox::around(fixes).context("there is no fix to draw")?;
    let corner = bbox.south_west;
    let drawn: Vec<Value> = trips.iter().map(|trip| drawn_trip(trip, corner)).collect();
    let facts = json!({
        "cos": maps::geo::cos_lat(bbox.centre().lat_e7),
        "roads": drawn_roads(graph, &bbox, corner),
        "trips": drawn,
    });
    let mut text = String::from(HEAD);
    write!(text, "{facts}").context("write the facts")?;
    text.push_str(TAIL);
    std::fs::write(page, text).with_context(|| format!("write {}", page.display()))
}

/// Each road once: its class's weight, then its points.
fn drawn_roads(graph: &Graph, bbox: &Bbox, corner: Position) -> Vec<Value> {
    let near = |e: &EdgeId| graph.geometry(*e).any(|p| is_near(bbox, p));
    let is_first = |e: &EdgeId| graph.reverse(*e).is_none_or(|other| e.0 < other.0);
    graph
        .edges()
        .filter(is_first)
        .filter(near)
        .take(ROADS_MAX)
        .map(|e| json!([graph.class(e).number(), flat(graph.geometry(e), corner)]))
        .collect()
}

fn drawn_trip(trip: &MatchedTrip, corner: Position) -> Value {
    let parts: Vec<Vec<i64>> = trip.parts.iter().map(|part| flat(part.iter().copied(), corner)).collect();
    let places: Vec<Value> = trip
        .trace
        .fixes
        .iter()
        .zip(&trip.matched)
        .map(|(fix, one)| {
            let from = flat([fix.position], corner);
            let to = one.snapped.map(|s| flat([s.position], corner));
            json!([from, to, one.snapped.map(|s| s.confidence_percent)])
        })
        .collect();
    let truth: Vec<Vec<i64>> = trip.trace.truth.iter().map(|part| flat(part.iter().copied(), corner)).collect();
    json!({"id": trip.trace.id, "route": parts, "fixes": places, "truth": truth})
}

/// East and north of the corner, in 10⁻⁶ degree.
fn flat(points: impl IntoIterator<Item = Position>, corner: Position) -> Vec<i64> {
    let off = |a: i32, b: i32| (i64::from(a) - i64::from(b)) / 10;
    points.into_iter().flat_map(|p| [off(p.lon_e7, corner.lon_e7), off(p.lat_e7, corner.lat_e7)]).collect()
}

fn is_near(bbox: &Bbox, p: Position) -> bool {
    p.lat_e7 > bbox.south_west.lat_e7 - MARGIN_E7
        && p.lat_e7 < bbox.north_east.lat_e7 + MARGIN_E7
        && p.lon_e7 > bbox.south_west.lon_e7 - MARGIN_E7
        && p.lon_e7 < bbox.north_east.lon_e7 + MARGIN_E7
}

/// About 500 m.
const MARGIN_E7: i32 = 50_000;
const ROADS_MAX: usize = 200_000;

const HEAD: &str = r#"<!doctype html><html lang="en"><meta charset="utf-8"><title>Matched trips</title>
<style>html,body{margin:0;height:100%;overflow:hidden;font:14px system-ui,sans-serif}canvas{position:absolute;inset:0;cursor:grab}
#box{position:absolute;top:12px;left:12px;background:#fff;border-radius:10px;padding:12px 14px;box-shadow:0 2px 12px #0003;line-height:1.6}
i{display:inline-block;width:22px;height:4px;border-radius:2px;margin-right:8px;vertical-align:middle}
#by{position:absolute;right:8px;bottom:6px;color:#555;font-size:12px}</style>
<canvas id="c"></canvas><div id="box"><select id="trip"></select><br>
<i style="background:#1466ff"></i>matched route<br><i style="background:#12a150"></i>true route, where known<br>
<i style="background:#e8590c"></i>fix, and where it was placed<br><i style="background:#c2362f"></i>fix that belongs to no road</div>
<div id="by">© OpenStreetMap contributors</div><script>const facts="#;

const TAIL: &str = r##";
const canvas=document.getElementById("c"),g=canvas.getContext("2d"),pick=document.getElementById("trip");
let scale=1,x0=0,y0=0,only=-1;
pick.append(new Option(`all ${facts.trips.length} trips`,-1),...facts.trips.map((t,i)=>new Option(`trip ${t.id}`,i)));
const px=(x,y)=>[x*facts.cos*scale+x0,-y*scale+y0];
function line(a,c,w){g.beginPath();for(let i=0;i<a.length;i+=2){const[x,y]=px(a[i],a[i+1]);i?g.lineTo(x,y):g.moveTo(x,y)}g.strokeStyle=c;g.lineWidth=w;g.stroke()}
function dot(p,c,r){const[x,y]=px(p[0],p[1]);g.beginPath();g.arc(x,y,r,0,7);g.fillStyle=c;g.fill()}
const chosen=()=>facts.trips.filter((_,i)=>only<0||i===only);
function draw(){const d=devicePixelRatio;canvas.width=innerWidth*d;canvas.height=innerHeight*d;canvas.style.width=innerWidth+"px";canvas.style.height=innerHeight+"px";
g.scale(d,d);g.fillStyle="#f3f1ec";g.fillRect(0,0,innerWidth,innerHeight);g.lineJoin=g.lineCap="round";
for(const[c,a]of facts.roads)line(a,"#d5cec0",Math.max(.6,Math.min(14,scale*(c<4?90:c<8?60:30))));
for(const t of chosen()){for(const p of t.truth)line(p,"#12a15099",9);for(const p of t.route)line(p,"#1466ffcc",4);
if(scale>.02)for(const[f,s]of t.fixes){if(s)line([...f,...s],"#e8590c88",1.2);dot(f,s?"#e8590c":"#c2362f",3);if(s)dot(s,"#1466ff",2)}}}
function fit(){let a=[1/0,1/0,-1/0,-1/0];for(const t of chosen())for(const[f]of t.fixes)a=[Math.min(a[0],f[0]),Math.min(a[1],f[1]),Math.max(a[2],f[0]),Math.max(a[3],f[1])];
scale=Math.min(innerWidth/((a[2]-a[0])*facts.cos+1),innerHeight/(a[3]-a[1]+1))*.85;
x0=innerWidth/2-(a[0]+a[2])/2*facts.cos*scale;y0=innerHeight/2+(a[1]+a[3])/2*scale;draw()}
let frame=0;const soon=()=>{frame||=requestAnimationFrame(()=>{frame=0;draw()})};
canvas.onwheel=e=>{e.preventDefault();const f=Math.exp(-e.deltaY/400);x0=e.clientX+(x0-e.clientX)*f;y0=e.clientY+(y0-e.clientY)*f;scale*=f;soon()};
canvas.onpointermove=e=>{if(e.buttons){x0+=e.movementX;y0+=e.movementY;soon()}};
pick.onchange=()=>{only=+pick.value;fit()};onresize=draw;fit();
</script></html>
"##;
