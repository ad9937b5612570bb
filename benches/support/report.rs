//! Rounds side by side, medians, ratios, and how figures are written.

use std::time::Duration;

use super::Outcome;

/// One figure per round and contestant.
pub struct Rounds {
    names: Vec<&'static str>,
    figures: Vec<Vec<f64>>,
}

/// Measures each contestant once per round. The order changes from round to round, so that nobody always goes first.
pub fn rounds(
    what: &str,
    names: &[&'static str],
    count: usize,
    mut measure: impl FnMut(usize, &'static str) -> Outcome<f64>,
) -> Outcome<Rounds> {
    let mut figures = vec![Vec::new(); names.len()];
    for round in 0..count {
        let mut order: Vec<usize> = (0..names.len()).collect();
        order.rotate_left(round / 2 % names.len());
        if round % 2 == 1 {
            order.reverse();
        }
        for place in order {
            figures[place]
                .push(measure(round, names[place]).map_err(|why| format!("{what}, {}: {why}", names[place]))?);
        }
        let row: Vec<String> =
            names.iter().zip(&figures).map(|(name, row)| format!("{name} {:.4}", row[round])).collect();
        eprintln!("  {what}, round {}: {}", round + 1, row.join(", "));
    }
    Ok(Rounds { names: names.to_vec(), figures })
}

impl Rounds {
    pub fn median(&self, name: &str) -> f64 {
        median(self.row(name).to_vec())
    }

    /// The median of each round's ratio: what slowed the machine down slowed both.
    pub fn ratio(&self, name: &str, to: &str) -> f64 {
        median(self.row(name).iter().zip(self.row(to)).map(|(ours, theirs)| ours / theirs).collect())
    }

    fn row(&self, name: &str) -> &[f64] {
        let place = self.names.iter().position(|known| *known == name).unwrap_or_default();
        &self.figures[place]
    }
}

/// What each contestant's processes used of the CPU for so much work: steadier than time when others use the machine.
#[derive(Default)]
pub struct Spent {
    seen: Vec<(&'static str, f64, f64)>,
}

impl Spent {
    /// `work` in the unit that [`Spent::tell`] names.
    pub fn add(&mut self, name: &'static str, cpu_s: f64, work: f64) {
        match self.seen.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, cpu, done)) => (*cpu, *done) = (*cpu + cpu_s, *done + work),
            None => self.seen.push((name, cpu_s, work)),
        }
    }

    /// `  GET by tag, CPU per answer in µs: sealock 9.1, nginx 14.2`
    pub fn tell(&self, what: &str, unit: &str, factor: f64) {
        let each: Vec<String> =
            self.seen.iter().map(|(name, cpu_s, work)| format!("{name} {:.1}", cpu_s / work * factor)).collect();
        eprintln!("  {what}, CPU per {unit}: {}", each.join(", "));
    }
}

pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    match figures.len() {
        0 => f64::NAN,
        odd if odd % 2 == 1 => figures[odd / 2],
        even => (figures[even / 2 - 1] + figures[even / 2]) / 2.0,
    }
}

pub fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

pub fn mib_per_s(bytes: u64, span: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / span.as_secs_f64()
}

/// `512 MiB`, `4 KiB`.
pub fn size(bytes: u64) -> String {
    if bytes >= 1 << 20 { format!("{} MiB", bytes >> 20) } else { format!("{} KiB", bytes >> 10) }
}

/// Of the last minute: how much else ran on this machine.
pub fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}
