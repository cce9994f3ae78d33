//! Random programs of crossings, on a machine of which much may be broken.

use super::machine::{
    ABSENT, AC, BROKEN, CODE, CONFORMING, DEVICE, END, GDT, HANDLER, IDT, IF, KERNEL_CODE, KERNEL_DATA, KERNEL_STACK,
    NT, OTHER_STACK, PER_CPU, READ_ONLY, RF, SUPERVISOR, TABLES, TF, TSS, USER_CODE, USER_CODE_32, USER_DATA,
    USER_STACK, World, compare, gate,
};
use super::rng::Rng;

/// Of an ordinary run, which finds the same each time; another comes by `UMBRA_SEED`.
const SEED: u64 = 0x75_6d62_7261;
/// Programs of an ordinary run; more if `UMBRA_SILICON_CASES` asks for millions of cases elsewhere.
const PROGRAMS: u64 = 150;
/// Instructions that one may execute.
const ENOUGH: u64 = 250;

/// One instruction, or a few that belong together. `starts` are places where code begins.
fn instruction(rng: &mut Rng, starts: &[u64], code: &mut Vec<u8>) {
    let place = if rng.chance(85) {
        rng.pick(starts)
    } else {
        rng.pick(&[HANDLER, CODE, 0x8000_0000_0000, u64::MAX, ABSENT, SUPERVISOR])
    };
    let rflags = 2
        | rng.next() & 0xcd5
        | if rng.chance(30) {
            rng.pick(&[TF, IF, NT, RF, AC, 3 << 12, IF | RF, 1 << 17, 1 << 21])
        } else {
            0
        };
    match rng.below(14) {
        0 | 1 => code.extend([0x0f, 0x05]),
        2 | 3 => code.extend([0xcd, rng.pick(&[0x80, 0x81, 0x82, 3, 14, 0xff])]),
        4 | 5 => {
            // `iretq` to wherever. Only what is pushed with 32 bits is right for certain.
            let (ss, cs) = rng.pick(&[
                (USER_DATA, USER_CODE),
                (USER_DATA, USER_CODE),
                (USER_DATA, USER_CODE),
                (KERNEL_DATA, KERNEL_CODE),
                (0, KERNEL_CODE),
                (3, USER_CODE),
                (USER_DATA, USER_CODE_32),
                (USER_DATA, BROKEN | 3),
                (BROKEN | 3, USER_CODE),
                (USER_DATA, CONFORMING | 3),
                (KERNEL_DATA, USER_CODE),
                (USER_DATA, 0x53),
            ]);
            let stack = rng.pick(&[
                USER_STACK,
                USER_STACK - 0xff9,
                ABSENT + 8,
                READ_ONLY + 0x800,
                KERNEL_STACK,
            ]);
            for word in [u64::from(ss), stack, rflags, u64::from(cs), place] {
                // mov rax, word; push rax
                code.extend([0x48, 0xb8]);
                code.extend(word.to_le_bytes());
                code.push(0x50);
            }
            code.extend([0x48, 0xcf]);
        }
        6 | 7 => {
            // mov rcx, place; mov r11, flags; sysret
            code.extend([0x48, 0xb9]);
            code.extend(place.to_le_bytes());
            code.extend([0x49, 0xbb]);
            code.extend(rflags.to_le_bytes());
            if rng.chance(80) {
                code.push(0x48);
            }
            code.extend([0x0f, 0x07]);
        }
        8 => code.extend([0x0f, 0x01, rng.pick(&[0xf8, 0xf8, 0xca, 0xcb])]),
        9 => {
            // Arithmetic on flags that are still to be worked out, or a look at them.
            code.extend(rng.pick(&[
                &[0x49u8, 0x01, 0xc0][..],
                &[0x49, 0xff, 0xc1],
                &[0x9c, 0x58],
                &[0x6a, 2, 0x9d],
                &[0xbb, 0, 0xb0, 0, 0, 0x48, 0x8b, 0x03],
                &[0x48, 0x19, 0xc2],
                &[0x65, 0x48, 0x8b, 0x04, 0x25, 0, 0, 0, 0],
                &[0x48, 0x89, 0xe6],
            ]));
        }
        10 => {
            // A store to somewhere.
            let at = rng.pick(&[
                ABSENT,
                READ_ONLY + 8,
                SUPERVISOR,
                USER_STACK - 0x100,
                DEVICE,
                ABSENT - 4,
            ]);
            code.extend([0xbb]);
            code.extend((at as u32).to_le_bytes());
            code.extend([0x48, 0x89, 0x03]);
        }
        11 => {
            // The stack goes elsewhere.
            let at = rng.pick(&[
                USER_STACK - 0x20,
                KERNEL_STACK - 0x333,
                ABSENT + 0x10,
                READ_ONLY + 0x100,
                OTHER_STACK,
                DEVICE + 0x100,
                0x8000_0000_0010,
            ]);
            code.extend([0x48, 0xbc]);
            code.extend(at.to_le_bytes());
        }
        12 => code.extend(rng.pick(&[&[0x48u8, 0xcf][..], &[0x48, 0x83, 0xc4, 8, 0x48, 0xcf], &[0x0f, 0x0b]])),
        _ => code.extend(END),
    }
}

