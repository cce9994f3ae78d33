//! Dumps of a small guest's tables.

use super::view::{Tone, View};
use super::{Dump, Ours, svg, text};
use crate::style::Style;
use umbra_memslots::{Generation, Gfn};
use umbra_mmu::AccessMask;
use umbra_mmu::inspect::{Listing, Row, Seen, Share};
use umbra_mmu::mmio::{Freshness, MmioFacts, MmioGen};
use umbra_mmu::shadow::{GenerationSpans, HostParams, SpteLayout};
use umbra_mmu::x86::control::{GuestCpu, cr0, cr4, efer};
use umbra_mmu::x86::{PagingRegs, PagingState};

fn row(start: u64, level: u8, count: u64, seen: Seen) -> Row {
    let index = 0;
    let shift = 12 + 9 * (level - 1);
    Row {
        start,
        level,
        shift,
        index,
        count,
        raw: 0xbad,
        seen,
    }
}

fn table(address: u64) -> Seen {
    Seen::Table {
        address,
        access: AccessMask::ALL,
        tables: 1,
        again: false,
    }
}

fn page(address: u64) -> Seen {
    let access = AccessMask::WRITE;
    Seen::Page {
        address,
        access,
        accessed: Share::All,
        dirty: Share::Some,
        repeated: false,
    }
}

fn mmio(gfn: u64, freshness: Freshness) -> Seen {
    let generation = MmioGen::cut(Generation::from_raw(6), GenerationSpans::KVM);
    let facts = MmioFacts {
        gfn: Gfn::new(gfn).unwrap(),
        access: AccessMask::USER,
        generation,
    };
    Seen::Mmio { facts, freshness }
}

/// Two tables with a page each, of which the first is device memory, and an entry that is wrong.
fn dump(ours: fn(Listing) -> Ours, rows: Vec<Row>) -> Dump {
    let guest = vec![
        row(0, 4, 1, table(0x2000)),
        row(0, 3, 1, table(0x3000)),
        row(0, 2, 4, page(0xd000_0000)),
        row(1 << 30, 3, 1, table(0x4000)),
        row(1 << 30, 2, 1, page(0)),
        row(1 << 39, 4, 1, Seen::Reserved { bits: 0x80 }),
    ];
    Dump {
        vcpu: 0,
        state: PagingState::new(&PagingRegs {
            cr0: cr0::PG | cr0::WP,
            cr3: 0x1000,
            cr4: cr4::PAE,
            efer: efer::LMA,
            rflags: 0,
            pkru: 0,
            pdptes: [0; 4],
            cpu: GuestCpu::intel(46),
        }),
        guest: Listing {
            rows: guest,
            cut_short: false,
        },
        ours: ours(Listing { rows, cut_short: true }),
        layout: SpteLayout::new(HostParams::x86(46)).unwrap(),
        generation: Generation::from_raw(6),
    }
}

fn direct() -> View {
    let rows = vec![
        row(0xc000_0000, 3, 1, table(0x9000)),
        row(0xd000_0000, 1, 2, mmio(0xd0000, Freshness::Fresh)),
        row(0xd010_0000, 1, 1, mmio(0xd0100, Freshness::Stale)),
        row(0xfec0_0000, 1, 1, mmio(0xfec00, Freshness::Fresh)),
    ];
    View::of(&dump(Ours::Direct, rows))
}

