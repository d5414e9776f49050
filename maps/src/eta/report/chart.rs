//! Drawing figures as SVG that a page carries inside: colours come from the page, so that they are right by day and by
//! night.

use std::fmt::Write;

/// From values to places on the drawing.
#[derive(Clone, Copy, Debug)]
pub enum Scale {
    Linear { from: f64, to: f64 },
    Log { from: f64, to: f64 },
}

impl Scale {
    /// 0 at its beginning, 1 at its end; what lies outside is put at the edge.
    fn share(self, value: f64) -> f64 {
        let share = match self {
            Scale::Linear { from, to } => (value - from) / (to - from),
            Scale::Log { from, to } => libm::log(value.max(from) / from) / libm::log(to / from),
        };
        if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 }
    }
}

/// One figure.
pub struct Chart {
    x: Scale,
    y: Scale,
    svg: String,
}

impl Chart {
    pub fn new(name: &str, x: Scale, y: Scale) -> Chart {
        let mut svg = String::new();
        let label = escape(name);
        let _ = write!(svg, r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">"#);
        Chart { x, y, svg }
    }

    fn at(&self, x: f64, y: f64) -> (f64, f64) {
        let across = LEFT + self.x.share(x) * (WIDTH - LEFT - RIGHT);
        (across, HEIGHT - BOTTOM - self.y.share(y) * (HEIGHT - TOP - BOTTOM))
    }

    /// Lines across with their values on the left.
    pub fn rows(&mut self, ticks: &[f64], label: impl Fn(f64) -> String) {
        for tick in ticks {
            let (_, y) = self.at(0.0, *tick);
            let right = WIDTH - RIGHT;
            let _ = write!(self.svg, r#"<path class="grid" d="M{LEFT} {y:.1}H{right}"/>"#);
            self.text(LEFT - 8.0, y + 4.0, "end", &label(*tick));
        }
    }

    /// Values below.
    pub fn columns(&mut self, ticks: &[(f64, String)]) {
        for (tick, label) in ticks {
            let (x, _) = self.at(*tick, 0.0);
            self.text(x, HEIGHT - BOTTOM + 18.0, "middle", label);
        }
    }

    /// What the axes are, in words: below on the right, and above on the left.
    pub fn axes(&mut self, below: &str, left: &str) {
        self.text(WIDTH - RIGHT, HEIGHT - 6.0, "end", below);
        self.text(0.0, 12.0, "start", left);
    }

    fn text(&mut self, x: f64, y: f64, anchor: &str, text: &str) {
        let text = escape(text);
        let _ = write!(self.svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#);
    }

    pub fn note(&mut self, x: f64, y: f64, text: &str) {
        let (x, y) = self.at(x, y);
        self.text(x, y - 8.0, "middle", text);
    }

    pub fn dot(&mut self, class: &str, x: f64, y: f64, radius: f64, title: &str) {
        let (x, y) = self.at(x, y);
        let title = escape(title);
        let _ = write!(
            self.svg,
            r#"<circle class="{class}" cx="{x:.1}" cy="{y:.1}" r="{radius}"><title>{title}</title></circle>"#
        );
    }

    pub fn line(&mut self, class: &str, points: &[(f64, f64)]) {
        let mut path = String::new();
        for (i, (x, y)) in points.iter().enumerate() {
            let (x, y) = self.at(*x, *y);
            let _ = write!(path, "{}{x:.1} {y:.1}", if i == 0 { 'M' } else { 'L' });
        }
        let _ = write!(self.svg, r#"<path class="{class}" d="{path}"/>"#);
    }

    /// A column from one height to another, so many units of the drawing wide.
    pub fn column(&mut self, class: &str, x: f64, (from, to): (f64, f64), width: f64, title: &str) {
        let ((x, low), (_, high)) = (self.at(x, from), self.at(x, to));
        let (left, height, title) = (x - width / 2.0, (low - high).max(1.0), escape(title));
        let _ = write!(
            self.svg,
            r#"<rect class="{class}" x="{left:.1}" y="{high:.1}" width="{width}" height="{height:.1}" rx="3"><title>{title}</title></rect>"#
        );
    }

    pub fn finish(mut self) -> String {
        self.svg.push_str("</svg>");
        self.svg
    }
}

/// Text as HTML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 48.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 44.0;
