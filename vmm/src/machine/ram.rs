//! Where guest RAM comes from.

use crate::config::MemoryBacking;
use crate::layout::MemoryLayout;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use umbra_memslots::ram::{GuestRam, HostMapping, HugePageSize, MappingError, Sharing, Source};
use umbra_memslots::{PAGE_SIZE, SlotError};

/// Why there is no guest RAM.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The host has not enough, or refused.
    #[error("no guest RAM: {0}")]
    Mapping(#[from] MappingError),
    /// The file to hold it can't be used.
    #[error("cannot use {} as guest RAM: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// KVM refused the slot.
    #[error("KVM refuses the guest's RAM: {0}")]
    Slot(#[from] SlotError),
}

/// Maps RAM as `layout` says and makes it slots of `ram`. All of it reads as zero.
///
/// # Errors
/// [`RamError`].
pub fn map(ram: &GuestRam, layout: &MemoryLayout, backing: &MemoryBacking) -> Result<(), RamError> {
    let file = match backing {
        MemoryBacking::File(path) => Some((path, zeroed_file(path, layout.bytes())?)),
        _ => None,
    };
    let mut offset = 0;
    for range in layout.ram() {
        let bytes = range.pages() * PAGE_SIZE;
        let source = match (backing, &file) {
            (MemoryBacking::Memfd, _) => Source::Memfd,
            (MemoryBacking::Hugetlb, _) => Source::MemfdHuge(HugePageSize::Size2M),
            (_, Some((path, file))) => {
                let file = file.try_clone().map_err(|source| RamError::File {
                    path: path.to_path_buf(),
                    source,
                })?;
                Source::File {
                    file,
                    offset,
                    sharing: Sharing::Shared,
                }
            }
            (_, None) => Source::Anonymous,
        };
        let mapping = HostMapping::new(source, bytes)?;
        ram.map(range.start().base(), Arc::new(mapping))?;
        offset += bytes;
    }
    Ok(())
}

/// A file of `bytes` zero bytes. What a regular file held before is gone: a guest's RAM starts out empty.
fn zeroed_file(path: &Path, bytes: u64) -> Result<File, RamError> {
    let open = || {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        if file.metadata()?.is_file() {
            file.set_len(bytes)?;
        }
        Ok(file)
    };
    open().map_err(|source| RamError::File {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_memslots::{Gpa, GuestMemory, SlotLimits};

    fn ram_of(backing: &MemoryBacking, bytes: u64) -> Result<GuestRam, RamError> {
        let ram = GuestRam::new(SlotLimits::X86_64);
        map(&ram, &MemoryLayout::plan(bytes, 48).unwrap(), backing)?;
        Ok(ram)
    }

    #[test]
    fn every_backing_gives_zeroed_writable_ram() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ram");
        std::fs::write(&path, b"what was there before").unwrap();
        for backing in [MemoryBacking::Anon, MemoryBacking::Memfd, MemoryBacking::File(path)] {
            let ram = ram_of(&backing, 4 << 20).unwrap();
            let mut bytes = [1; 32];
            ram.read(Gpa::new(0), &mut bytes).unwrap();
            assert_eq!(bytes, [0; 32], "{backing:?}");
            ram.write(Gpa::new((4 << 20) - 1), &[7]).unwrap();
            assert!(ram.write(Gpa::new(4 << 20), &[7]).is_err());
        }
    }

    #[test]
    fn file_is_as_long_as_the_ram_of_both_ranges() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ram");
        let ram = ram_of(&MemoryBacking::File(path.clone()), (3 << 30) + (2 << 20)).unwrap();
        assert_eq!(path.metadata().unwrap().len(), (3 << 30) + (2 << 20));
        ram.write(Gpa::new(4 << 30), b"high").unwrap();
        let mut bytes = [0; 4];
        use std::os::unix::fs::FileExt;
        File::open(path).unwrap().read_exact_at(&mut bytes, 3 << 30).unwrap();
        assert_eq!(&bytes, b"high", "the second range goes on where the first ends");
    }

    #[test]
    fn more_than_the_host_has_is_refused() {
        let error = ram_of(&MemoryBacking::Anon, 1 << 45).unwrap_err();
        assert!(error.to_string().contains("more than this host"), "{error}");
    }

    #[test]
    fn unusable_file_is_named() {
        let error = ram_of(&MemoryBacking::File("/nonexistent/ram".into()), 4 << 20).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/ram"), "{error}");
    }
}