/// A program of some instructions from `at` on.
fn program(rng: &mut Rng, starts: &[u64], instructions: u64) -> Vec<u8> {
    let mut code = Vec::new();
    for _ in 0..instructions {
        instruction(rng, starts, &mut code);
    }
    code.extend(END);
    code
}

/// Where the tables are other than [`World::good`] has them.
fn spoil(rng: &mut Rng, world: &mut World) {
    // The odd descriptor may be anything.
    let odd = if rng.chance(50) {
        rng.next()
    } else {
        rng.pick(&[0x00af_fb00_0000_ffff, 0x00cf_f300_0000_ffff, 0x00ef_fb00_0000_ffff]) ^ 1 << (40 + rng.below(8))
    };
    world.put(GDT + u64::from(BROKEN), odd);
    if rng.chance(40) {
        // Segments that were never used are marked.
        let selector = rng.pick(&[KERNEL_CODE, USER_DATA & !3, USER_CODE & !3, USER_CODE_32 & !3]);
        let kind = if selector == USER_DATA & !3 { 0xf2 } else { 0xfa };
        let kind = if selector == KERNEL_CODE { 0x9a } else { kind };
        let size = if selector == USER_CODE_32 & !3 { 0xcf } else { 0xaf };
        world.put(GDT + u64::from(selector), size << 48 | kind << 40 | 0xffff);
    }
    for vector in [0x80, 0x81, 0x82, 13, 14, 6, 1, 0x30] {
        if rng.chance(70) {
            continue;
        }
        let target = rng.pick(&[HANDLER, HANDLER, CODE, 0x8000_0000_0000, ABSENT]);
        let selector = rng.pick(&[
            KERNEL_CODE,
            KERNEL_CODE,
            CONFORMING,
            BROKEN,
            0,
            USER_CODE,
            KERNEL_DATA,
            0x50,
        ]);
        let kind = rng.pick(&[14, 14, 15, 15, 12, 5, 6]);
        let (dpl, ist) = (rng.pick(&[3, 3, 0]), rng.pick(&[0, 0, 0, 1, 2, 3]));
        let [low, high] = gate(target, selector, kind, dpl, ist);
        let absent = if rng.chance(10) { 1 << 47 } else { 0 };
        world.put(IDT + 16 * vector, low & !absent);
        world.put(IDT + 16 * vector + 8, high);
    }
    for (offset, percent) in [(4, 30), (0x24, 30), (0x2c, 90), (0x34, 100)] {
        if rng.chance(percent) {
            let stack = rng.pick(&[
                KERNEL_STACK,
                KERNEL_STACK - 0x777,
                ABSENT + 0x18,
                ABSENT,
                READ_ONLY + 0x200,
                0x8000_0000_0000,
                DEVICE + 0x200,
                // Page tables, and code.
                TABLES + 0x3ff0,
                HANDLER + 0x20,
            ]);
            world.put(TSS + offset, stack);
        }
    }
    if rng.chance(20) {
        world.msrs.star = rng.next();
        world.msrs.sfmask = rng.next() & 0xffff_ffff;
    }
    if rng.chance(10) {
        world.msrs.lstar = rng.pick(&[ABSENT, SUPERVISOR, CODE]);
    }
    if rng.chance(5) {
        world.msrs.efer &= !1;
    }
    if rng.chance(30) {
        // SMEP, SMAP.
        world.cr4 |= rng.pick(&[1 << 20, 1 << 21]);
    }
    for _ in 0..rng.below(4) {
        world.interrupts.push(rng.pick(&[0x30, 0x31, 0x80]));
    }
}

#[test]
fn random_crossings_fast_and_by_the_core_end_alike() {
    let cases: Option<u64> = std::env::var("UMBRA_SILICON_CASES").ok().and_then(|n| n.parse().ok());
    let programs = cases.map_or(PROGRAMS, |cases| (cases / 1000).max(PROGRAMS));
    let seed = std::env::var("UMBRA_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(SEED);
    println!("UMBRA_SEED={seed}, {programs} programs");
    let mut rng = Rng::new(seed);
    let (mut executed, mut fast) = (0, 0);
    for number in 0..programs {
        let length = 1 + rng.below(8);
        let mut starts = vec![CODE, HANDLER];
        let code = program(&mut rng, &starts, length);
        starts.push(CODE + code.len() as u64 - 2);
        let length = rng.below(5);
        let handler = program(&mut rng, &starts, length);
        let mut world = World::good(&code, &handler);
        if rng.chance(70) {
            spoil(&mut rng, &mut world);
        }
        world.cpl = rng.pick(&[0, 3]);
        world.regs.rflags |= rng.next() & 0x8d5 | if rng.chance(30) { IF } else { 0 };
        if rng.chance(10) {
            world.regs.rsp = rng.pick(&[USER_STACK - 0x123, ABSENT + 0x10, 0x8000_0000_0000]);
        }
        world.put(PER_CPU, KERNEL_STACK);
        let what = format!("program {number} of {seed}: {code:02x?}, handler {handler:02x?}");
        let (machine, _) = compare(&world, ENOUGH, &what);
        executed += machine.vcpu.executed();
        fast += machine.vcpu.executed() - machine.vcpu.counts().get().core_instructions();
    }
    println!("{executed} instructions, {fast} of them not by the core");
    assert!(fast > executed / 4, "too little is fast");
}
