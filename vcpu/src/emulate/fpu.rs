//! x87, SSE and extended state as data, and its images in memory (SDM vol. 1 sections 10.5, 13.4).

/// An 80-bit extended-precision number as it lies in a register.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct F80 {
    /// Significand with its explicit integer bit.
    pub mantissa: u64,
    /// Sign in bit 15, biased exponent below.
    pub sign_exponent: u16,
}

/// x87, SSE and the rest of the XSAVE-managed state.
#[derive(Clone, PartialEq, Debug)]
pub struct FpuState {
    /// The x87 registers by physical number (R0..R7), not by distance from the top.
    pub x87: [F80; 8],
    /// Control word.
    pub control: u16,
    /// Status word; the top of the stack in bits 11..=13.
    pub status: u16,
    /// One bit for each physical register that is not empty.
    pub tags: u8,
    /// Last opcode, 11 bits.
    pub opcode: u16,
    /// Last instruction pointer.
    pub instruction: u64,
    /// Last data pointer.
    pub data: u64,
    /// XMM0..XMM15.
    pub xmm: [u128; 16],
    /// SSE control and status.
    pub mxcsr: u32,
    /// The MXCSR bits that exist on this CPU.
    pub mxcsr_mask: u32,
    /// XCR0: which components are enabled.
    pub xcr0: u64,
    /// XINUSE: which components (2 and up) are not in their initial state.
    pub in_use: u64,
    /// Components 2 and up, each at its place in the standard format of the XSAVE area; byte 0 here is byte 576 there.
    pub extended: Vec<u8>,
}

impl Default for FpuState {
    /// The state after reset and `fninit`, with nothing but x87 enabled.
    fn default() -> Self {
        Self {
            x87: [F80::default(); 8],
            control: Self::INITIAL_CONTROL,
            status: 0,
            tags: 0,
            opcode: 0,
            instruction: 0,
            data: 0,
            xmm: [0; 16],
            mxcsr: Self::INITIAL_MXCSR,
            mxcsr_mask: Self::MXCSR_MASK,
            xcr0: 1,
            in_use: 0,
            extended: Vec::new(),
        }
    }
}

/// Components of the XSAVE-managed state.
pub mod component {
    /// x87 and MMX.
    pub const X87: u64 = 1 << 0;
    /// XMM registers and MXCSR.
    pub const SSE: u64 = 1 << 1;
    /// Upper halves of YMM.
    pub const AVX: u64 = 1 << 2;
}

/// Length of the legacy region.
pub const LEGACY: usize = 512;
/// Where extended components begin.
pub const EXTENDED: usize = 576;

impl FpuState {
    /// Control word after initialisation.
    pub const INITIAL_CONTROL: u16 = 0x037f;
    /// MXCSR after reset.
    pub const INITIAL_MXCSR: u32 = 0x1f80;
    /// The MXCSR bits that every CPU with SSE2 has.
    pub const MXCSR_MASK: u32 = 0xffff;

    /// Register number of ST(0).
    #[inline]
    pub const fn top(&self) -> usize {
        (self.status >> 11 & 7) as usize
    }

    /// Makes the register with this number (0..=7) ST(0).
    #[inline]
    pub const fn set_top(&mut self, top: usize) {
        self.status = self.status & !(7 << 11) | (top as u16 & 7) << 11;
    }

    /// The x87 part as `fninit` leaves it.
    pub fn init_x87(&mut self) {
        self.control = Self::INITIAL_CONTROL;
        (self.status, self.tags, self.opcode) = (0, 0, 0);
        (self.instruction, self.data) = (0, 0);
    }

    /// PKRU, component 9, at its standard place.
    pub fn pkru(&self) -> u32 {
        const PKRU: usize = 2688 - EXTENDED;
        let present = self.in_use & 1 << 9 != 0;
        let bytes = self.extended.get(PKRU..PKRU + 4).filter(|_| present);
        bytes.map_or(0, |bytes| number(bytes) as u32)
    }

