//! The built-in guest's machine code, assembled when it is needed.
//!
//! Part one runs in 32-bit protected mode and builds page tables that map the first 4 GiB onto themselves. Part two runs
//! in long mode on those tables, does its work (in ring 0 or ring 3) and leaves through debug-exit. Only instructions that KVM's own emulator
//! knows are used, because on some hosts that is what executes a guest's kernel mode.

use super::plan;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use umbra_devices::models::slot_control::regs as slot_control;
use umbra_memslots::Gpa;

/// Page-table entry bits: present, writable; for user mode; a 2 MiB page; uncached.
const TABLE: u32 = 0b11;
const USER: u32 = 0b100;
const LARGE_PAGE: u32 = 1 << 7;
const UNCACHED: u32 = 0b11 << 3;
const PAGE: u32 = 4096;

/// Selectors in the guest's GDT.
const CODE_SELECTOR: u32 = 8;
const DATA_SELECTOR: u32 = 16;
const USER_DATA_SELECTOR: u32 = 24 | 3;
const USER_CODE_SELECTOR: u32 = 32 | 3;
const TASK_SELECTOR: u32 = 40;
/// Flat 64-bit code and flat data, for ring 0 and ring 3; the task state, whose upper half is 0.
const GDT: [u64; 7] = [
    0,
    0x00af_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x00cf_f300_0000_ffff,
    0x00af_fb00_0000_ffff,
    TASK_LIMIT | (plan::TASK as u64 & 0xff_ffff) << 16 | 0x89 << 40 | (plan::TASK as u64 >> 24) << 56,
    0,
];
/// Where the I/O permission bitmap begins in the task state, and its length: all ports below 0x400, closed by ones.
const IO_MAP: u32 = 104;
const IO_MAP_BYTES: u32 = 0x400 / 8;
const TASK_LIMIT: u64 = (IO_MAP + IO_MAP_BYTES) as u64;
/// Interrupts off.
const USER_FLAGS: u32 = 2;

/// The GDT lies right before part two.
const GDT_AT: u32 = plan::LONG_MODE - GDT_BYTES;
const GDT_BYTES: u32 = 8 * 7;

/// What the contested page must read as while it is RAM.
const RAM_PATTERN: u64 = 0x5241_4d20_6865_7265;

/// Where the guest does its work.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    /// In ring 0.
    Kernel,
    /// In ring 3, with ring 0 only to get there.
    User,
}

/// The whole program as a multiboot1 image (multiboot specification 0.6.96, section 3.1.1), which the vmm loads like any
/// other.
///
/// # Errors
/// The assembler refuses an instruction, which the tests show it doesn't.
pub fn assemble(privilege: Privilege) -> Result<Vec<u8>, IcedError> {
    let part_one = enter_long_mode(privilege)?;
    let part_two = work(privilege)?;
    let end = plan::LONG_MODE + u32::try_from(part_two.len()).unwrap_or(u32::MAX);
    let mut image = multiboot_header(end);
    image.extend(part_one);
    let gdt_offset = (GDT_AT - plan::LOAD) as usize;
    debug_assert!(image.len() <= gdt_offset);
    image.resize(gdt_offset, 0);
    image.extend(GDT.iter().flat_map(|descriptor| descriptor.to_le_bytes()));
    image.extend(part_two);
    Ok(image)
}

