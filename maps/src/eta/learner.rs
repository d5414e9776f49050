//! What finished trips teach about predictions. Each trip is predicted when it begins, and on its way as often as one
//! likes, and scored when it ends; the weights are refitted, the median of the newest errors kept at zero, and the
//! interval at the errors' quantiles. Trips are taken in at the time they finish and not before.

use std::collections::{BTreeMap, VecDeque};

use protocol::Time;
use wincode::{SchemaRead, SchemaWrite};

use super::table::{
    PRIOR, SPREAD_PRIOR, STAGES, Spread, WEIGHTS, WIDTHS, WIDTHS_PRIOR, dot, features, stage, under_way,
    width_features, width_of,
};
use super::{Ahead, Eta, EtaTable};

/// A trip that ended: what was known when it was asked about, and how long it took from then.
#[derive(Clone, Copy, PartialEq, Debug, SchemaWrite, SchemaRead)]
pub struct FinishedTrip {
    pub ahead: Ahead,
    pub asked: Time,
    pub finished: Time,
    /// What was predicted then: the middle one.
    pub predicted_ms: u32,
}

impl FinishedTrip {
    fn took_s(&self) -> f64 {
        (self.finished.millis_since(self.asked) as f64 / 1000.0).max(1.0)
    }
}

/// Learns from the answers about finished trips, the last few thousand.
#[derive(Clone, PartialEq, Debug, Default, SchemaWrite, SchemaRead)]
pub struct EtaLearner {
    /// Told of, but not finished by the time we have reached.
    coming: BTreeMap<(Time, u32), FinishedTrip>,
    told: u32,
    finished: VecDeque<FinishedTrip>,
    since_fit: u32,
    /// With the drift in it.
    table: EtaTable,
    /// What of the first weight is the drift, and when that was last looked at.
    drift: f64,
    drifted: Time,
}

impl EtaLearner {
    /// Tells of a trip, in any order; also of what was asked on its way, each as a trip of its own. It counts from the
    /// time it finished on. A few thousand may wait for that; more are not taken.
    pub fn handle_finished(&mut self, trip: FinishedTrip) {
        let took_s = trip.finished.millis_since(trip.asked) / 1000;
        if self.coming.len() < COMING_MAX && (TOOK_S_MIN..=TOOK_S_MAX).contains(&took_s) {
            self.coming.insert((trip.finished, self.told), trip);
            self.told = self.told.wrapping_add(1);
        }
    }

    /// The table as of a time: made from what finished before it. It changes with the time alone too: what the fleet met
    /// an hour ago says little of now.
    pub fn table(&mut self, now: Time) -> &EtaTable {
        while let Some(entry) = self.coming.first_entry().filter(|e| e.key().0 < now) {
            self.finished.push_back(entry.remove());
            self.since_fit += 1;
            if self.finished.len() > FINISHED_MAX {
                self.finished.pop_front();
            }
        }
        if self.since_fit >= FIT_EVERY {
            self.since_fit = 0;
            self.fit(now);
        } else if drift_looked_at(now) != self.drifted {
            self.refit_drift(now);
        }
        &self.table
    }

    pub fn predict(&mut self, ahead: &Ahead, now: Time) -> Eta {
        self.table(now).predict(ahead)
    }

    fn fit(&mut self, now: Time) {
        let newest = self.finished.back().map_or(Time(0), |t| t.finished);
        // What is asked on the way tells less of its own: its errors are those of the trip.
        let trust = |t: &FinishedTrip| {
            let age_ms = newest.millis_since(t.finished) as f64;
            libm::exp2(-age_ms / AGE_HALF_MS) * (1.0 - under_way(&t.ahead) / 2.0)
        };
        let trusts: Vec<f64> = self.finished.iter().map(trust).collect();
        self.table.weights = self.fit_weights(&trusts);
        self.drift = 0.0;
        self.refit_drift(now);
        self.table.widths = self.fit_widths(&trusts);
        self.table.spreads = self.fit_spreads();
    }

