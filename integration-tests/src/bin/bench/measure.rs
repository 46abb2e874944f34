//! Samples and the table made of them.

use std::time::Duration;

/// Times of one thing.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<Duration>);

impl Samples {
    /// Adds the time of a turn, counted from 0; turn 0 warms caches and does not count.
    pub fn add(&mut self, turn: usize, time: Duration) {
        if turn > 0 {
            self.0.push(time);
            self.0.sort_unstable();
        }
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In milliseconds; of an even number, the mean of the middle two.
    fn median(&self) -> f64 {
        let middle = self.0.len() / 2;
        let upper = milliseconds(self.0[middle]);
        if self.0.len().is_multiple_of(2) {
            f64::midpoint(milliseconds(self.0[middle - 1]), upper)
        } else {
            upper
        }
    }

    fn text(&self) -> String {
        let (Some(first), Some(last)) = (self.0.first(), self.0.last()) else { return "left out".into() };
        let (first, last) = (milliseconds(*first), milliseconds(*last));
        format!("{:.1} ({first:.1} - {last:.1}) n={}", self.median(), self.0.len())
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// What the two columns of a row are to show.
#[derive(Clone, Copy, Debug)]
enum Aim {
    None,
    /// A takes at most so many times as long as B.
    AtMostSlower(f64),
    /// B takes at least so many times as long as A.
    AtLeastFaster(f64),
}

/// One comparison.
#[derive(Clone, Debug)]
pub struct Row {
    what: String,
    a: (String, Samples),
    b: (String, Samples),
    aim: Aim,
}

impl Row {
    /// A comparison of A with B, without an aim.
    pub fn new(what: &str, a: &str, a_samples: Samples, b: &str, b_samples: Samples) -> Self {
        Self { what: what.into(), a: (a.into(), a_samples), b: (b.into(), b_samples), aim: Aim::None }
    }

    /// A is to take at most `times` as long as B.
    pub fn at_most_slower(self, times: f64) -> Self {
        Self { aim: Aim::AtMostSlower(times), ..self }
    }

    /// A is to be at least `times` faster than B.
    pub fn at_least_faster(self, times: f64) -> Self {
        Self { aim: Aim::AtLeastFaster(times), ..self }
    }

    fn cells(&self) -> [String; 6] {
        let (ratio, aim) = if self.b.1.is_empty() {
            ("-".into(), "-".into())
        } else {
            let slower = self.a.1.median() / self.b.1.median();
            let met = |met: bool| if met { "met" } else { "NOT MET" };
            match self.aim {
                Aim::None => (format!("A/B {slower:.2}"), "-".into()),
                Aim::AtMostSlower(times) => {
                    (format!("A/B {slower:.2}"), format!("A/B at most {times}: {}", met(slower <= times)))
                }
                Aim::AtLeastFaster(times) => (
                    format!("B/A {:.1}", 1.0 / slower),
                    format!("B/A at least {times}: {}", met(1.0 / slower >= times)),
                ),
            }
        };
        let side = |(name, samples): &(String, Samples)| format!("{name} {}", samples.text());
        [self.what.clone(), side(&self.a), side(&self.b), ratio, aim, String::new()]
    }
}

/// Prints the rows under a heading.
pub fn print_table(rows: &[Row]) {
    let heading = ["WHAT", "A", "B", "RATIO", "AIM", ""].map(String::from);
    let lines: Vec<_> = std::iter::once(heading).chain(rows.iter().map(Row::cells)).collect();
    let width = |column: usize| lines.iter().map(|cells| cells[column].len()).max().unwrap_or(0);
    let widths: Vec<_> = (0..5).map(width).collect();
    for cells in &lines {
        let padded = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        println!("  {}", padded.collect::<Vec<_>>().join("  ").trim_end());
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn the_first_turn_does_not_count_and_the_median_is_the_middle() {
        let mut samples = Samples::default();
        for (turn, ms) in [900, 4, 1, 3, 2].into_iter().enumerate() {
            samples.add(turn, Duration::from_millis(ms));
        }
        assert_eq!(samples.text(), "2.5 (1.0 - 4.0) n=4");
    }

    #[test]
    fn a_ratio_says_whether_its_aim_is_met() {
        let samples = |ms| {
            let mut samples = Samples::default();
            samples.add(1, Duration::from_millis(ms));
            samples
        };
        let row = Row::new("x", "a", samples(10), "b", samples(50));
        assert_eq!(row.clone().at_least_faster(4.0).cells()[3..5], ["B/A 5.0", "B/A at least 4: met"]);
        assert_eq!(row.clone().at_least_faster(6.0).cells()[4], "B/A at least 6: NOT MET");
        assert_eq!(row.at_most_slower(0.1).cells()[4], "A/B at most 0.1: NOT MET");
        assert_eq!(
            Row::new("x", "a", samples(1), "b", Samples::default()).at_most_slower(1.0).cells()[4],
            "-"
        );
    }
}