/// The header of a flat image that occupies memory up to `end`.
fn multiboot_header(end: u32) -> Vec<u8> {
    const MAGIC: u32 = 0x1bad_b002;
    /// The address fields are valid.
    const ADDRESSES: u32 = 1 << 16;
    let checksum = MAGIC.wrapping_add(ADDRESSES).wrapping_neg();
    let words = [
        MAGIC,
        ADDRESSES,
        checksum,
        plan::LOAD,
        plan::LOAD,
        end,
        end,
        plan::ENTRY,
    ];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Part one: page tables, GDT, long mode.
fn enter_long_mode(privilege: Privilege) -> Result<Vec<u8>, IcedError> {
    let entry = match privilege {
        Privilege::Kernel => TABLE,
        Privilege::User => TABLE | USER,
    };
    let pdpt = plan::TABLES + PAGE;
    let directories = plan::TABLES + 2 * PAGE;
    let mut a = CodeAssembler::new(32)?;
    let mut fill = a.create_label();

    a.cli()?;
    a.cld()?;
    a.mov(esp, plan::STACK_TOP)?;
    a.mov(edi, plan::TABLES)?;
    a.xor(eax, eax)?;
    a.mov(ecx, plan::TABLE_PAGES * PAGE / 4)?;
    a.rep().stosd()?;
    a.mov(dword_ptr(plan::TABLES), pdpt | entry)?;
    for gib in 0..4 {
        a.mov(dword_ptr(pdpt + 8 * gib), (directories + PAGE * gib) | entry)?;
    }
    // 2048 large pages: 4 GiB, each address mapped to itself.
    a.mov(edi, directories)?;
    a.mov(eax, entry | LARGE_PAGE)?;
    a.mov(ecx, 2048)?;
    a.set_label(&mut fill)?;
    a.mov(dword_ptr(edi), eax)?;
    a.add(edi, 8)?;
    a.add(eax, 2 << 20)?;
    a.dec(ecx)?;
    a.jnz(fill)?;
    // The devices' large page is not to be cached.
    a.or(dword_ptr(directories + 8 * (low_half(plan::SCRATCH) >> 21)), UNCACHED)?;

    // What lgdt reads, made on the stack: at esp + 2 the limit, behind it the base.
    a.push(GDT_AT)?;
    a.push((GDT_BYTES - 1) << 16)?;
    a.lgdt(fword_ptr(esp + 2))?;
    a.mov(eax, cr4)?;
    a.or(eax, 1 << 5)?; // CR4.PAE
    a.mov(cr4, eax)?;
    a.mov(eax, plan::TABLES)?;
    a.mov(cr3, eax)?;
    a.mov(ecx, 0xc000_0080u32)?; // EFER
    a.rdmsr()?;
    a.or(eax, 1 << 8)?; // EFER.LME
    a.wrmsr()?;
    a.mov(eax, cr0)?;
    a.or(eax, 0x8000_0001u32)?; // CR0.PG and CR0.PE
    a.mov(cr0, eax)?;
    a.push(CODE_SELECTOR)?;
    a.push(plan::LONG_MODE)?;
    a.retf()?;
    a.assemble(plan::ENTRY.into())
}

/// Part two: everything the guest is for.
fn work(privilege: Privilege) -> Result<Vec<u8>, IcedError> {
    let mut guest = LongMode::new()?;
    guest.set_up(privilege)?;
    guest.count_primes()?;
    guest.one_page()?;
    guest.pages_in_turn()?;
    guest.slot_rounds()?;
    guest.leave()?;
    guest.finish()
}

/// Part two in the making. r13 holds the answers' address, r14 the slot control's, r15 the test device's; the rest is
/// free for each step.
struct LongMode {
    a: CodeAssembler,
    puts: CodeLabel,
    put_number: CodeLabel,
    texts: Vec<(CodeLabel, String)>,
}

/// Offsets of [`plan::Answers`]' words.
const PRIMES: u32 = 0;
const SUM: u32 = 8;
const WRONG_READS: u32 = 16;
const SLOT_ROUNDS: u32 = 24;

impl LongMode {
    fn new() -> Result<Self, IcedError> {
        let mut a = CodeAssembler::new(64)?;
        let puts = a.create_label();
        let put_number = a.create_label();
        Ok(Self {
            a,
            puts,
            put_number,
            texts: Vec::new(),
        })
    }

    fn set_up(&mut self, privilege: Privilege) -> Result<(), IcedError> {
        let a = &mut self.a;
        a.mov(eax, DATA_SELECTOR)?;
        a.mov(ds, eax)?;
        a.mov(es, eax)?;
        a.mov(ss, eax)?;
        a.mov(rsp, u64::from(plan::STACK_TOP))?;
        a.mov(r13, u64::from(plan::ANSWERS))?;
        a.mov(r14, plan::SLOT_CONTROL.get())?;
        a.mov(r15, plan::SCRATCH.get())?;
        a.xor(eax, eax)?;
        for answer in [PRIMES, SUM, WRONG_READS, SLOT_ROUNDS] {
            a.mov(qword_ptr(r13 + answer), rax)?;
        }
        match privilege {
            Privilege::Kernel => self.print("guest: long mode, on page tables I built myself\n"),
            Privilege::User => {
                let mut here = a.create_label();
                // Ring 3 may use ports: their bits in the bitmap are clear, as memory is at first.
                a.mov(word_ptr(plan::TASK + 102), IO_MAP)?;
                a.mov(byte_ptr(plan::TASK + IO_MAP + IO_MAP_BYTES), 0xff)?;
                a.mov(eax, TASK_SELECTOR)?;
                a.ltr(ax)?;
                a.mov(eax, USER_DATA_SELECTOR)?;
                a.mov(ds, eax)?;
                a.mov(es, eax)?;
                a.mov(rcx, rsp)?;
                a.push(low32(USER_DATA_SELECTOR.into()))?;
                a.push(rcx)?;
                a.push(low32(USER_FLAGS.into()))?;
                a.push(low32(USER_CODE_SELECTOR.into()))?;
                a.lea(rax, ptr(here))?;
                a.push(rax)?;
                a.iretq()?;
                a.set_label(&mut here)?;
                self.print("guest: long mode, user mode, on page tables I built myself\n")
            }
        }
    }

    /// A sieve of Eratosthenes over odd numbers: byte i stands for 2i + 1 and is 1 if that is composite.
    fn count_primes(&mut self) -> Result<(), IcedError> {
        const NUMBERS: u32 = plan::SIEVE_LIMIT / 2;
        let a = &mut self.a;
        let mut next = a.create_label();
        let mut strike = a.create_label();
        let mut composite = a.create_label();
        let mut counted = a.create_label();
        let mut not_prime = a.create_label();
        a.mov(rdi, u64::from(plan::SIEVE))?;
        a.mov(r8, rdi)?;
        a.xor(eax, eax)?;
        a.mov(ecx, NUMBERS.div_ceil(8))?;
        a.rep().stosq()?;

        a.mov(ebx, 1)?; // index of 3
        a.set_label(&mut next)?;
        a.cmp(byte_ptr(r8 + rbx), 0)?;
        a.jne(composite)?;
        // p = 2i + 1; its square has index 2i(i + 1); from there every p-th index is an odd multiple.
        a.lea(rdx, ptr(rbx + rbx + 1))?;
        a.lea(rcx, ptr(rbx + 1))?;
        a.imul_2(rcx, rbx)?;
        a.add(rcx, rcx)?;
        a.cmp(ecx, NUMBERS)?;
        a.jae(counted)?;
        a.set_label(&mut strike)?;
        a.mov(byte_ptr(r8 + rcx), 1)?;
        a.add(rcx, rdx)?;
        a.cmp(ecx, NUMBERS)?;
        a.jb(strike)?;
        a.set_label(&mut composite)?;
        a.inc(ebx)?;
        a.jmp(next)?;

        // Count and add up what was not struck out; 2 is the prime that has no byte.
        a.set_label(&mut counted)?;
        let mut count = a.create_label();
        a.mov(eax, 1)?;
        a.mov(edx, 2)?;
        a.mov(ebx, 1)?;
        a.set_label(&mut count)?;
        a.cmp(byte_ptr(r8 + rbx), 0)?;
        a.jne(not_prime)?;
        a.inc(eax)?;
        a.lea(rdx, ptr(rdx + rbx * 2 + 1))?;
        a.set_label(&mut not_prime)?;
        a.inc(ebx)?;
        a.cmp(ebx, NUMBERS)?;
        a.jb(count)?;
        a.mov(qword_ptr(r13 + PRIMES), rax)?;
        a.mov(qword_ptr(r13 + SUM), rdx)?;

        self.print("guest: ")?;
        self.print_number(PRIMES)?;
        self.print(&format!(" primes below {}, their sum is ", plan::SIEVE_LIMIT))?;
        self.print_number(SUM)?;
        self.print("\n")
    }

    /// Writes a new value to one register of the test device and reads it back, over and over.
    fn one_page(&mut self) -> Result<(), IcedError> {
        let a = &mut self.a;
        let mut again = a.create_label();
        let mut right = a.create_label();
        a.mov(ecx, plan::SAME_PAGE_ACCESSES / 2)?;
        a.mov(rbx, 0x0123_4567_89ab_cdefu64)?;
        a.set_label(&mut again)?;
        a.add(rbx, rcx)?;
        a.rol(rbx, 7)?;
        a.mov(qword_ptr(r15), rbx)?;
        a.mov(rax, qword_ptr(r15))?;
        a.cmp(rax, rbx)?;
        a.je(right)?;
        a.inc(qword_ptr(r13 + WRONG_READS))?;
        a.set_label(&mut right)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        self.print(&format!(
            "guest: {} accesses to one page of a device\n",
            plan::SAME_PAGE_ACCESSES
        ))
    }

    /// Leaves a different value in each of the test device's pages, then reads them in turn.
    fn pages_in_turn(&mut self) -> Result<(), IcedError> {
        let pages = plan::SCRATCH_PAGES;
        let a = &mut self.a;
        let mut again = a.create_label();
        for page in 0..pages {
            a.mov(dword_ptr(r15 + page * PAGE + 8), 0x1000 + page)?;
        }
        // The writes above are counted among the accesses.
        a.mov(ecx, (plan::PAGES_IN_TURN_ACCESSES - pages) / pages)?;
        a.set_label(&mut again)?;
        for page in 0..pages {
            let mut right = a.create_label();
            a.cmp(dword_ptr(r15 + page * PAGE + 8), 0x1000 + page)?;
            a.je(right)?;
            a.inc(qword_ptr(r13 + WRONG_READS))?;
            a.set_label(&mut right)?;
            // A label must belong to an instruction of its own.
            a.nop()?;
        }
        a.dec(ecx)?;
        a.jnz(again)?;
        self.print(&format!(
            "guest: {} accesses to {pages} pages in turn\n",
            plan::PAGES_IN_TURN_ACCESSES
        ))
    }

    /// Has RAM put where the test device's first page is, uses it, has it removed, and finds the device there again.
    fn slot_rounds(&mut self) -> Result<(), IcedError> {
        let a = &mut self.a;
        let mut again = a.create_label();
        let mut over = a.create_label();
        a.mov(ecx, plan::SLOT_ROUNDS)?;
        a.mov(r8, RAM_PATTERN)?;
        a.mov(rax, plan::CONTESTED.get() >> 12)?;
        a.mov(qword_ptr(r14 + slot_control::FIRST_GFN), rax)?;
        a.mov(qword_ptr(r14 + slot_control::PAGES), 1)?;
        a.set_label(&mut again)?;
        // The device answers: remember what it holds.
        a.lea(rbx, ptr(rcx + 0x7700))?;
        a.mov(qword_ptr(r15), rbx)?;
        // RAM comes: a fresh page reads as zero and keeps what is written to it.
        a.mov(qword_ptr(r14 + slot_control::COMMAND), low32(slot_control::COMMAND_MAP))?;
        a.cmp(qword_ptr(r15), 0)?;
        a.jne(over)?;
        a.mov(qword_ptr(r15), r8)?;
        a.mov(rax, qword_ptr(r15))?;
        a.cmp(rax, r8)?;
        a.jne(over)?;
        // RAM goes: the device holds what it held.
        a.mov(
            qword_ptr(r14 + slot_control::COMMAND),
            low32(slot_control::COMMAND_UNMAP),
        )?;
        a.mov(rax, qword_ptr(r15))?;
        a.cmp(rax, rbx)?;
        a.jne(over)?;
        a.inc(qword_ptr(r13 + SLOT_ROUNDS))?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.set_label(&mut over)?;
        a.nop()?;
        self.print("guest: RAM came over the device's page and went again, ")?;
        self.print_number(SLOT_ROUNDS)?;
        self.print(" times\n")
    }

    /// Ends through debug-exit with the number of things that went wrong.
    fn leave(&mut self) -> Result<(), IcedError> {
        let mut halt = self.a.create_label();
        let a = &mut self.a;
        a.mov(eax, plan::SLOT_ROUNDS)?;
        a.sub(eax, dword_ptr(r13 + SLOT_ROUNDS))?;
        a.add(eax, dword_ptr(r13 + WRONG_READS))?;
        a.mov(edx, u32::from(plan::DEBUG_EXIT_PORT))?;
        a.out(dx, eax)?;
        // Nobody comes here.
        a.set_label(&mut halt)?;
        a.hlt()?;
        a.jmp(halt)
    }

    fn print(&mut self, text: &str) -> Result<(), IcedError> {
        let label = self.a.create_label();
        self.a.lea(rsi, ptr(label))?;
        self.a.call(self.puts)?;
        self.texts.push((label, text.to_owned()));
        Ok(())
    }

    fn print_number(&mut self, answer: u32) -> Result<(), IcedError> {
        self.a.mov(rax, qword_ptr(r13 + answer))?;
        self.a.call(self.put_number)
    }

    /// Subroutines and texts, behind the code.
    fn finish(mut self) -> Result<Vec<u8>, IcedError> {
        let a = &mut self.a;
        // puts: writes the bytes at rsi up to a zero to the serial port.
        let mut end = a.create_label();
        a.set_label(&mut self.puts)?;
        a.mov(edx, u32::from(plan::SERIAL_PORT))?;
        let mut put = a.create_label();
        a.set_label(&mut put)?;
        a.lodsb()?;
        a.test(al, al)?;
        a.jz(end)?;
        a.out(dx, al)?;
        a.jmp(put)?;
        a.set_label(&mut end)?;
        a.ret()?;

        // put_number: writes rax in decimal; the digits come last first and wait below the stack pointer.
        let mut digit = a.create_label();
        a.set_label(&mut self.put_number)?;
        a.mov(ecx, 10)?;
        a.mov(rdi, rsp)?;
        a.sub(rsp, 32)?;
        a.dec(rdi)?;
        a.mov(byte_ptr(rdi), 0)?;
        a.set_label(&mut digit)?;
        a.xor(edx, edx)?;
        a.div(rcx)?;
        a.add(dl, 0x30)?;
        a.dec(rdi)?;
        a.mov(byte_ptr(rdi), dl)?;
        a.test(rax, rax)?;
        a.jnz(digit)?;
        a.mov(rsi, rdi)?;
        a.call(self.puts)?;
        a.add(rsp, 32)?;
        a.ret()?;

        for (mut label, text) in self.texts {
            a.set_label(&mut label)?;
            a.db(text.as_bytes())?;
            a.db(&[0])?;
        }
        self.a.assemble(plan::LONG_MODE.into())
    }
}

fn low_half(gpa: Gpa) -> u32 {
    (gpa.get() & 0xffff_ffff) as u32
}

/// A small number as an immediate operand.
fn low32(value: u64) -> i32 {
    (value & 0x7fff_ffff) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_assembles_and_ends_where_its_header_says() {
        let image = assemble(Privilege::User).unwrap();
        let word = |index: usize| u32::from_le_bytes(image[4 * index..4 * index + 4].try_into().unwrap());
        assert_eq!(word(0).wrapping_add(word(1)).wrapping_add(word(2)), 0, "checksum");
        assert_eq!(word(5) - plan::LOAD, u32::try_from(image.len()).unwrap());
        assert!(word(5) < plan::STACK_TOP - 0x1000);
    }

    #[test]
    fn part_one_leaves_room_for_the_gdt() {
        let bytes = u32::try_from(enter_long_mode(Privilege::User).unwrap().len()).unwrap();
        assert!(plan::ENTRY + bytes <= GDT_AT);
    }
}
