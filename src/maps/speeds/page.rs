//! A page that draws the roads by how fast one gets along them, at any hour of the week, and needs nothing else: no
//! server, no network. Each road is written into it once, with its two directions' shares of the empty road's speed.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};
use maps::speeds::{Learner, SpeedTable};
use maps::{EdgeId, Graph, Profile};
use protocol::Position;
use serde_json::{Value, json};

pub fn write(page: &Path, graph: &Graph, table: &SpeedTable, learned: Option<&Learner>, hour: usize) -> Result<()> {
    let bbox = graph.bbox();
    let corner = bbox.south_west;
    let percent = |shape: [f64; maps::speeds::HOURS]| shape.map(|share| (share * 100.0).round() as i64).to_vec();
    let shapes: Vec<Vec<i64>> = table.shapes().map(percent).collect();
    let facts = json!({
        "cos": maps::geo::cos_lat(bbox.centre().lat_e7),
        "hour": hour,
        "learned": learned.is_some(),
        "shapes": shapes,
        "roads": roads(graph, table, learned, corner),
    });
    let mut text = String::from(HEAD);
    write!(text, "{facts}").context("write the facts")?;
    text.push_str(TAIL);
    std::fs::write(page, text).with_context(|| format!("write {}", page.display()))
}

/// [class, driven, shape, percent, shape back, percent back, points]; a one-way road has itself for its way back.
fn roads(graph: &Graph, table: &SpeedTable, learned: Option<&Learner>, corner: Position) -> Vec<Value> {
    let is_for_cars = |e: &EdgeId| graph.allows(*e, Profile::Car);
    let back = |e: EdgeId| graph.reverse(e).filter(is_for_cars);
    let is_first = |e: &EdgeId| back(*e).is_none_or(|other| e.0 < other.0);
    let speed = |e: EdgeId| {
        let (shape, ratio) = table.shape_and_ratio(e).unwrap_or((0, 1.0));
        (shape, (ratio * 100.0).round() as i64)
    };
    let road = |e: EdgeId| {
        let other = back(e).unwrap_or(e);
        let is_driven = learned.is_some_and(|learner| learner.is_driven(e) || learner.is_driven(other));
        let ((shape, percent), (shape_back, percent_back)) = (speed(e), speed(other));
        let points = flat(graph.geometry(e), corner);
        json!([graph.class(e).number(), u8::from(is_driven), shape, percent, shape_back, percent_back, points])
    };
    graph.edges().filter(is_for_cars).filter(is_first).take(ROADS_MAX).map(road).collect()
}

/// East and north of the corner, in 10⁻⁶ degree.
fn flat(points: impl IntoIterator<Item = Position>, corner: Position) -> Vec<i64> {
    let off = |a: i32, b: i32| (i64::from(a) - i64::from(b)) / 10;
    points.into_iter().flat_map(|p| [off(p.lon_e7, corner.lon_e7), off(p.lat_e7, corner.lat_e7)]).collect()
}

const ROADS_MAX: usize = 400_000;

const HEAD: &str = r##"<!doctype html><html lang="en"><meta charset="utf-8"><title>Speeds</title>
<style>html,body{margin:0;height:100%;overflow:hidden;font:14px system-ui,sans-serif}canvas{position:absolute;inset:0;cursor:grab}
#box{position:absolute;top:12px;left:12px;background:#fff;border-radius:10px;padding:12px 14px;box-shadow:0 2px 12px #0003;line-height:1.6}
i{display:inline-block;width:22px;height:4px;border-radius:2px;margin-right:8px;vertical-align:middle}
input[type=range]{width:240px;display:block}
#by{position:absolute;right:8px;bottom:6px;color:#555;font-size:12px}</style>
<canvas id="c"></canvas><div id="box"><label><b id="when"></b><input id="hour" type="range" min="0" max="167"></label>
Speed of the slower direction beside the empty road's<br><span id="legend"></span>
<label id="only"><input id="driven" type="checkbox"> only roads that were driven</label></div>
<div id="by">© OpenStreetMap contributors</div><script>const facts="##;

