//! What a vCPU did, in numbers for people and programs.

use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use umbra_devices::bus::{CursorStats, RegionStats};
use umbra_devices::{BusAddress, BusCursor, IoOp};
use umbra_mmu::direct::DirectStats;

use crate::exit::VmExit;
use crate::fallback::Stretches;
use crate::hot_pages::HotPages;
use crate::shadow_counts::ShadowRun;
use crate::soft::{RecognitionTimes, SoftRun};

/// The kinds of exit that are counted apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExitKind {
    /// A read of memory that no slot backs.
    MmioRead,
    /// A write to memory that no slot backs or that is read-only.
    MmioWrite,
    /// `in`.
    PioRead,
    /// `out`.
    PioWrite,
    /// A kick or a signal.
    Interrupted,
    /// `hlt` that nobody but us could end.
    Hlt,
    /// `rdmsr` or `wrmsr` passed up.
    Msr,
    /// End of interrupt passed up.
    EndOfInterrupt,
    /// The interrupt window opened.
    IrqWindow,
    /// The end of this vCPU: shutdown, system event, debug event, failure.
    Final,
}

impl ExitKind {
    /// Every kind, in the order of the counters.
    pub const ALL: [Self; 10] = [
        Self::MmioRead,
        Self::MmioWrite,
        Self::PioRead,
        Self::PioWrite,
        Self::Interrupted,
        Self::Hlt,
        Self::Msr,
        Self::EndOfInterrupt,
        Self::IrqWindow,
        Self::Final,
    ];

    /// What people read, e.g. `MMIO read`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MmioRead => "MMIO read",
            Self::MmioWrite => "MMIO write",
            Self::PioRead => "port read",
            Self::PioWrite => "port write",
            Self::Interrupted => "interrupted",
            Self::Hlt => "halt",
            Self::Msr => "MSR",
            Self::EndOfInterrupt => "end of interrupt",
            Self::IrqWindow => "interrupt window",
            Self::Final => "final",
        }
    }

    /// The kind of an exit.
    pub const fn of(exit: &VmExit) -> Self {
        match exit {
            VmExit::Mmio { op: IoOp::Read, .. } => Self::MmioRead,
            VmExit::Mmio { .. } => Self::MmioWrite,
            VmExit::Pio { op: IoOp::Read, .. } => Self::PioRead,
            VmExit::Pio { .. } => Self::PioWrite,
            VmExit::Interrupted => Self::Interrupted,
            VmExit::Hlt => Self::Hlt,
            VmExit::ReadMsr { .. } | VmExit::WriteMsr { .. } => Self::Msr,
            VmExit::IoapicEoi { .. } => Self::EndOfInterrupt,
            VmExit::IrqWindowOpen => Self::IrqWindow,
            VmExit::Shutdown
            | VmExit::SystemEvent(_)
            | VmExit::Debug { .. }
            | VmExit::EmulationFailure { .. }
            | VmExit::Fatal(_) => Self::Final,
        }
    }
}

/// Count and time of one kind of exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct ExitStat {
    /// How many.
    pub count: u64,
    /// Time from the exit to the moment the guest can be entered again, in nanoseconds; 0 unless time was taken.
    pub handling_ns: u64,
    /// Longest of them, in nanoseconds; 0 unless time was taken.
    pub longest_ns: u64,
}

/// The counters of the exit path: plain numbers of one thread.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ExitTally {
    kinds: [ExitStat; ExitKind::ALL.len()],
    guest_ns: u64,
}

impl ExitTally {
    #[inline]
    pub fn count(&mut self, kind: ExitKind) {
        self.kinds[kind as usize].count += 1;
    }

