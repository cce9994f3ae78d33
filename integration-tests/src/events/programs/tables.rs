//! Page tables: code and tables mapped where they are, and a window at 1 GiB whose tables each program fills.

use crate::events::image::{Image, SYSTEM, USER};
use crate::events::program::{Paging, Program, Step};

/// The window: an address of which the first entry of each table in [`Window`] is in charge.
pub const WINDOW: u64 = 1 << 30;
/// Root of the tables.
pub const ROOT: u64 = 0x2_0000;
/// Level 2 of the window (PAE, four levels).
pub const WINDOW_DIRECTORY: u64 = 0x3_0000;
/// Level 1 of the window.
pub const WINDOW_TABLE: u64 = 0x3_8000;
/// More tables, for programs that build some.
pub const SPARE: u64 = 0x8_0000;
/// Memory for everything else.
pub const DATA: u64 = 0x10_0000;
/// Frames without a slot.
pub const MMIO: u64 = 0xd000_0000;

/// Level 3 (four levels).
pub const POINTERS: u64 = 0x2_8000;
/// Level 2 of what is mapped where it is.
pub const LOW_DIRECTORY: u64 = 0x4_0000;
/// Level 1 of what is mapped where it is.
pub const LOW_TABLE: u64 = 0x4_8000;

/// P.
pub const P: u64 = 1;
/// R/W.
pub const W: u64 = 1 << 1;
/// U/S.
pub const U: u64 = 1 << 2;
/// Accessed.
pub const A: u64 = 1 << 5;
/// Dirty.
pub const D: u64 = 1 << 6;
/// A large page.
pub const PS: u64 = 1 << 7;
/// No execution.
pub const NX: u64 = 1 << 63;
/// Present, writable, a user's; used before.
pub const RWU: u64 = P | W | U | A | D;
/// The same for the supervisor.
pub const RW: u64 = P | W | A | D;

/// Pages that are eight entries apart: KVM fills in the neighbours of an entry within eight.
pub const APART: u64 = 8 * 4096;

/// A program with these tables: everything that is needed is mapped, and the window's tables are there, empty.
pub fn start(name: &'static str, paging: Paging) -> Program {
    let mut image = Image::new();
    let mapped = [
        SYSTEM,
        ROOT,
        POINTERS,
        WINDOW_DIRECTORY,
        WINDOW_TABLE,
        LOW_DIRECTORY,
        LOW_TABLE,
    ];
    let spare = (0..8).map(|page| SPARE + page * APART);
    let data = (0..16).map(|page| DATA + page * APART);
    for page in mapped.into_iter().chain(spare).chain(data) {
        set(&mut image, paging, LOW_TABLE, page / 4096, page | RW);
    }
    set(&mut image, paging, LOW_TABLE, USER / 4096, USER | RWU);
    match paging {
        Paging::Off => {}
        Paging::Bits32 => {
            set(&mut image, paging, ROOT, 0, LOW_TABLE | RWU);
            set(&mut image, paging, ROOT, WINDOW >> 22, WINDOW_TABLE | RWU);
        }
        Paging::Pae => {
            image.entry(ROOT, 0, LOW_DIRECTORY | P);
            image.entry(ROOT, 1, WINDOW_DIRECTORY | P);
        }
        Paging::Long => {
            image.entry(ROOT, 0, POINTERS | RWU);
            image.entry(POINTERS, 0, LOW_DIRECTORY | RWU);
            image.entry(POINTERS, 1, WINDOW_DIRECTORY | RWU);
        }
    }
    if matches!(paging, Paging::Pae | Paging::Long) {
        image.entry(LOW_DIRECTORY, 0, LOW_TABLE | RWU);
        image.entry(WINDOW_DIRECTORY, 0, WINDOW_TABLE | RWU);
    }
    Program {
        name,
        paging,
        cr3: ROOT,
        image,
        steps: Vec::new(),
        actions: Vec::new(),
        about: &[],
        differs: None,
    }
}

/// The lower half, for what is 32 bits wide.
#[must_use]
pub const fn low(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// Puts an entry into a table of this kind.
pub fn set(image: &mut Image, paging: Paging, table: u64, index: u64, entry: u64) {
    if paging == Paging::Bits32 {
        image.entry4(table, index, low(entry));
    } else {
        image.entry(table, index, entry);
    }
}

impl Program {
    /// Maps a page of the window.
    pub fn window(&mut self, page: u64, entry: u64) -> u64 {
        set(&mut self.image, self.paging, WINDOW_TABLE, page, entry);
        WINDOW + page * 4096
    }

    /// Steps.
    pub fn then(mut self, steps: &[Step]) -> Self {
        self.steps.extend_from_slice(steps);
        self
    }
}
