//! How much was used, and for how long: a histogram whose buckets grow, and in which what is old counts less.

use k8s_openapi::jiff::Timestamp;

/// After so many seconds a sample counts half.
const HALF_LIFE: f64 = 24.0 * 3600.0;
/// Each bucket is so much wider than the one before.
const RATIO: f64 = 1.05;
/// The reference moves before weights grow beyond what a double holds well.
const MOST_HALVINGS: f64 = 100.0;

/// The buckets of one resource.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// Width of the first bucket.
    pub first: f64,
    /// What is more than this counts as this.
    pub most: f64,
}

impl Scale {
    fn start(self, bucket: usize) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "buckets are few")]
        let power = RATIO.powf(bucket as f64);
        self.first * (power - 1.0) / (RATIO - 1.0)
    }

    fn bucket(self, value: f64) -> usize {
        let value = value.clamp(0.0, self.most);
        let exact = (value * (RATIO - 1.0) / self.first + 1.0).ln() / RATIO.ln();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped above zero")]
        let bucket = (exact + 1e-9) as usize;
        bucket
    }
}

#[derive(Debug, Clone)]
pub struct Histogram {
    scale: Scale,
    weights: Vec<f64>,
    total: f64,
    reference: Timestamp,
}

impl Histogram {
    pub fn new(scale: Scale, now: Timestamp) -> Self {
        Self { scale, weights: Vec::new(), total: 0.0, reference: now }
    }

    /// Seconds between the reference and a time, in half-lives.
    fn halvings(&self, at: Timestamp) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "seconds of years fit")]
        let seconds = (at.as_second() - self.reference.as_second()) as f64;
        seconds / HALF_LIFE
    }

    /// Counts a value; a negative weight takes one back that was counted with that weight and time.
    pub fn add(&mut self, value: f64, weight: f64, at: Timestamp) {
        if self.halvings(at) > MOST_HALVINGS {
            let shrink = (-self.halvings(at)).exp2();
            self.weights.iter_mut().for_each(|weight| *weight *= shrink);
            self.total *= shrink;
            self.reference = at;
        }
        let weight = weight * self.halvings(at).exp2();
        let bucket = self.scale.bucket(value);
        if self.weights.len() <= bucket {
            self.weights.resize(bucket + 1, 0.0);
        }
        let before = self.weights[bucket];
        self.weights[bucket] = (before + weight).max(0.0);
        self.total = (self.total + self.weights[bucket] - before).max(0.0);
    }

    /// The value that this part of the time suffices: the end of its bucket. `None` while nothing is counted.
    pub fn percentile(&self, part: f64) -> Option<f64> {
        if self.total <= 0.0 {
            return None;
        }
        let mut sum = 0.0;
        let last = self.weights.iter().rposition(|weight| *weight > 0.0)?;
        let found = self.weights.iter().position(|weight| {
            sum += weight;
            sum >= part * self.total - 1e-12
        });
        Some(self.scale.start(found.unwrap_or(last).min(last) + 1))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const CPU: Scale = Scale { first: 0.01, most: 1000.0 };

    fn at(hours: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + hours * 3600).unwrap()
    }

    #[test]
    fn a_percentile_is_at_most_one_bucket_too_much() {
        let mut histogram = Histogram::new(CPU, at(0));
        assert_eq!(histogram.percentile(0.5), None);
        for percent in 1..=100 {
            histogram.add(f64::from(percent) / 100.0, 1.0, at(0));
        }
        for (part, value) in [(0.5, 0.5), (0.9, 0.9), (0.95, 0.95)] {
            let found = histogram.percentile(part).unwrap();
            assert!(found >= value && found <= value * 1.06 + 0.01, "{part}: {found}");
        }
    }

    #[test]
    fn what_is_old_counts_less() {
        let mut histogram = Histogram::new(CPU, at(0));
        histogram.add(1.0, 1.0, at(0));
        histogram.add(0.1, 1.0, at(4 * 24));
        // Sixteen to one.
        assert!(histogram.percentile(0.9).unwrap() < 0.2);
        assert!(histogram.percentile(0.99).unwrap() >= 1.0);
        // Long after, the reference has moved and nothing is lost.
        histogram.add(0.5, 1.0, at(200 * 24));
        assert!((0.5..0.6).contains(&histogram.percentile(0.5).unwrap()));
    }

    #[test]
    fn a_peak_takes_the_place_of_a_lower_one() {
        let mut histogram = Histogram::new(CPU, at(0));
        histogram.add(0.2, 1.0, at(1));
        histogram.add(0.2, -1.0, at(1));
        histogram.add(0.4, 1.0, at(1));
        assert!(histogram.percentile(0.01).unwrap() >= 0.4);
    }
}
