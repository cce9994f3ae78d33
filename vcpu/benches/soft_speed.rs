//! How many guest instructions the software CPU executes in a second, by kind of loop. Criterion's "elements" are
//! instructions.
#![expect(clippy::unwrap_used, reason = "a benchmark that can't run has nothing to say")]

#[path = "../tests/support/soft_machine.rs"]
mod soft_machine;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use iced_x86::IcedError;
use iced_x86::code_asm::{
    CodeAssembler, dword_ptr, eax, ebx, ecx, edi, edx, esi, xmm0, xmm1, xmm2, xmm3, xmm4, xmmword_ptr,
};
use soft_machine::Machine;
use umbra_memslots::ram::GuestRam;
use umbra_memslots::{Gpa, GuestMemory};
use umbra_vcpu::backend::VcpuBackend;
use umbra_vcpu::exit::{VmEntry, VmExit};
use umbra_vcpu::regs::{Regs, SystemRegs};
use umbra_vcpu::soft::SoftVcpu;

const CODE: u64 = 0x1000;
const INSTRUCTIONS: u64 = 1_000_000;
/// CR4: SSE may be used.
const OSFXSR: u64 = 1 << 9;

/// A flat 32-bit guest whose endless loop `body` is.
fn guest(body: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> (GuestRam, SoftVcpu) {
    let mut code = CodeAssembler::new(32).unwrap();
    let mut again = code.create_label();
    code.set_label(&mut again).unwrap();
    body(&mut code).unwrap();
    code.jmp(again).unwrap();
    let code = code.assemble(CODE).unwrap();
    let machine = Machine::new(1 << 20);
    machine.ram.write(Gpa::new(CODE), &code).unwrap();
    let mut vcpu = machine.vcpu(CODE, 0x9000);
    let system = vcpu.system_regs().unwrap();
    vcpu.set_system_regs(&SystemRegs { cr4: OSFXSR, ..system }).unwrap();
    let regs = vcpu.regs().unwrap();
    vcpu.set_regs(&Regs {
        rsi: 0x1_0000,
        rdi: 0x2_0000,
        ..regs
    })
    .unwrap();
    (machine.ram, vcpu)
}

fn speed(c: &mut Criterion) {
    let mut group = c.benchmark_group("soft");
    group.throughput(Throughput::Elements(INSTRUCTIONS));
    group.sample_size(10);
    let mut measure = |name: &str, (_ram, mut vcpu): (GuestRam, SoftVcpu)| {
        group.bench_function(name, |b| {
            b.iter(|| {
                vcpu.stop_after(INSTRUCTIONS);
                assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Interrupted);
            });
        });
    };
    measure(
        "integer",
        guest(|a| {
            for _ in 0..4 {
                a.add(eax, ebx)?;
                a.lea(ecx, eax + edx * 4)?;
                a.xor(edx, ecx)?;
                a.shr(ebx, 3)?;
                a.inc(ebx)?;
                a.imul_2(eax, ecx)?;
            }
            Ok(())
        }),
    );
    measure(
        "memory",
        guest(|a| {
            for offset in 0..6 {
                a.mov(eax, dword_ptr(esi + 4 * offset))?;
                a.add(eax, ecx)?;
                a.mov(dword_ptr(edi + 4 * offset), eax)?;
                a.add(dword_ptr(edi + 64), eax)?;
            }
            Ok(())
        }),
    );
    measure(
        "sse",
        guest(|a| {
            for _ in 0..4 {
                a.movaps(xmm0, xmmword_ptr(esi))?;
                a.paddd(xmm1, xmm0)?;
                a.pxor(xmm2, xmm1)?;
                a.addps(xmm3, xmm0)?;
                a.mulss(xmm4, xmm3)?;
                a.movaps(xmmword_ptr(edi), xmm2)?;
            }
            Ok(())
        }),
    );
    measure(
        "branch",
        guest(|a| {
            let mut over = a.create_label();
            a.inc(ecx)?;
            a.test(ecx, 1)?;
            a.jne(over)?;
            a.inc(edx)?;
            a.set_label(&mut over)?;
            a.cmp(ecx, edx)
        }),
    );
    // A page filled and a page copied in each round.
    group.throughput(Throughput::Bytes(1 << 20));
    let (_ram, mut vcpu) = guest(|a| {
        a.mov(edi, 0x2_0000)?;
        a.mov(ecx, 0x400)?;
        a.rep().stosd()?;
        a.mov(esi, 0x2_0000)?;
        a.mov(edi, 0x3_0000)?;
        a.mov(ecx, 0x400)?;
        a.rep().movsd()
    });
    group.bench_function("string", |b| {
        b.iter(|| {
            // 128 rounds of 8 instructions and 8 KiB.
            vcpu.stop_after(128 * 8);
            assert_eq!(vcpu.run(VmEntry::Resume).unwrap(), VmExit::Interrupted);
        });
    });
    group.finish();
}

criterion_group!(benches, speed);
criterion_main!(benches);
