//! The loops on every machine there is, in turns.

use crate::median::Times;
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;
use std::time::Duration;
use umbra_integration_tests::speed::guest::Work;
use umbra_integration_tests::speed::machine::Machine;
use umbra_integration_tests::speed::marks::Sample;
use umbra_integration_tests::speed::rows::Row;
use umbra_integration_tests::speed::run::Guest;

/// A machine on the command line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Choice {
    /// This project's software CPU.
    Umbra,
    /// Bochs.
    Bochs,
    /// QEMU's TCG.
    Qemu,
}

/// One machine's times.
#[derive(Clone, Debug)]
pub struct Column {
    /// Which machine.
    pub choice: Choice,
    /// Its name for the table's head.
    pub title: String,
    /// The times of each loop.
    pub times: BTreeMap<Row, Times>,
}

/// All that was measured.
#[derive(Clone, Debug)]
pub struct Results {
    /// What the guest did.
    pub work: Work,
    /// How often each machine was started.
    pub rounds: u32,
    /// The machines that are installed.
    pub columns: Vec<Column>,
}

impl Choice {
    fn machine(self, vmm: &Path) -> Machine {
        match self {
            Self::Umbra => Machine::Umbra {
                vmm: vmm.to_owned(),
                backend: "soft",
            },
            Self::Bochs => Machine::Bochs,
            Self::Qemu => Machine::Qemu {
                count_instructions: false,
            },
        }
    }
}

/// Runs the guest `rounds` times on each machine.
///
/// # Errors
/// A machine fails, or two computed different things.
pub fn rows(vmm: &Path, work: Work, rounds: u32, chosen: &[Choice]) -> Result<Results, Box<dyn Error>> {
    let mut machines = Vec::new();
    for choice in [Choice::Umbra, Choice::Bochs, Choice::Qemu] {
        let machine = choice.machine(vmm);
        match machine.title() {
            _ if !chosen.is_empty() && !chosen.contains(&choice) => {}
            Ok(title) => machines.push((choice, title, machine, Gathered::default())),
            Err(missing) => println!("skipped: {missing}"),
        }
    }
    let guest = Guest::new(work)?;
    let mut checksums = BTreeMap::new();
    for round in 0..rounds {
        for (_, title, machine, gathered) in &mut machines {
            eprintln!("round {} of {rounds}: {title}", round + 1);
            let samples = guest.run(machine)?;
            agree(&mut checksums, &samples).map_err(|different| format!("{title}: {different}"))?;
            gathered.add(&samples);
        }
    }
    Ok(Results {
        work: guest.work().clone(),
        rounds,
        columns: machines
            .into_iter()
            .map(|(choice, title, _, gathered)| Column {
                choice,
                title,
                times: gathered.times(),
            })
            .collect(),
    })
}

/// Holds what was computed against what was computed before.
fn agree(known: &mut BTreeMap<Row, u32>, samples: &[Sample]) -> Result<(), String> {
    for sample in samples {
        let first = *known.entry(sample.row).or_insert(sample.checksum);
        if first != sample.checksum {
            return Err(format!(
                "{} gives {:08x}, and was {first:08x} before",
                sample.row.name(),
                sample.checksum
            ));
        }
    }
    Ok(())
}

/// Times of each loop, over several starts.
#[derive(Clone, Debug, Default)]
struct Gathered(BTreeMap<Row, Vec<Duration>>);

impl Gathered {
    /// Adds a start's, but for the first of each loop: there the machine gets to know the code.
    fn add(&mut self, samples: &[Sample]) {
        let mut warm = Vec::new();
        for sample in samples {
            if warm.contains(&sample.row) {
                self.0.entry(sample.row).or_default().push(sample.time);
            } else {
                warm.push(sample.row);
            }
        }
    }

    fn times(&self) -> BTreeMap<Row, Times> {
        let all = self.0.iter();
        all.filter_map(|(row, times)| Some((*row, Times::of(times)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(row: Row, seconds: u64, checksum: u32) -> Sample {
        Sample {
            row,
            time: Duration::from_secs(seconds),
            checksum,
            ticks: 0,
        }
    }

    #[test]
    fn gathered_leaves_the_first_run_of_each_loop_out() {
        let mut gathered = Gathered::default();
        for _ in 0..2 {
            gathered.add(&[
                sample(Row::Memory, 9, 0),
                sample(Row::Branch, 8, 0),
                sample(Row::Memory, 2, 0),
                sample(Row::Branch, 3, 0),
            ]);
        }
        let times = gathered.times();
        assert_eq!(times[&Row::Memory].most, 2.0);
        assert_eq!(times[&Row::Branch].median, 3.0);
    }

    #[test]
    fn agree_another_checksum_is_told() {
        let mut known = BTreeMap::new();
        agree(&mut known, &[sample(Row::Memory, 1, 7), sample(Row::Branch, 1, 8)]).expect("the first");
        agree(&mut known, &[sample(Row::Branch, 1, 8)]).expect("the same");
        let different = agree(&mut known, &[sample(Row::Memory, 1, 9)]);
        assert_eq!(
            different,
            Err("memory gives 00000009, and was 00000007 before".to_owned())
        );
    }
}
