//! What a run did, in numbers: collected per vCPU, added up, shown as text or JSON.

pub mod text;

use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Duration;
use umbra_vcpu::fallback::Stretches;
use umbra_vcpu::soft::SoftRun;
use umbra_vcpu::stats::{BusStats, ExitKind, ExitStat, HotPage, MmioStats, VcpuStats};
use umbra_vcpu::turns::TraceSummary;

/// What a run did.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct RunReport {
    /// What executed the guest.
    pub backend: &'static str,
    /// Number of vCPUs.
    pub vcpus: u32,
    /// Since the vCPUs started.
    pub wall: Duration,
    /// Times the machine was reset before.
    pub resets: u32,
    /// The memory slots' generation at the end.
    pub slot_generation: u64,
    /// Page tables of ours in use at the end.
    pub page_tables: u32,
    /// The vCPUs' counts, added up.
    pub stats: VcpuStats,
    /// What can be compared with another run, if this one is deterministic: of all lives together.
    pub deterministic: Option<TraceSummary>,
}

/// How a report looks as JSON.
#[derive(Serialize)]
struct Json<'a> {
    backend: &'a str,
    vcpus: u32,
    wall_seconds: f64,
    resets: u32,
    slot_generation: u64,
    page_tables: u32,
    guest_ns: u64,
    exits: BTreeMap<ExitKind, ExitStat>,
    searches_avoided: u64,
    mmio: &'a MmioStats,
    mmio_bus: &'a BusStats,
    port_bus: &'a BusStats,
    faults: &'a BTreeMap<&'static str, u64>,
    hot_pages: &'a [HotPage],
    in_software: &'a BTreeMap<String, u64>,
    stretches: &'a Stretches,
    software_cpu: &'a SoftRun,
    #[serde(skip_serializing_if = "Option::is_none")]
    deterministic: Option<JsonTrace<'a>>,
}

/// How a deterministic run looks in it. The digest is text, because JSON's numbers don't have 64 bits everywhere.
#[derive(Serialize)]
struct JsonTrace<'a> {
    instructions: u64,
    instructions_by_vcpu: &'a [u64],
    guest_seconds: f64,
    events: u64,
    digest: String,
}

impl RunReport {
    /// This run and the one that followed it after a reset, as one.
    #[must_use]
    pub fn after_reset(mut self, next: &Self) -> Self {
        self.wall += next.wall;
        self.resets += 1 + next.resets;
        self.slot_generation = next.slot_generation;
        self.page_tables = next.page_tables;
        self.stats.add(&next.stats);
        self.deterministic.clone_from(&next.deterministic);
        self
    }

    /// One JSON object on one line.
    pub fn to_json(&self) -> String {
        let VcpuStats {
            exits,
            guest_ns,
            mmio,
            mmio_bus,
            port_bus,
            faults,
            hot_pages,
            in_software,
            stretches,
            software_cpu,
        } = &self.stats;
        let json = Json {
            backend: self.backend,
            vcpus: self.vcpus,
            wall_seconds: self.wall.as_secs_f64(),
            resets: self.resets,
            slot_generation: self.slot_generation,
            page_tables: self.page_tables,
            guest_ns: *guest_ns,
            exits: exits.iter().copied().collect(),
            searches_avoided: mmio.searches_avoided(),
            mmio,
            mmio_bus,
            port_bus,
            faults,
            hot_pages,
            in_software,
            stretches,
            software_cpu,
            deterministic: self.deterministic.as_ref().map(|trace| JsonTrace {
                instructions: trace.total(),
                instructions_by_vcpu: &trace.instructions,
                guest_seconds: trace.time.as_secs_f64(),
                events: trace.events,
                digest: text::digest(trace.digest),
            }),
        };
        // Strings, numbers and maps with words as keys: serialising them cannot fail.
        serde_json::to_string(&json).unwrap_or_default()
    }
}