#[test]
fn text_is_a_tree_with_mmio_beside_the_pages_that_reach_it() {
    let text = text::render(&direct(), Style::Plain);
    let expected = "\
vCPU 0: 4-level paging, CR3 0x1000 WP; memory slots at generation 6

the guest's page tables                   known about MMIO there (x86 entries)
├ 0x0 [0] table 0x2000 xwu
│ ├ 0x0 [0] table 0x3000 xwu
│ │ └ 0x0 4 × 2M → 0xd0000000 -w- Ad      0xd0000000 MMIO gfns 0xd0000–0xd0001 --u generation 6 fresh
│ │                                        0xd0100000 MMIO gfn 0xd0100 --u generation 6 stale
│ └ 0x40000000 [0] table 0x4000 xwu
│   └ 0x40000000 2M → 0x0 -w- Ad
└ 0x8000000000 512G 0xbad: reserved bits 0x80
";
    // The lines between are told apart by their trunks only.
    let squeezed = |text: &str| text.replace(['│', ' '], "");
    assert!(squeezed(&text).starts_with(&squeezed(expected)), "{text}");
    assert!(text.contains("│ │ └ 0x0 4 × 2M"), "{text}");
    assert!(text.contains("│   └ 0x40000000 2M"), "{text}");
    assert!(text.contains("0xfec00000 MMIO gfn 0xfec00"), "{text}");
    assert!(text.contains("(there is more than is shown)"), "{text}");
    assert!(
        !text.contains('\x1b') && !text.lines().any(|line| line.ends_with(' ')),
        "{text}"
    );
}

#[test]
fn right_column_is_straight() {
    let text = text::render(&direct(), Style::Plain);
    let columns: Vec<usize> = text
        .lines()
        .filter_map(|line| Some(line[..line.find(" MMIO gfn")?].chars().count()))
        .take(2)
        .collect();
    assert_eq!(columns[0], columns[1], "{text}");
}

#[test]
fn shadow_tables_stand_beside_the_guests() {
    let rows = vec![
        row(0, 4, 1, table(0x7000)),
        row(0, 3, 1, table(0x8000)),
        row(0, 1, 1, mmio(0xd0000, Freshness::Fresh)),
    ];
    let view = View::of(&dump(Ours::Shadow, rows));
    assert_eq!(view.sections.len(), 1);
    let lines = &view.sections[0].lines;
    assert!(lines[0].left.is_some() && lines[0].right.is_some());
    let alone = lines.iter().find(|line| line.left.is_none()).unwrap();
    assert_eq!(alone.right.as_ref().unwrap().tone, Tone::Fresh);
}

#[test]
fn colours_say_what_is_fresh_stale_and_wrong() {
    let text = text::render(&direct(), Style::Ansi);
    for code in ["\x1b[32m0xd0000000", "\x1b[33m0xd0100000", "\x1b[31m0x8000000000"] {
        assert!(text.contains(code), "{code:?} in {text}");
    }
}

#[test]
fn drawing_has_every_line_within_its_frame() {
    let view = direct();
    let drawing = svg::render(&view);
    let lines: usize = view.sections.iter().map(|section| section.lines.len()).sum();
    assert!(drawing.matches("<rect class").count() > lines);
    for class in ["table", "page", "fresh", "stale", "bad"] {
        assert!(drawing.contains(&format!("<rect class=\"{class}\"")), "{class}");
    }
    let number = |text: &str, key: &str| -> usize {
        let from = text.find(&format!(" {key}=\"")).unwrap() + key.len() + 3;
        let digits: String = text[from..].chars().take_while(char::is_ascii_digit).collect();
        digits.parse().unwrap()
    };
    let (width, height) = (number(&drawing, "width"), number(&drawing, "height"));
    for line in drawing
        .lines()
        .filter(|line| line.starts_with("<rect class") && line.contains(" x="))
    {
        assert!(number(line, "x") + number(line, "width") <= width, "{line}");
        assert!(number(line, "y") + number(line, "height") <= height, "{line}");
    }
    for (open, close) in [("<svg", "</svg>"), ("<text", "</text>"), ("<style", "</style>")] {
        let count = |tag| drawing.matches(tag).count();
        assert_eq!(count(open), count(close));
    }
}

#[test]
fn guest_without_paging_shows_what_is_known_by_gpa() {
    let mut dump = dump(Ours::Direct, Vec::new());
    dump.state = PagingState::new(&PagingRegs {
        cr0: 0,
        cr3: 0,
        cr4: 0,
        efer: 0,
        rflags: 0,
        pkru: 0,
        pdptes: [0; 4],
        cpu: GuestCpu::intel(46),
    });
    let text = text::render(&View::of(&dump), Style::Plain);
    assert!(text.starts_with("vCPU 0: no paging;"), "{text}");
    assert!(text.contains("(they are empty: no MMIO has been remembered)"), "{text}");
}
