//! Why a host can't have MMIO SPTEs ([`CachingOff`]), or can't be a host at all ([`LayoutError`]).

use super::layout::{MAX_PHYSICAL_BITS, MIN_PHYSICAL_BITS, MMIO_ALLOWED};

/// Why a host can't have, or wasn't given, MMIO SPTEs. Each MMIO access then costs a slot search.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum CachingOff {
    /// It was asked for.
    #[error("switched off by option")]
    ByOption,
    /// All 52 address bits are real on this host, so no entry of it can be made to fault as reserved.
    #[error("the host has {physical_bits} physical address bits, which leaves none reserved to mark an MMIO SPTE")]
    NoReservedBit {
        /// Physical address bits of the host, with the one the memory encryption uses.
        physical_bits: u32,
    },
    /// The marking bits include some that other users of the entry need.
    #[error("the MMIO mask {mask:#x} has bits outside the allowed ones ({MMIO_ALLOWED:#x})")]
    MaskNotAllowed {
        /// The mask in question.
        mask: u64,
    },
    /// The marking bits fall onto address bits of ordinary gfns.
    #[error("the MMIO value {value:#x} collides with gfn bits {gfn_bits:#x}")]
    CollidesWithGfn {
        /// The value in question.
        value: u64,
        /// Where gfns are kept.
        gfn_bits: u64,
    },
    /// The marking bits fall onto the displaced gpa bits of the L1TF defence.
    #[error("the MMIO value {value:#x} collides with the displaced gpa bits {displaced:#x}")]
    CollidesWithDisplaced {
        /// The value in question.
        value: u64,
        /// Where the displaced bits are kept.
        displaced: u64,
    },
    /// `value & mask != value`: no entry could be recognised.
    #[error("the MMIO value {value:#x} is not within its mask {mask:#x}")]
    ValueOutsideMask {
        /// The value in question.
        value: u64,
        /// The mask in question.
        mask: u64,
    },
    /// An entry that is being replaced, or an empty one, would be taken for an MMIO SPTE.
    #[error("entry {pattern:#x}, which is not an MMIO SPTE, matches the MMIO value {value:#x} under mask {mask:#x}")]
    MatchesOther {
        /// The entry that would be mistaken.
        pattern: u64,
        /// The value in question.
        value: u64,
        /// The mask in question.
        mask: u64,
    },
}

/// Host parameters that no host has.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, thiserror::Error)]
pub enum LayoutError {
    /// A width outside 32–52.
    #[error("{what} is {bits} bits; {MIN_PHYSICAL_BITS} to {MAX_PHYSICAL_BITS} were expected")]
    Width {
        /// Which width.
        what: &'static str,
        /// Its value.
        bits: u32,
    },
    /// The generation spans overlap each other, or lie where the gfn, the access or the marks are.
    #[error("generation bits {mask:#x} overlap each other or bits {taken:#x} that are not theirs")]
    GenerationSpans {
        /// The bits in question.
        mask: u64,
        /// Bits that belong to others.
        taken: u64,
    },
}