    /// Adds what one exit took, and what the guest (with the kernel under it) had before it.
    pub fn time(&mut self, kind: ExitKind, handling: Duration, guest: Duration) {
        let stat = &mut self.kinds[kind as usize];
        let nanos = nanos(handling);
        stat.handling_ns += nanos;
        stat.longest_ns = stat.longest_ns.max(nanos);
        self.guest_ns += crate::stats::nanos(guest);
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Everything one vCPU counted, or several added up.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct VcpuStats {
    /// By kind; kinds that never happened are left out.
    pub exits: Vec<(ExitKind, ExitStat)>,
    /// Time in the guest, and in the kernel on its behalf, in nanoseconds; 0 unless time was taken.
    pub guest_ns: u64,
    /// How MMIO was recognised.
    pub mmio: MmioStats,
    /// How accesses to the MMIO bus were resolved.
    pub mmio_bus: BusStats,
    /// How accesses to the port bus were resolved.
    pub port_bus: BusStats,
    /// Faults on shadow tables, by what became of those that were not MMIO; empty for a backend without such tables.
    pub faults: BTreeMap<&'static str, u64>,
    /// The pages that MMIO went to most, the most used first; empty unless pages were counted.
    pub hot_pages: Vec<HotPage>,
    /// Instructions that the backend could not execute and the instruction core did, by mnemonic.
    pub in_software: BTreeMap<String, u64>,
    /// How the guest stayed in software after those.
    pub stretches: Stretches,
    /// What a software CPU executed.
    pub software_cpu: SoftRun,
}

/// What became of faults on shadow tables.
pub(crate) fn fault_outcomes(run: &ShadowRun) -> BTreeMap<&'static str, u64> {
    BTreeMap::from([
        ("mapped", run.mmu.fixed),
        ("table writes", run.mmu.tracked_writes),
        ("for the guest", run.mmu.injected),
        ("tables ran out", run.mmu.reclaims),
    ])
}

/// A page and how often it was accessed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct HotPage {
    /// The page's frame number.
    pub gfn: u64,
    /// Accesses; of pages that were not always among the most used, too many rather than too few.
    pub accesses: u64,
}

impl HotPage {
    pub(crate) fn list(pages: &HotPages) -> Vec<Self> {
        pages
            .hottest()
            .into_iter()
            .map(|(gfn, accesses)| Self {
                gfn: gfn.get(),
                accesses,
            })
            .collect()
    }
}

/// How the vCPU found out that an access is MMIO.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct MmioStats {
    /// Recognised by the vCPU's own cache of its last MMIO page.
    pub cache_hits: u64,
    /// Recognised by a fresh MMIO SPTE.
    pub spte_hits: u64,
    /// Searches of the memory slots.
    pub searches: u64,
    /// MMIO SPTEs met that were made before the slots changed (each followed by a search).
    pub stale: u64,
    /// MMIO SPTEs made.
    pub created: u64,
    /// Writes to read-only slots.
    pub read_only_writes: u64,
    /// Accesses that arrived as MMIO and found memory, put there in the meantime; they went to the memory.
    pub went_to_memory: u64,
    /// What recognising took on shadow tables.
    #[serde(flatten)]
    pub times: RecognitionTimes,
}

impl MmioStats {
    /// Accesses.
    pub const fn accesses(&self) -> u64 {
        self.cache_hits + self.spte_hits + self.searches
    }

    /// Adds what was recognised on shadow tables.
    pub(crate) fn add_shadow(&mut self, run: &ShadowRun) {
        self.cache_hits += run.mmu.cache_hits;
        self.spte_hits += run.mmu.spte_hits;
        self.searches += run.searches;
        self.stale += run.mmu.stale;
        self.created += run.mmu.created;
        self.times.add(&run.times);
    }

    /// Accesses that needed no search of the memory slots.
    pub const fn searches_avoided(&self) -> u64 {
        self.cache_hits + self.spte_hits
    }
}

/// How a bus resolved accesses.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct BusStats {
    /// Resolved by the first load of the index.
    pub direct: u64,
    /// Resolved from what the vCPU remembered of its last search.
    pub remembered: u64,
    /// Resolved by a search.
    pub searched: u64,
    /// Reads that nobody answered.
    pub unclaimed_reads: u64,
    /// Writes that nobody took.
    pub unclaimed_writes: u64,
    /// Accesses that a device refused.
    pub refused: u64,
    /// By device, in the order in which they were attached.
    pub regions: Vec<RegionUse>,
}

/// Accesses to one device's range.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RegionUse {
    /// Its name.
    pub name: String,
    /// Reads.
    pub reads: u64,
    /// Writes.
    pub writes: u64,
}

impl VcpuStats {
    pub(crate) fn new(tally: &ExitTally, direct: &DirectStats, went_to_memory: u64) -> Self {
        let DirectStats {
            cache_hits,
            spte_hits,
            stale,
            searches,
            created,
            read_only_writes,
            ..
        } = *direct;
        Self {
            exits: ExitKind::ALL
                .into_iter()
                .zip(tally.kinds)
                .filter(|(_, stat)| stat.count != 0)
                .collect(),
            guest_ns: tally.guest_ns,
            mmio: MmioStats {
                cache_hits,
                spte_hits,
                searches,
                stale,
                created,
                read_only_writes,
                went_to_memory,
                times: RecognitionTimes::default(),
            },
            ..Self::default()
        }
    }

    /// Count and time of one kind.
    pub fn exit(&self, kind: ExitKind) -> ExitStat {
        self.exits
            .iter()
            .find(|(each, _)| *each == kind)
            .map_or_else(ExitStat::default, |(_, stat)| *stat)
    }

