//! Between our register structs and KVM's.

use crate::regs::{DescriptorTable, Regs, Segment, SystemRegs};
use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};

pub(super) fn regs_from_kvm(k: &kvm_regs) -> Regs {
    Regs {
        rax: k.rax,
        rbx: k.rbx,
        rcx: k.rcx,
        rdx: k.rdx,
        rsi: k.rsi,
        rdi: k.rdi,
        rsp: k.rsp,
        rbp: k.rbp,
        r8: k.r8,
        r9: k.r9,
        r10: k.r10,
        r11: k.r11,
        r12: k.r12,
        r13: k.r13,
        r14: k.r14,
        r15: k.r15,
        rip: k.rip,
        rflags: k.rflags,
    }
}

pub(super) fn regs_to_kvm(r: &Regs) -> kvm_regs {
    kvm_regs {
        rax: r.rax,
        rbx: r.rbx,
        rcx: r.rcx,
        rdx: r.rdx,
        rsi: r.rsi,
        rdi: r.rdi,
        rsp: r.rsp,
        rbp: r.rbp,
        r8: r.r8,
        r9: r.r9,
        r10: r.r10,
        r11: r.r11,
        r12: r.r12,
        r13: r.r13,
        r14: r.r14,
        r15: r.r15,
        rip: r.rip,
        rflags: r.rflags,
    }
}

fn segment_from_kvm(k: &kvm_segment) -> Segment {
    Segment {
        selector: k.selector,
        base: k.base,
        limit: k.limit,
        kind: k.type_,
        dpl: k.dpl,
        non_system: k.s != 0,
        present: k.present != 0,
        available: k.avl != 0,
        long: k.l != 0,
        db: k.db != 0,
        granularity: k.g != 0,
        unusable: k.unusable != 0,
    }
}

fn segment_to_kvm(s: &Segment) -> kvm_segment {
    kvm_segment {
        base: s.base,
        limit: s.limit,
        selector: s.selector,
        type_: s.kind,
        present: s.present.into(),
        dpl: s.dpl,
        db: s.db.into(),
        s: s.non_system.into(),
        l: s.long.into(),
        g: s.granularity.into(),
        avl: s.available.into(),
        unusable: s.unusable.into(),
        padding: 0,
    }
}

fn table_to_kvm(table: &DescriptorTable) -> kvm_dtable {
    kvm_dtable {
        base: table.base,
        limit: table.limit,
        padding: [0; 3],
    }
}

fn table_from_kvm(table: &kvm_dtable) -> DescriptorTable {
    DescriptorTable {
        base: table.base,
        limit: table.limit,
    }
}

pub(super) fn system_regs_from_kvm(k: &kvm_sregs) -> SystemRegs {
    SystemRegs {
        cs: segment_from_kvm(&k.cs),
        ds: segment_from_kvm(&k.ds),
        es: segment_from_kvm(&k.es),
        fs: segment_from_kvm(&k.fs),
        gs: segment_from_kvm(&k.gs),
        ss: segment_from_kvm(&k.ss),
        tr: segment_from_kvm(&k.tr),
        ldt: segment_from_kvm(&k.ldt),
        gdt: table_from_kvm(&k.gdt),
        idt: table_from_kvm(&k.idt),
        cr0: k.cr0,
        cr2: k.cr2,
        cr3: k.cr3,
        cr4: k.cr4,
        cr8: k.cr8,
        efer: k.efer,
        apic_base: k.apic_base,
    }
}

/// `present` supplies what our struct does not hold: the interrupt bitmap.
pub(super) fn system_regs_to_kvm(r: &SystemRegs, present: &kvm_sregs) -> kvm_sregs {
    kvm_sregs {
        cs: segment_to_kvm(&r.cs),
        ds: segment_to_kvm(&r.ds),
        es: segment_to_kvm(&r.es),
        fs: segment_to_kvm(&r.fs),
        gs: segment_to_kvm(&r.gs),
        ss: segment_to_kvm(&r.ss),
        tr: segment_to_kvm(&r.tr),
        ldt: segment_to_kvm(&r.ldt),
        gdt: table_to_kvm(&r.gdt),
        idt: table_to_kvm(&r.idt),
        cr0: r.cr0,
        cr2: r.cr2,
        cr3: r.cr3,
        cr4: r.cr4,
        cr8: r.cr8,
        efer: r.efer,
        apic_base: r.apic_base,
        interrupt_bitmap: present.interrupt_bitmap,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_go_to_kvm_and_back_unchanged() {
        let regs = Regs {
            rax: 1,
            rbx: 2,
            r15: 3,
            rip: 0xfff0,
            rflags: 2,
            ..Regs::default()
        };
        assert_eq!(regs_from_kvm(&regs_to_kvm(&regs)), regs);
        let cs = Segment {
            selector: 8,
            limit: 0xffff_ffff,
            kind: 11,
            non_system: true,
            present: true,
            long: true,
            granularity: true,
            ..Segment::default()
        };
        let system = SystemRegs {
            cs,
            gdt: DescriptorTable { base: 0x500, limit: 31 },
            cr3: 0x9000,
            efer: 0x500,
            ..SystemRegs::default()
        };
        assert_eq!(
            system_regs_from_kvm(&system_regs_to_kvm(&system, &kvm_sregs::default())),
            system
        );
    }
}