const TAIL: &str = r##";
const canvas=document.getElementById("c"),g=canvas.getContext("2d"),$=id=>document.getElementById(id);
const steps=[[35,"#8f1d1d","below 35 %"],[50,"#d9402f","35 to 50 %"],[65,"#ef8a2c","50 to 65 %"],[80,"#e9c43a","65 to 80 %"],[95,"#7fbf5b","80 to 95 %"],[1/0,"#22894a","95 % and more"]];
$("legend").innerHTML=steps.map(([,c,t])=>`<i style="background:${c}"></i>${t}<br>`).join("");
const days=["Monday","Tuesday","Wednesday","Thursday","Friday","Saturday","Sunday"];
let scale=1,x0=0,y0=0,hour=facts.hour;
$("hour").value=hour;$("driven").checked=facts.learned;$("only").hidden=!facts.learned;
const px=(x,y)=>[x*facts.cos*scale+x0,-y*scale+y0];
function trace(a){for(let i=0;i<a.length;i+=2){const[x,y]=px(a[i],a[i+1]);i?g.lineTo(x,y):g.moveTo(x,y)}}
const width=c=>Math.max(.6,Math.min(14,scale*(c<4?90:c<8?60:30)));
const seen=a=>{let w=1/0,e=-1/0,s=1/0,n=-1/0;for(let i=0;i<a.length;i+=2){const[x,y]=px(a[i],a[i+1]);w=Math.min(w,x);e=Math.max(e,x);s=Math.min(s,y);n=Math.max(n,y)}return e>0&&w<innerWidth&&n>0&&s<innerHeight};
function share(r){return Math.min(facts.shapes[r[2]][hour]*r[3],facts.shapes[r[4]][hour]*r[5])/100}
function draw(){const d=devicePixelRatio;canvas.width=innerWidth*d;canvas.height=innerHeight*d;canvas.style.width=innerWidth+"px";canvas.style.height=innerHeight+"px";
g.scale(d,d);g.fillStyle="#f3f1ec";g.fillRect(0,0,innerWidth,innerHeight);g.lineJoin=g.lineCap="round";
$("when").textContent=`${days[Math.floor(hour/24)]} ${String(hour%24).padStart(2,"0")}:00 UTC`;
const only=$("driven").checked,batches=new Map();
for(const r of facts.roads){if(!seen(r[6]))continue;const c=only&&!r[1]?"#d5cec0":steps.find(([most])=>share(r)<most)[1];
const plain=c=="#d5cec0",w=plain?width(r[0]):Math.max(1.6,width(r[0])),key=(plain?"0":"1")+c+w;if(!batches.has(key))batches.set(key,[c,w,[]]);batches.get(key)[2].push(r[6])}
for(const key of[...batches.keys()].sort()){const[c,w,lines]=batches.get(key);g.beginPath();lines.forEach(trace);g.strokeStyle=c;g.lineWidth=w;g.stroke()}}
function fit(){const some=facts.learned?facts.roads.filter(r=>r[1]):facts.roads,n=Math.floor(some.length/50);
const ends=k=>{const all=some.map(r=>r[6][k]).sort((a,b)=>a-b);return[all[n],all[all.length-1-n]]};
const[w,e]=ends(0),[s,t]=ends(1);
scale=Math.min(innerWidth/((e-w)*facts.cos+1),innerHeight/(t-s+1))*.85;
x0=innerWidth/2-(w+e)/2*facts.cos*scale;y0=innerHeight/2+(s+t)/2*scale;draw()}
let frame=0;const soon=()=>{frame||=requestAnimationFrame(()=>{frame=0;draw()})};
canvas.onwheel=e=>{e.preventDefault();const f=Math.exp(-e.deltaY/400);x0=e.clientX+(x0-e.clientX)*f;y0=e.clientY+(y0-e.clientY)*f;scale*=f;soon()};
canvas.onpointermove=e=>{if(e.buttons){x0+=e.movementX;y0+=e.movementY;soon()}};
$("hour").oninput=e=>{hour=+e.target.value;soon()};$("driven").onchange=soon;onresize=draw;fit();
</script></html>
"##;