    /// Exits of all kinds.
    pub fn total_exits(&self) -> u64 {
        self.exits.iter().map(|(_, stat)| stat.count).sum()
    }

    /// Adds another vCPU's numbers.
    pub fn add(&mut self, other: &Self) {
        for (kind, stat) in &other.exits {
            match self.exits.binary_search_by_key(kind, |(kind, _)| *kind) {
                Ok(at) => {
                    let sum = &mut self.exits[at].1;
                    sum.count += stat.count;
                    sum.handling_ns += stat.handling_ns;
                    sum.longest_ns = sum.longest_ns.max(stat.longest_ns);
                }
                Err(at) => self.exits.insert(at, (*kind, *stat)),
            }
        }
        self.guest_ns += other.guest_ns;
        let MmioStats {
            cache_hits,
            spte_hits,
            searches,
            stale,
            created,
            read_only_writes,
            went_to_memory,
            times,
        } = other.mmio;
        self.mmio.times.add(&times);
        self.mmio.cache_hits += cache_hits;
        self.mmio.spte_hits += spte_hits;
        self.mmio.searches += searches;
        self.mmio.stale += stale;
        self.mmio.created += created;
        self.mmio.read_only_writes += read_only_writes;
        self.mmio.went_to_memory += went_to_memory;
        self.mmio_bus.add(&other.mmio_bus);
        self.port_bus.add(&other.port_bus);
        for (outcome, count) in &other.faults {
            *self.faults.entry(outcome).or_default() += count;
        }
        for page in &other.hot_pages {
            match self.hot_pages.iter_mut().find(|mine| mine.gfn == page.gfn) {
                Some(mine) => mine.accesses += page.accesses,
                None => self.hot_pages.push(*page),
            }
        }
        self.hot_pages
            .sort_by_key(|page| (std::cmp::Reverse(page.accesses), page.gfn));
        for (mnemonic, count) in &other.in_software {
            *self.in_software.entry(mnemonic.clone()).or_default() += count;
        }
        self.stretches.add(&other.stretches);
        self.software_cpu.add(&other.software_cpu);
    }
}

impl BusStats {
    pub(crate) fn of<A: BusAddress>(cursor: &BusCursor<A>) -> Self {
        let CursorStats {
            direct,
            remembered,
            searched,
            unclaimed_reads,
            unclaimed_writes,
            refused,
            ..
        } = cursor.stats();
        let regions = cursor
            .region_stats()
            .into_iter()
            .map(
                |RegionStats {
                     name, reads, writes, ..
                 }| RegionUse {
                    name: name.to_string(),
                    reads,
                    writes,
                },
            )
            .collect();
        Self {
            direct,
            remembered,
            searched,
            unclaimed_reads,
            unclaimed_writes,
            refused,
            regions,
        }
    }

    fn add(&mut self, other: &Self) {
        self.direct += other.direct;
        self.remembered += other.remembered;
        self.searched += other.searched;
        self.unclaimed_reads += other.unclaimed_reads;
        self.unclaimed_writes += other.unclaimed_writes;
        self.refused += other.refused;
        for region in &other.regions {
            match self.regions.iter_mut().find(|mine| mine.name == region.name) {
                Some(mine) => {
                    mine.reads += region.reads;
                    mine.writes += region.writes;
                }
                None => self.regions.push(region.clone()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_counted_apart_and_added_up() {
        let mut tally = ExitTally::default();
        tally.count(ExitKind::MmioRead);
        tally.count(ExitKind::Final);
        tally.time(ExitKind::MmioRead, Duration::from_nanos(70), Duration::from_micros(1));
        let one = VcpuStats::new(
            &tally,
            &DirectStats {
                cache_hits: 1,
                ..DirectStats::default()
            },
            0,
        );
        assert_eq!(
            one.exit(ExitKind::MmioRead),
            ExitStat {
                count: 1,
                handling_ns: 70,
                longest_ns: 70
            }
        );
        let mut other = ExitTally::default();
        other.count(ExitKind::PioWrite);
        other.count(ExitKind::MmioRead);
        let mut sum = VcpuStats::new(
            &other,
            &DirectStats {
                searches: 2,
                ..DirectStats::default()
            },
            0,
        );
        sum.add(&one);
        assert_eq!(sum.total_exits(), 4);
        assert_eq!(sum.exit(ExitKind::MmioRead).count, 2);
        assert_eq!((sum.mmio.accesses(), sum.mmio.searches_avoided()), (3, 1));
        assert!(sum.exits.is_sorted_by_key(|(kind, _)| *kind));
        assert_eq!(sum.guest_ns, 1000);
    }

    #[test]
    fn each_kind_is_its_own_counter() {
        for (index, kind) in ExitKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, index, "{}", kind.name());
        }
    }
}
