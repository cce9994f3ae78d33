//! [`Program`]: what a guest does, step by step, and the machine that it starts on.

use super::image::Image;
use super::memory::Action;
use umbra_vcpu::emulate::state::{cr0, cr4, efer};

/// How a guest translates addresses when it starts, which also says how its code is assembled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Paging {
    /// 32-bit code, no paging.
    Off,
    /// 32-bit code, two levels of four-byte entries.
    Bits32,
    /// 32-bit code, PAE.
    Pae,
    /// 64-bit code, four levels.
    Long,
}

impl Paging {
    /// Whether the code is 64-bit code.
    #[must_use]
    pub const fn is_long(self) -> bool {
        matches!(self, Self::Long)
    }

    /// CR0 to start with: protected mode with write protection, and paging if there is any.
    #[must_use]
    pub const fn cr0(self) -> u64 {
        let base = cr0::PE | cr0::ET | cr0::NE | cr0::WP;
        if matches!(self, Self::Off) {
            base
        } else {
            base | cr0::PG
        }
    }

    /// CR4 to start with.
    #[must_use]
    pub const fn cr4(self) -> u64 {
        match self {
            Self::Off => 0,
            Self::Bits32 => cr4::PSE,
            Self::Pae | Self::Long => cr4::PAE,
        }
    }

    /// EFER to start with: no-execute is on where entries have room for it.
    #[must_use]
    pub const fn efer(self) -> u64 {
        match self {
            Self::Off | Self::Bits32 => 0,
            Self::Pae => efer::NXE,
            Self::Long => efer::NXE | efer::LME | efer::LMA,
        }
    }
}

/// Something that a guest does. Addresses are guest-virtual. A page fault that comes of a step ends the step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Reads four bytes.
    Read(u64),
    /// Writes four bytes.
    Write(u64, u32),
    /// Writes eight bytes; in 32-bit code twice four, the lower ones first.
    Write8(u64, u64),
    /// Jumps to an address, where a jump back must lie ([`Image::jump_back`]).
    Execute(u64),
    /// Reads four bytes at CPL 3.
    UserRead(u64),
    /// Writes four bytes at CPL 3.
    UserWrite(u64, u32),
    /// Jumps there at CPL 3, where a call of the supervisor must lie ([`Image::call_supervisor`]).
    UserExecute(u64),
    /// `invlpg`.
    Invlpg(u64),
    /// Loads CR3.
    Cr3(u32),
    /// Loads CR0: these bits besides those that a program starts with, paging aside.
    Cr0(u32),
    /// Loads CR4.
    Cr4(u32),
    /// Has the next of the program's actions done.
    Act,
}

/// A guest program and its machine.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// How it starts.
    pub paging: Paging,
    /// CR3 to start with.
    pub cr3: u64,
    /// What is in memory when it starts, besides code and descriptors.
    pub image: Image,
    /// What it does.
    pub steps: Vec<Step>,
    /// What is done to its machine, at each [`Step::Act`] the next.
    pub actions: Vec<Action>,
    /// What must be among the events, for the program to be about what it says.
    pub about: &'static [&'static str],
    /// Where the accounts part, if that is known and told in `docs/conformance.md`.
    pub differs: Option<Differs>,
}

/// A difference that is known: what must be in the first events that are not the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Differs {
    /// Of KVM's.
    pub kernel: &'static str,
    /// Of ours.
    pub ours: &'static str,
}
