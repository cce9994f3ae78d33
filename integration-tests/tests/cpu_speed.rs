//! The guest of the speed table on every backend and peer of this machine: its rows come in order, each machine computes
//! the same, and each loop is as long as the table says.

use std::collections::BTreeMap;
use std::path::PathBuf;
use umbra_integration_tests::matrix::{self, Backend};
use umbra_integration_tests::speed::guest::Work;
use umbra_integration_tests::speed::machine::Machine;
use umbra_integration_tests::speed::marks::{MarkError, Sample};
use umbra_integration_tests::speed::rows::{REAL_INNER, Row};
use umbra_integration_tests::speed::run::{Guest, RunError};
use umbra_vcpu::kvm::{KvmHost, KvmKind};

type TestResult = Result<(), Box<dyn std::error::Error>>;

const PASSES: u32 = 2;
/// A few hundred rounds of each loop.
const DIVIDE: u32 = 5000;
/// Instructions between the two looks at the counter that are not the loop's: the way to CPL 3 and back, start values,
/// the checksum.
const AROUND: u64 = 40;

/// The vmm of `UMBRA_OPTIMISED_VMM` if that is set.
fn umbra(backend: Backend) -> Result<Machine, Box<dyn std::error::Error>> {
    let optimised = std::env::var_os("UMBRA_OPTIMISED_VMM").map(PathBuf::from);
    Ok(Machine::Umbra {
        vmm: optimised.map_or_else(matrix::vmm, Ok)?,
        backend: backend.name(),
    })
}

/// Whether a peer is installed; says so if not.
fn is_here(machine: &Machine) -> bool {
    machine
        .title()
        .map_err(|missing| println!("skipped: {missing}"))
        .is_ok()
}

/// The checksum of each row, after a look at the order in which the rows came.
fn checksums(work: &Work, samples: &[Sample]) -> BTreeMap<Row, u32> {
    let rows = |real: bool| work.rows.iter().filter(move |row| (**row == Row::Real) == real);
    let mut expected = Vec::new();
    for real in [true, false] {
        for _ in 0..work.passes {
            // A pass in long mode has all its rows in it.
            expected.extend(rows(real));
        }
    }
    let came: Vec<Row> = samples.iter().map(|sample| sample.row).collect();
    assert_eq!(came, expected);
    let mut sums = BTreeMap::new();
    for sample in samples {
        let first = *sums.entry(sample.row).or_insert(sample.checksum);
        assert_eq!(sample.checksum, first, "{:?} differs from pass to pass", sample.row);
    }
    sums
}

fn on_soft(work: Work) -> Result<BTreeMap<Row, u32>, Box<dyn std::error::Error>> {
    let samples = Guest::new(work.clone())?.run(&umbra(Backend::Soft)?)?;
    Ok(checksums(&work, &samples))
}

/// What the loops compute that are short enough to be written once more.
fn model(work: &Work, row: Row) -> Option<u32> {
    let rounds = work.rounds(row);
    let fold = |sum: u64| u32::try_from((sum ^ sum >> 32) & u64::from(u32::MAX)).expect("masked");
    Some(match row {
        Row::Real => {
            let (mut ax, mut bx, mut cx) = (0_u16, 0x1234_u16, 0x5678_u16);
            for _ in 0..u64::from(rounds) * u64::from(REAL_INNER) {
                ax = ax.wrapping_add(bx);
                bx ^= ax;
                cx = cx.wrapping_add(1);
                bx = bx.wrapping_add(cx);
                cx = cx.wrapping_sub(ax);
            }
            u32::from(bx) << 16 | u32::from(ax)
        }
        // The last round fills with 1; the sum of a page's two ends.
        Row::Pages => 2,
        Row::Mmio => (0..rounds).fold(0_u32, |sum, _| sum.wrapping_add(4 * 0x1_0055).rotate_left(1)),
        Row::Syscall | Row::Interrupt => fold((1..=u64::from(rounds)).sum()),
        _ => return None,
    })
}

#[test]
fn guest_on_the_software_cpu_computes_what_the_model_does() -> TestResult {
    let work = Work::all(PASSES, DIVIDE);
    for (row, sum) in on_soft(work.clone())? {
        if let Some(expected) = model(&work, row) {
            assert_eq!(sum, expected, "{row:?}");
        }
    }
    Ok(())
}

/// On a pagetable-VM KVM the loops run on the silicon itself, but its `syscall` and `int` are no use to a guest whose
/// kernel is small: such a KVM leaves the first half done and makes an exception of the second.
#[test]
fn guest_on_this_kvm_computes_the_same() -> TestResult {
    if let Some(why) = Backend::Kvm.why_not() {
        println!("skipped: backend kvm: {why}");
        return Ok(());
    }
    let pagetable = KvmHost::open()?.caps().kind == KvmKind::Pagetable;
    let machine = umbra(Backend::Kvm)?;
    let mut work = Work::all(PASSES, DIVIDE);
    let samples = match Guest::new(work.clone())?.run(&machine) {
        Err(RunError::Guest {
            source: MarkError::Exception(line),
            ..
        }) if line.starts_with(['C', 'N']) && pagetable => {
            println!("skipped: system calls on this KVM: {}", line.trim_end());
            work.rows.retain(|row| !matches!(row, Row::Syscall | Row::Interrupt));
            Guest::new(work.clone())?.run(&machine)?
        }
        samples => samples?,
    };
    assert_eq!(checksums(&work, &samples), on_soft(work)?);
    Ok(())
}

#[test]
fn guest_on_qemu_computes_the_same_in_as_many_instructions_as_the_table_says() -> TestResult {
    let machine = Machine::Qemu {
        count_instructions: true,
    };
    if !is_here(&machine) {
        return Ok(());
    }
    let work = Work::all(PASSES, DIVIDE);
    let samples = Guest::new(work.clone())?.run(&machine)?;
    for sample in &samples {
        // To QEMU each element of a `rep` is an instruction, and so is the look that finds none left.
        let elements = sample.row.elements() * u64::from(work.rounds(sample.row));
        let expected = work.instructions(sample.row) + elements;
        let more = u64::from(sample.ticks).checked_sub(expected);
        assert!(
            more.is_some_and(|more| more < AROUND),
            "{sample:?}: expected {expected} and a few"
        );
    }
    assert_eq!(checksums(&work, &samples), on_soft(work)?);
    Ok(())
}

#[test]
fn guest_on_bochs_computes_the_same() -> TestResult {
    if !is_here(&Machine::Bochs) {
        return Ok(());
    }
    let work = Work::all(PASSES, DIVIDE);
    let samples = Guest::new(work.clone())?.run(&Machine::Bochs)?;
    assert_eq!(checksums(&work, &samples), on_soft(work)?);
    Ok(())
}
