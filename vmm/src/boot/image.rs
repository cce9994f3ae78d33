//! An image file: where its bytes come from, and reading them with errors that say which bytes were missing.

use super::error::{BootError, FileProblem, KernelProblem};
use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;
use umbra_memslots::Gpa;
use vm_memory::{Bytes, GuestAddress, GuestMemory, ReadVolatile};

/// What an image can be read from: a file, or a cursor over bytes.
pub trait ImageFile: Read + Seek + ReadVolatile {}

impl<T: Read + Seek + ReadVolatile> ImageFile for T {}

/// An opened image with its name for messages and its size.
#[derive(Debug)]
pub struct Image<F> {
    name: String,
    file: F,
    bytes: u64,
}

/// Opens a kernel image.
///
/// # Errors
/// [`BootError::Kernel`]: the file is missing, not readable, not a regular file or empty.
pub fn open_kernel(path: &Path) -> Result<Image<File>, BootError> {
    Image::open(path).map_err(|problem| BootError::Kernel {
        file: path.display().to_string(),
        problem: KernelProblem::File(problem),
    })
}

/// Opens an initrd.
///
/// # Errors
/// [`BootError::Initrd`]: the file is missing, not readable, not a regular file or empty.
pub fn open_initrd(path: &Path) -> Result<Image<File>, BootError> {
    Image::open(path).map_err(|problem| BootError::Initrd {
        file: path.display().to_string(),
        problem: problem.into(),
    })
}

impl Image<File> {
    fn open(path: &Path) -> Result<Self, FileProblem> {
        let file = File::open(path).map_err(FileProblem::Open)?;
        if !file.metadata().map_err(FileProblem::Open)?.is_file() {
            return Err(FileProblem::NotRegular);
        }
        Self::new(path.display().to_string(), file)
    }
}

impl<F: ImageFile> Image<F> {
    /// Wraps `file`; `name` is what messages call it.
    ///
    /// # Errors
    /// [`FileProblem::Empty`], or [`FileProblem::Read`] if it cannot be sought.
    pub fn new(name: impl Into<String>, mut file: F) -> Result<Self, FileProblem> {
        let bytes = file
            .seek(SeekFrom::End(0))
            .map_err(|source| FileProblem::Read { offset: 0, source })?;
        if bytes == 0 {
            return Err(FileProblem::Empty);
        }
        Ok(Self {
            name: name.into(),
            file,
            bytes,
        })
    }

    /// What messages call the image.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Size in bytes, at least 1.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The first `max` bytes, fewer if the image is shorter.
    pub(super) fn prefix(&mut self, max: usize) -> Result<Vec<u8>, FileProblem> {
        let mut bytes = vec![0; max.min(usize::try_from(self.bytes).unwrap_or(usize::MAX))];
        self.read_at(0, &mut bytes, "its first bytes")?;
        Ok(bytes)
    }

    /// Fills `buffer` from `offset` on; `what` says in an error what was being read.
    pub(super) fn read_at(&mut self, offset: u64, buffer: &mut [u8], what: &'static str) -> Result<(), FileProblem> {
        let wanted = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
        self.check_inside(offset, wanted, what)?;
        self.seek(offset)?;
        self.file.read_exact(buffer).map_err(|source| match source.kind() {
            ErrorKind::UnexpectedEof => FileProblem::Truncated {
                what,
                offset,
                wanted,
                file: self.bytes,
            },
            _ => FileProblem::Read { offset, source },
        })
    }

    /// Reads `wanted` bytes from `offset` on straight into guest memory at `to`, which the caller has checked to be RAM.
    pub(super) fn load_at<M: GuestMemory + ?Sized>(
        &mut self,
        offset: u64,
        wanted: u64,
        what: &'static str,
        memory: &M,
        to: Gpa,
    ) -> Result<(), FileProblem> {
        self.check_inside(offset, wanted, what)?;
        self.seek(offset)?;
        let mut done = 0;
        while done < wanted {
            let count = usize::try_from(wanted - done).unwrap_or(usize::MAX);
            let to = GuestAddress::from(Gpa::new(to.get().wrapping_add(done)));
            match memory.read_volatile_from(to, &mut self.file, count) {
                // The file shrank since it was opened.
                Ok(0) => {
                    return Err(FileProblem::Truncated {
                        what,
                        offset,
                        wanted,
                        file: offset.saturating_add(done),
                    });
                }
                Ok(count) => done += u64::try_from(count).unwrap_or(u64::MAX),
                Err(error) => {
                    return Err(FileProblem::Read {
                        offset: offset + done,
                        source: std::io::Error::other(error),
                    });
                }
            }
        }
        Ok(())
    }

    /// A reader of `wanted` bytes from `offset` on.
    pub(super) fn section(
        &mut self,
        offset: u64,
        wanted: u64,
        what: &'static str,
    ) -> Result<std::io::Take<&mut F>, FileProblem> {
        self.check_inside(offset, wanted, what)?;
        self.seek(offset)?;
        Ok(self.file.by_ref().take(wanted))
    }

    fn check_inside(&self, offset: u64, wanted: u64, what: &'static str) -> Result<(), FileProblem> {
        match offset.checked_add(wanted) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(FileProblem::Truncated {
                what,
                offset,
                wanted,
                file: self.bytes,
            }),
        }
    }

    fn seek(&mut self, offset: u64) -> Result<(), FileProblem> {
        self.file
            .seek(SeekFrom::Start(offset))
            .map(drop)
            .map_err(|source| FileProblem::Read { offset, source })
    }
}