    /// Least absolute relative error, by least squares whose weights are refitted; drawn towards the prior.
    fn fit_weights(&self, trusts: &[f64]) -> [f64; WEIGHTS] {
        let mut weights = PRIOR;
        let rows: Vec<([f64; WEIGHTS], f64)> =
            self.finished.iter().map(|t| (features(&t.ahead), libm::log(t.took_s()))).collect();
        for _ in 0..ROUNDS {
            let mut equations = Equations::ridge(RIDGE, &PRIOR);
            for ((x, y), trust) in rows.iter().zip(trusts) {
                let off = y - dot(&weights, x);
                equations.add(x, trust / off.abs().max(OFF_MIN), *y);
            }
            match equations.solve() {
                Some(solved) => weights = solved,
                None => return PRIOR,
            }
        }
        weights
    }

    fn refit_drift(&mut self, now: Time) {
        self.drifted = drift_looked_at(now);
        self.table.weights[0] -= self.drift;
        self.drift = self.drift_at(self.drifted);
        self.table.weights[0] += self.drift;
    }

    /// By how much those who set off last took longer than the weights say: what the whole fleet meets just now. The
    /// longer ago, the less each counts; believed by half from so many fresh trips.
    fn drift_at(&self, now: Time) -> f64 {
        let set_off = self.finished.iter().rev().filter(|t| stage(&t.ahead) == 0).take(DRIFT_TRIPS);
        let off = |t: &FinishedTrip| {
            let age_ms = now.millis_since(t.finished).max(0) as f64;
            let off = libm::log(t.took_s()) - dot(&self.table.weights, &features(&t.ahead));
            (off, libm::exp2(-age_ms / AGE_HALF_MS))
        };
        let mut offs: Vec<(f64, f64)> = set_off.map(off).collect();
        offs.sort_by(|a, b| a.0.total_cmp(&b.0));
        let total: f64 = offs.iter().map(|(_, weight)| weight).sum();
        let drift = middle(&offs, total).clamp(-1.0, 1.0) * total / (total + DRIFT_PRIOR);
        if drift.abs() < DRIFT_MIN { 0.0 } else { drift }
    }

    /// How wide errors are by what is known beforehand: the most likely widths if errors fall off as Laplace's, found by
    /// scoring steps; drawn towards one width for all.
    fn fit_widths(&self, trusts: &[f64]) -> [f64; WIDTHS] {
        let mut widths = WIDTHS_PRIOR;
        let rows: Vec<([f64; WIDTHS], f64)> =
            self.finished.iter().map(|t| (width_features(&t.ahead), off(t).abs().max(0.01))).collect();
        for _ in 0..ROUNDS {
            let mut equations = Equations::ridge(WIDTH_RIDGE, &WIDTHS_PRIOR);
            for ((x, off), trust) in rows.iter().zip(trusts) {
                let log = dot(&widths, x);
                let ratio = (off / width_of(log)).min(RATIO_MAX);
                // One step as least squares: towards where the ratio would be one.
                equations.add(x, *trust, log + ratio - 1.0);
            }
            match equations.solve() {
                Some(solved) => widths = solved,
                None => return WIDTHS_PRIOR,
            }
        }
        widths
    }

    /// The errors' quantiles, in widths, as they were when the predictions were made.
    fn fit_spreads(&self) -> [Spread; STAGES] {
        let mut errors: [Vec<f64>; STAGES] = Default::default();
        for trip in self.finished.iter().rev() {
            let errors = &mut errors[stage(&trip.ahead)];
            if errors.len() < SCORED_MAX {
                errors.push(off(trip) / self.table.width(&trip.ahead));
            }
        }
        errors.map(|mut errors| spread(&mut errors))
    }
}

/// ln(true ÷ predicted), as it was predicted then.
fn off(trip: &FinishedTrip) -> f64 {
    let predicted_s = (f64::from(trip.predicted_ms) / 1000.0).max(1.0);
    libm::log(trip.took_s() / predicted_s).clamp(-2.0, 2.0)
}

/// The same for all who ask within five minutes.
fn drift_looked_at(now: Time) -> Time {
    Time(now.0.div_euclid(DRIFT_EVERY_MS) * DRIFT_EVERY_MS)
}

