//! How a report looks.

use super::Report;
use crate::regs::{DescriptorTable, Regs, Segment, SystemRegs};
use std::fmt;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "vCPU {}: {}", self.vcpu, self.headline())?;
        if let Some(mode) = self.mode {
            writeln!(f, "  in {}", mode.name())?;
        }
        if !self.code.is_empty() {
            writeln!(f, "code at RIP")?;
            for (index, line) in self.code.iter().enumerate() {
                let mark = if index == 0 { '>' } else { ' ' };
                let bytes: Vec<String> = line.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                writeln!(f, "{mark} {:#018x}  {:<32} {}", line.rip, bytes.join(" "), line.text)?;
            }
        }
        if let Some(walk) = &self.rip_walk {
            writeln!(f, "RIP walked\n  {walk}")?;
        }
        if let Some(regs) = &self.regs {
            general(f, regs)?;
        }
        if let Some(system) = &self.system {
            segments(f, system)?;
            control(f, system)?;
        }
        let advice = self.advice();
        if !advice.is_empty() {
            writeln!(f, "what to try")?;
        }
        for thought in advice {
            writeln!(f, "  - {thought}")?;
        }
        Ok(())
    }
}

fn general(f: &mut fmt::Formatter<'_>, r: &Regs) -> fmt::Result {
    writeln!(f, "registers")?;
    let rows = [
        [("rax", r.rax), ("rbx", r.rbx), ("rcx", r.rcx), ("rdx", r.rdx)],
        [("rsi", r.rsi), ("rdi", r.rdi), ("rsp", r.rsp), ("rbp", r.rbp)],
        [("r8 ", r.r8), ("r9 ", r.r9), ("r10", r.r10), ("r11", r.r11)],
        [("r12", r.r12), ("r13", r.r13), ("r14", r.r14), ("r15", r.r15)],
    ];
    for row in rows {
        for (name, value) in row {
            write!(f, "  {name} {value:016x}")?;
        }
        writeln!(f)?;
    }
    write!(f, "  rip {:016x}  rflags {:08x}", r.rip, r.rflags)?;
    // SDM vol. 1 section 3.4.3.
    const FLAGS: [(u32, &str); 13] = [
        (0, "CF"),
        (2, "PF"),
        (4, "AF"),
        (6, "ZF"),
        (7, "SF"),
        (8, "TF"),
        (9, "IF"),
        (10, "DF"),
        (11, "OF"),
        (14, "NT"),
        (16, "RF"),
        (17, "VM"),
        (18, "AC"),
    ];
    for (bit, name) in FLAGS {
        if r.rflags >> bit & 1 != 0 {
            write!(f, " {name}")?;
        }
    }
    writeln!(f)
}

fn segments(f: &mut fmt::Formatter<'_>, s: &SystemRegs) -> fmt::Result {
    writeln!(f, "segments")?;
    let rows = [
        ("cs ", s.cs),
        ("ss ", s.ss),
        ("ds ", s.ds),
        ("es ", s.es),
        ("fs ", s.fs),
        ("gs ", s.gs),
        ("tr ", s.tr),
        ("ldt", s.ldt),
    ];
    for (name, segment) in rows {
        writeln!(f, "  {name} {}", Shown(&segment))?;
    }
    for (name, DescriptorTable { base, limit }) in [("gdt", s.gdt), ("idt", s.idt)] {
        writeln!(f, "  {name}      base {base:016x} limit {limit:04x}")?;
    }
    Ok(())
}

fn control(f: &mut fmt::Formatter<'_>, s: &SystemRegs) -> fmt::Result {
    writeln!(
        f,
        "control\n  cr0 {:08x}  cr2 {:016x}  cr3 {:016x}  cr4 {:08x}  cr8 {:x}  efer {:x}  apic base {:x}",
        s.cr0, s.cr2, s.cr3, s.cr4, s.cr8, s.efer, s.apic_base
    )
}

/// A segment on one line.
struct Shown<'a>(&'a Segment);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0;
        write!(
            f,
            "{:04x} base {:016x} limit {:08x} type {:x} dpl {}",
            s.selector, s.base, s.limit, s.kind, s.dpl
        )?;
        let marks = [
            (s.present, "P"),
            (s.non_system, "S"),
            (s.long, "L"),
            (s.db, "DB"),
            (s.granularity, "G"),
            (s.available, "AVL"),
            (s.unusable, "unusable"),
        ];
        for (on, name) in marks {
            if on {
                write!(f, " {name}")?;
            }
        }
        Ok(())
    }
}
