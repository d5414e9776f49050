//! How good arrivals were on a history: the figures, and a page that shows them.

mod chart;
mod page;

pub use page::page;

use super::replay::Asked;

/// What some answers were worth.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Scores {
    pub count: usize,
    /// Mean of |said − true| ÷ true, in percent.
    pub mape_percent: f64,
    /// Sum of |said − true| ÷ sum of true.
    pub wape_percent: f64,
    /// Sum of said − true ÷ sum of true.
    pub bias_percent: f64,
    /// Within the interval, below it, above it.
    pub covered_percent: f64,
    pub below_percent: f64,
    pub above_percent: f64,
    /// True no later than the middle one.
    pub by_middle_percent: f64,
    /// Half of the interval's width beside its middle.
    pub half_width_median_percent: f64,
    pub half_width_mean_percent: f64,
}

impl Scores {
    pub fn of<'a>(asked: impl IntoIterator<Item = &'a Asked>) -> Scores {
        let asked: Vec<&Asked> = asked.into_iter().collect();
        if asked.is_empty() {
            return Scores::default();
        }
        let count = asked.len() as f64;
        let share =
            |is_meant: &dyn Fn(&Asked) -> bool| 100.0 * asked.iter().filter(|one| is_meant(one)).count() as f64 / count;
        let took_s: f64 = asked.iter().map(|one| one.took_s).sum();
        let off = |one: &&Asked| one.said_s() - one.took_s;
        let mut halves: Vec<f64> = asked.iter().map(|one| one.half_width_percent()).collect();
        halves.sort_by(f64::total_cmp);
        let (low, high) = (|one: &Asked| one.took_s < one.low_s(), |one: &Asked| one.took_s > one.high_s());
        Scores {
            count: asked.len(),
            mape_percent: mape_percent(asked.iter().copied(), Asked::said_s),
            wape_percent: 100.0 * asked.iter().map(|one| off(one).abs()).sum::<f64>() / took_s,
            bias_percent: 100.0 * asked.iter().map(off).sum::<f64>() / took_s,
            covered_percent: share(&|one| !low(one) && !high(one)),
            below_percent: share(&low),
            above_percent: share(&high),
            by_middle_percent: share(&|one| one.took_s <= one.said_s()),
            half_width_median_percent: quantile(&halves, 0.5),
            half_width_mean_percent: halves.iter().sum::<f64>() / count,
        }
    }
}

/// Mean of |said − true| ÷ true of any way to say it.
pub fn mape_percent<'a>(asked: impl IntoIterator<Item = &'a Asked>, said_s: impl Fn(&Asked) -> f64) -> f64 {
    let (mut sum, mut count) = (0.0, 0usize);
    for one in asked {
        sum += (said_s(one) - one.took_s).abs() / one.took_s;
        count += 1;
    }
    100.0 * sum / count.max(1) as f64
}

/// Of sorted values, between the nearest two; 0 of none.
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let Some(last) = sorted.len().checked_sub(1) else { return 0.0 };
    let at = share.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

impl Asked {
    pub fn said_s(&self) -> f64 {
        f64::from(self.eta.p50_ms) / 1_000.0
    }

    pub fn low_s(&self) -> f64 {
        f64::from(self.eta.p10_ms) / 1_000.0
    }

    pub fn high_s(&self) -> f64 {
        f64::from(self.eta.p90_ms) / 1_000.0
    }

    pub fn half_width_percent(&self) -> f64 {
        50.0 * (self.high_s() - self.low_s()) / self.said_s().max(0.001)
    }

    /// |said − true| ÷ true.
    pub fn off_percent(&self) -> f64 {
        100.0 * (self.said_s() - self.took_s).abs() / self.took_s
    }
}

#[cfg(test)]
mod tests {
    use protocol::Time;

    use super::*;
    use crate::eta::{Ahead, Basis, Eta};

    #[test]
    fn figures_are_what_they_are_called() {
        let asked = [asked(100.0, [80, 110, 150], 0), asked(200.0, [90, 150, 190], 0), asked(50.0, [60, 60, 60], 0)];

        let scores = Scores::of(&asked);

        assert_eq!(scores.count, 3);
        assert!((scores.mape_percent - (10.0 + 25.0 + 20.0) / 3.0).abs() < 1e-9, "{scores:?}");
        assert!((scores.wape_percent - 100.0 * 70.0 / 350.0).abs() < 1e-9, "{scores:?}");
        assert!((scores.bias_percent - 100.0 * -30.0 / 350.0).abs() < 1e-9, "{scores:?}");
        let shares = [scores.covered_percent, scores.below_percent, scores.above_percent, scores.by_middle_percent];
        assert_eq!(shares.map(|share| share.round()), [33.0, 33.0, 33.0, 67.0], "{scores:?}");
        assert!((scores.half_width_median_percent - 50.0 * 70.0 / 110.0).abs() < 1e-9, "{scores:?}");
        assert_eq!(Scores::of(&[]), Scores::default());
    }

    #[test]
    fn the_page_needs_nothing_else_and_says_whose_trips_it_shows() {
        let mut judged: Vec<Asked> = (1..300).map(|i| asked(f64::from(i) * 10.0, [i * 7, i * 9, i * 12], 0)).collect();
        judged.extend((1..300).map(|i| asked(f64::from(i) * 5.0, [i * 3, i * 5, i * 7], 50)));

        let page = page("<b>Tom & \"Ann\"</b>", &judged);

        assert!(page.contains("&lt;b&gt;Tom &amp; &quot;Ann&quot;&lt;/b&gt;") && !page.contains("<b>Tom"));
        assert!(!page.contains("http") && !page.contains("<script") && !page.contains("NaN") && !page.contains("inf"));
        assert_eq!(page.matches("<svg").count(), 6);
        assert!(page.matches("<circle").count() > 300);
        assert!(page.ends_with("</html>"));
    }

    #[test]
    fn a_page_of_no_or_odd_answers_is_a_page() {
        let odd = [asked(1.0, [0, 0, 0], 0), asked(1e7, [0, u32::MAX / 1_000, u32::MAX / 1_000], 75)];

        for judged in [&[][..], &odd] {
            let page = page("", judged);
            assert!(page.matches("<svg").count() == 6 && !page.contains("NaN"), "{page}");
        }
    }

    fn asked(took_s: f64, [p10_s, p50_s, p90_s]: [u32; 3], share_percent: u8) -> Asked {
        let ms = |s: u32| s.saturating_mul(1_000);
        Asked {
            trip: 0,
            share_percent,
            at: Time(0),
            took_s,
            eta: Eta { p10_ms: ms(p10_s), p50_ms: ms(p50_s), p90_ms: ms(p90_s), basis: Basis::Road },
            ahead: Ahead { seconds: took_s, length_m: 5_000.0, straight_m: 4_000.0, turns: 3, driven_m: 0.0 },
            haversine_s: 2.0 * took_s,
            free_s: took_s / 2.0,
            free_factor: 1.5,
            is_plain: true,
        }
    }
}
