//! What finished trips teach about predictions. Each trip is predicted when it begins and scored when it ends; the
//! weights are refitted, the median of the errors kept at zero and the interval at the errors' quantiles, over the last
//! some hundred trips. Trips are taken in at the time they finish and not before.

use std::collections::{BTreeMap, VecDeque};

use protocol::Time;
use wincode::{SchemaRead, SchemaWrite};

use super::{Ahead, Eta, EtaTable, PRIOR, SPREADS, Spread, WEIGHTS, features, spread_of};

/// A trip that ended: what was known when it was asked about, and how long it took.
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

/// Learns from finished trips, the last some hundred.
#[derive(Clone, PartialEq, Debug, Default, SchemaWrite, SchemaRead)]
pub struct EtaLearner {
    /// Told of, but not finished by the time we have reached.
    coming: BTreeMap<(Time, u32), FinishedTrip>,
    told: u32,
    finished: VecDeque<FinishedTrip>,
    since_fit: u32,
    table: EtaTable,
}

impl EtaLearner {
    /// Tells of a trip, in any order. It counts from the time it finished on. A few thousand may wait for that; more
    /// are not taken.
    pub fn handle_finished(&mut self, trip: FinishedTrip) {
        let took_s = trip.finished.millis_since(trip.asked) / 1000;
        if self.coming.len() < COMING_MAX && (TOOK_S_MIN..=TOOK_S_MAX).contains(&took_s) {
            self.coming.insert((trip.finished, self.told), trip);
            self.told = self.told.wrapping_add(1);
        }
    }

    /// The table as of a time: made from what finished before it.
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
            self.fit();
        }
        &self.table
    }

    pub fn predict(&mut self, ahead: &Ahead, now: Time) -> Eta {
        self.table(now).predict(ahead)
    }

    fn fit(&mut self) {
        let newest = self.finished.back().map_or(Time(0), |t| t.finished);
        let weights_of_age: Vec<f64> =
            self.finished.iter().map(|t| libm::exp2(-(newest.millis_since(t.finished) as f64) / AGE_HALF_MS)).collect();
        self.table.weights = self.fit_weights(&weights_of_age);
        self.table.spreads = self.fit_spreads();
    }

    /// Least absolute relative error, by least squares whose weights are refitted; drawn towards doing nothing.
    fn fit_weights(&self, ages: &[f64]) -> [f64; WEIGHTS] {
        let mut weights = PRIOR;
        let rows: Vec<([f64; WEIGHTS], f64)> =
            self.finished.iter().map(|t| (features(&t.ahead), libm::log(t.took_s()))).collect();
        for _ in 0..ROUNDS {
            let mut normal = [[0.0; WEIGHTS]; WEIGHTS];
            let mut right = [0.0; WEIGHTS];
            for i in 0..WEIGHTS {
                normal[i][i] = RIDGE[i];
                right[i] = RIDGE[i] * PRIOR[i];
            }
            for ((x, y), age) in rows.iter().zip(ages) {
                let off = y - dot(&weights, x);
                let trust = age / off.abs().max(0.05);
                for i in 0..WEIGHTS {
                    for k in 0..WEIGHTS {
                        normal[i][k] += trust * x[i] * x[k];
                    }
                    right[i] += trust * x[i] * y;
                }
            }
            match solve(normal, right) {
                Some(solved) => weights = solved,
                None => return PRIOR,
            }
        }
        weights
    }

    /// The errors' quantiles as they were when the predictions were made, short and long trips apart, leaning on all.
    fn fit_spreads(&self) -> [Spread; SPREADS] {
        let mut all: Vec<f64> = Vec::new();
        let mut apart: [Vec<f64>; SPREADS] = Default::default();
        for trip in self.finished.iter().rev().take(SCORED_MAX) {
            let predicted_s = (f64::from(trip.predicted_ms) / 1000.0).max(1.0);
            let off = libm::log(trip.took_s() / predicted_s).clamp(-2.0, 2.0);
            all.push(off);
            apart[spread_of(predicted_s)].push(off);
        }
        let wide = EtaTable::default().spreads[0];
        let pooled = spread(&mut all, wide);
        apart.map(|mut offs| spread(&mut offs, pooled))
    }
}

/// Quantiles at 10 and 90 %, as far as there are samples.
fn spread(offs: &mut [f64], believed: Spread) -> Spread {
    offs.sort_by(f64::total_cmp);
    let n = offs.len();
    if n < 20 {
        return believed;
    }
    // Conformal: the quantile among n + 1, so that the next one is covered as often as promised.
    let at = |p: f64| offs[(((n + 1) as f64 * p) as usize).clamp(1, n) - 1];
    let trust = n as f64 / (n as f64 + SPREAD_PRIOR);
    let mix = |seen: f64, believed: f64| seen * trust + believed * (1.0 - trust);
    Spread { low: mix(at(0.1), believed.low).min(0.0), high: mix(at(0.9), believed.high).max(0.0) }
}

fn dot(a: &[f64; WEIGHTS], b: &[f64; WEIGHTS]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Gauss with pivots; None where the equations say nothing.
fn solve(mut a: [[f64; WEIGHTS]; WEIGHTS], mut b: [f64; WEIGHTS]) -> Option<[f64; WEIGHTS]> {
    for column in 0..WEIGHTS {
        let pivot = (column..WEIGHTS).max_by(|i, k| a[*i][column].abs().total_cmp(&a[*k][column].abs()))?;
        if a[pivot][column].abs() < 1e-9 {
            return None;
        }
        a.swap(column, pivot);
        b.swap(column, pivot);
        for row in column + 1..WEIGHTS {
            let share = a[row][column] / a[column][column];
            let pivot = a[column];
            for (left, known) in a[row].iter_mut().zip(pivot).skip(column) {
                *left -= share * known;
            }
            b[row] -= share * b[column];
        }
    }
    let mut x = [0.0; WEIGHTS];
    for row in (0..WEIGHTS).rev() {
        let known: f64 = (row + 1..WEIGHTS).map(|k| a[row][k] * x[k]).sum();
        x[row] = (b[row] - known) / a[row][row];
    }
    x.iter().all(|v| v.is_finite()).then_some(x)
}

/// Shorter than a minute and longer than three hours is not a trip.
const TOOK_S_MIN: i64 = 60;
const TOOK_S_MAX: i64 = 10_800;
const COMING_MAX: usize = 4_096;
const FINISHED_MAX: usize = 1_000;
/// Of these the interval is made.
const SCORED_MAX: usize = 200;
const FIT_EVERY: u32 = 10;
const ROUNDS: usize = 12;
/// What happened two hours ago counts half.
const AGE_HALF_MS: f64 = 2.0 * 3_600_000.0;
/// How many trips' worth each weight is drawn towards its prior.
const RIDGE: [f64; WEIGHTS] = [20.0, 20.0, 20.0, 20.0, 20.0];
const SPREAD_PRIOR: f64 = 40.0;