    /// The state in an XSAVE area of the standard format (at least 576 bytes), all of whose legacy part is valid.
    pub fn from_area(area: &[u8], xcr0: u64) -> Self {
        let mut state = Self {
            xcr0,
            ..Self::default()
        };
        let mut legacy = [0; LEGACY];
        legacy.copy_from_slice(&area[..LEGACY]);
        let in_use = number(&area[LEGACY..LEGACY + 8]);
        state.x87_from_image(&legacy, true);
        state.xmm_from_image(&legacy, 16);
        state.mxcsr = number(&legacy[24..28]) as u32;
        // AMD has one bit more.
        state.mxcsr_mask |= number(&legacy[28..32]) as u32;
        state.in_use = in_use;
        state.extended = area[EXTENDED..].to_vec();
        state
    }

    /// An XSAVE area of `length` bytes (at least 576) in the standard format that holds the state.
    pub fn to_area(&self, length: usize) -> Vec<u8> {
        let mut legacy = [0; LEGACY];
        self.x87_to_image(&mut legacy, true);
        self.mxcsr_to_image(&mut legacy);
        self.xmm_to_image(&mut legacy, 16);
        let mut area = legacy.to_vec();
        let in_use = self.in_use | component::X87 | component::SSE;
        area.extend_from_slice(&in_use.to_le_bytes());
        area.resize(EXTENDED, 0);
        area.extend_from_slice(&self.extended);
        area.resize(length, 0);
        area
    }

    /// Writes the x87 part into an FXSAVE image, with 64-bit pointers or with 32-bit ones.
    pub fn x87_to_image(&self, image: &mut [u8; LEGACY], wide: bool) {
        image[0..2].copy_from_slice(&self.control.to_le_bytes());
        image[2..4].copy_from_slice(&self.status.to_le_bytes());
        image[4] = self.tags;
        image[5] = 0;
        image[6..8].copy_from_slice(&self.opcode.to_le_bytes());
        let mask = if wide { u64::MAX } else { 0xffff_ffff };
        image[8..16].copy_from_slice(&(self.instruction & mask).to_le_bytes());
        image[16..24].copy_from_slice(&(self.data & mask).to_le_bytes());
        for index in 0..8 {
            let number = self.x87[(self.top() + index) & 7];
            let at = 32 + 16 * index;
            image[at..at + 8].copy_from_slice(&number.mantissa.to_le_bytes());
            image[at + 8..at + 10].copy_from_slice(&number.sign_exponent.to_le_bytes());
            image[at + 10..at + 16].fill(0);
        }
    }

    /// Takes the x87 part from an FXSAVE image.
    pub fn x87_from_image(&mut self, image: &[u8; LEGACY], wide: bool) {
        let word = |at: usize| u16::from_le_bytes([image[at], image[at + 1]]);
        let long = |at: usize| number(&image[at..at + 8]);
        self.control = word(0) & 0x1f7f | 0x40;
        self.status = word(2);
        self.tags = image[4];
        self.opcode = word(6) & 0x7ff;
        let mask = if wide { u64::MAX } else { 0xffff_ffff };
        self.instruction = long(8) & mask;
        self.data = long(16) & mask;
        for index in 0..8 {
            let at = 32 + 16 * index;
            let top = self.top();
            self.x87[(top + index) & 7] = F80 {
                mantissa: long(at),
                sign_exponent: word(at + 8),
            };
        }
    }

    /// Writes MXCSR and its mask into an FXSAVE image.
    pub fn mxcsr_to_image(&self, image: &mut [u8; LEGACY]) {
        image[24..28].copy_from_slice(&self.mxcsr.to_le_bytes());
        image[28..32].copy_from_slice(&self.mxcsr_mask.to_le_bytes());
    }

    /// Writes the first `count` XMM registers into an FXSAVE image.
    pub fn xmm_to_image(&self, image: &mut [u8; LEGACY], count: usize) {
        for (place, value) in image[160..].chunks_exact_mut(16).zip(&self.xmm[..count]) {
            place.copy_from_slice(&value.to_le_bytes());
        }
    }

    /// Takes the first `count` XMM registers from an FXSAVE image.
    pub fn xmm_from_image(&mut self, image: &[u8; LEGACY], count: usize) {
        for (place, value) in image[160..].chunks_exact(16).zip(&mut self.xmm[..count]) {
            *value = u128::from(number(&place[..8])) | u128::from(number(&place[8..])) << 64;
        }
    }
}

/// Little-endian number of up to 8 bytes.
pub(super) fn number(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |n, byte| (n << 8) | u64::from(*byte))
}