/// The weighted median of rising values; between two that share the middle, halfway.
fn middle(values: &[(f64, f64)], total: f64) -> f64 {
    let half = total / 2.0;
    let mut below = 0.0;
    for (i, (value, weight)) in values.iter().enumerate() {
        below += weight;
        if below > half {
            return *value;
        }
        if below == half {
            return values.get(i + 1).map_or(*value, |(next, _)| (value + next) / 2.0);
        }
    }
    values.last().map_or(0.0, |(value, _)| *value)
}

/// Quantiles at 10 and 90 %, as far as there are samples.
fn spread(errors: &mut [f64]) -> Spread {
    errors.sort_by(f64::total_cmp);
    let n = errors.len();
    if n < 20 {
        return SPREAD_PRIOR;
    }
    // Conformal: the quantile among n + 1, so that the next one is covered as often as promised.
    let at = |p: f64| errors[(((n + 1) as f64 * p) as usize).clamp(1, n) - 1];
    let trust = n as f64 / (n as f64 + SPREAD_TRIPS);
    let mix = |seen: f64, believed: f64| seen * trust + believed * (1.0 - trust);
    Spread { low: mix(at(0.1), SPREAD_PRIOR.low).min(0.0), high: mix(at(0.9), SPREAD_PRIOR.high).max(0.0) }
}

/// Weighted least squares, as its normal equations.
struct Equations<const N: usize> {
    normal: [[f64; N]; N],
    right: [f64; N],
}

impl<const N: usize> Equations<N> {
    fn ridge(strength: f64, prior: &[f64; N]) -> Self {
        let mut equations = Equations { normal: [[0.0; N]; N], right: prior.map(|p| p * strength) };
        for i in 0..N {
            equations.normal[i][i] = strength;
        }
        equations
    }

    fn add(&mut self, x: &[f64; N], trust: f64, y: f64) {
        for i in 0..N {
            let trusted = trust * x[i];
            for (sum, other) in self.normal[i].iter_mut().zip(x) {
                *sum += trusted * other;
            }
            self.right[i] += trusted * y;
        }
    }

    /// Gauss with pivots; None where the equations say nothing.
    fn solve(self) -> Option<[f64; N]> {
        let Equations { normal: mut a, right: mut b } = self;
        for column in 0..N {
            let pivot = (column..N).max_by(|i, k| a[*i][column].abs().total_cmp(&a[*k][column].abs()))?;
            if a[pivot][column].abs() < 1e-9 {
                return None;
            }
            a.swap(column, pivot);
            b.swap(column, pivot);
            for row in column + 1..N {
                let share = a[row][column] / a[column][column];
                let pivot = a[column];
                for (left, known) in a[row].iter_mut().zip(pivot).skip(column) {
                    *left -= share * known;
                }
                b[row] -= share * b[column];
            }
        }
        let mut x = [0.0; N];
        for row in (0..N).rev() {
            let known: f64 = (row + 1..N).map(|k| a[row][k] * x[k]).sum();
            x[row] = (b[row] - known) / a[row][row];
        }
        x.iter().all(|v| v.is_finite()).then_some(x)
    }
}

/// Less than half a minute and more than three hours is not a trip.
const TOOK_S_MIN: i64 = 30;
const TOOK_S_MAX: i64 = 10_800;
const COMING_MAX: usize = 4_096;
const FINISHED_MAX: usize = 4_000;
/// Of these, setting off and under way apart, the interval is made.
const SCORED_MAX: usize = 200;
const FIT_EVERY: u32 = 20;
const ROUNDS: usize = 12;
/// What happened two hours ago counts half.
const AGE_HALF_MS: f64 = 2.0 * 3_600_000.0;
/// How strongly weights are drawn towards their priors.
const RIDGE: f64 = 40.0;
const WIDTH_RIDGE: f64 = 5.0;
/// Errors below 5 % are as good as none.
const OFF_MIN: f64 = 0.05;
const RATIO_MAX: f64 = 20.0;
const DRIFT_TRIPS: usize = 30;
/// What they come to if they finished within three quarters of an hour.
const DRIFT_PRIOR: f64 = 27.0;
/// So often it is looked at again while few trips finish.
const DRIFT_EVERY_MS: i64 = 300_000;
/// Half a percent is as good as none: so a table comes to rest.
const DRIFT_MIN: f64 = 0.005;
const SPREAD_TRIPS: f64 = 40.0;
