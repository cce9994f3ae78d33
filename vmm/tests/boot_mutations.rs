//! Valid images with bytes changed, cut off or added: loading ends, with a state or with an error of one line.

mod boot_support;

use boot_support::fuzz_bodies::{load_kernel, load_payload, load_with_surroundings};
use boot_support::{MIB, Segment, bzimage, elf, multiboot_header, pattern, pipe, pvh_note, with_size};
use proptest::prelude::*;
use std::sync::OnceLock;

/// One of each kind, small: a fault in the headers is likelier then.
fn images() -> &'static [Vec<u8>] {
    static IMAGES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let code = pattern(20_000, 1);
        let segments = [Segment::new(MIB, code.clone()), Segment::new(2 * MIB, code)];
        let kernel = elf(64, MIB, &segments, Some(&pvh_note(MIB)));
        let mut images = vec![
            kernel.clone(),
            elf(64, MIB, &segments, None),
            elf(
                32,
                MIB,
                &[Segment::new(MIB, [multiboot_header(3, &[]), vec![1; 500]].concat())],
                None,
            ),
            [
                multiboot_header(1 << 16, &[0x10_0000, 0x10_0000, 0, 0x20_0000, 0x10_0040]),
                vec![2; 500],
            ]
            .concat(),
            bzimage(&kernel),
        ];
        for (tool, arguments) in [
            ("gzip", &["-n"][..]),
            ("bzip2", &[]),
            ("lzma", &[]),
            ("xz", &["--check=crc32", "--x86", "--lzma2=,dict=1MiB"]),
            ("lz4", &["-l", "-c", "-q"]),
            ("zstd", &["-q"]),
        ] {
            if let Some(compressed) = pipe(tool, arguments, &kernel) {
                let gzip = tool == "gzip";
                images.push(bzimage(&if gzip {
                    compressed
                } else {
                    with_size(compressed, &kernel)
                }));
            }
        }
        images
    })
}

/// A change to an image; positions are taken modulo its size.
#[derive(Clone, Debug)]
enum Change {
    Set {
        at: usize,
        to: u8,
    },
    /// Most decisions hang on the headers.
    SetHeader {
        at: usize,
        to: u32,
    },
    Cut {
        at: usize,
    },
    Grow {
        by: usize,
    },
    Double {
        at: usize,
        bytes: usize,
    },
}

fn change() -> impl Strategy<Value = Change> {
    let number = prop_oneof![
        Just(0),
        Just(1),
        Just(u32::MAX),
        Just(0x8000_0000),
        any::<u32>(),
        0u32..0x10_0000
    ];
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, to)| Change::Set { at, to }),
        (0usize..0x280, number).prop_map(|(at, to)| Change::SetHeader { at, to }),
        any::<usize>().prop_map(|at| Change::Cut { at }),
        (0usize..10_000).prop_map(|by| Change::Grow { by }),
        (any::<usize>(), 1usize..500).prop_map(|(at, bytes)| Change::Double { at, bytes }),
    ]
}

fn apply(image: &mut Vec<u8>, change: &Change) {
    let size = image.len().max(1);
    match *change {
        Change::Set { at, to } => {
            if let Some(byte) = image.get_mut(at % size) {
                *byte = to;
            }
        }
        Change::SetHeader { at, to } => {
            for (byte, to) in image.iter_mut().skip(at).zip(to.to_le_bytes()) {
                *byte = to;
            }
        }
        Change::Cut { at } => image.truncate(at % size),
        Change::Grow { by } => image.resize(image.len() + by, 0xcc),
        Change::Double { at, bytes } => {
            let at = at % size;
            let part = image[at.min(image.len())..(at + bytes).min(image.len())].to_vec();
            image.extend(part);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn changed_image_loads_or_is_refused(which: prop::sample::Index, changes in prop::collection::vec(change(), 1..6)) {
        let mut image = which.get(images()).clone();
        for change in &changes {
            apply(&mut image, change);
        }
        load_kernel(&image);
    }

    #[test]
    fn any_initrd_and_command_line_load_or_are_refused(which: prop::sample::Index, rest: Vec<u8>, length: Option<u32>) {
        let image = which.get(images());
        let length = length.unwrap_or(u32::try_from(image.len()).unwrap());
        load_with_surroundings(&[&length.to_le_bytes()[..], image, &rest].concat());
    }

    #[test]
    fn payload_with_any_bytes_behind_its_magic_loads_or_is_refused(
        magic in prop::sample::select(vec![
            &b"\x1f\x8b\x08"[..], b"\xfd7zXZ\0", b"\x5d\0\0", b"BZh9", b"\x02\x21\x4c\x18", b"\x28\xb5\x2f\xfd", b"\x7fELF",
        ]),
        rest: Vec<u8>,
        size in 0u32..100_000,
    ) {
        load_payload(&[magic, &rest, &size.to_le_bytes()].concat());
    }

    #[test]
    fn any_bytes_are_no_kernel_or_load(bytes: Vec<u8>) {
        load_kernel(&bytes);
    }
}
