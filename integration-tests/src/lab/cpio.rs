//! Writes the archive format Linux unpacks as an initramfs: cpio "newc" (`Documentation/driver-api/early-userspace/buffer-format.rst`).

/// What an entry of the archive is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A directory, mode 0755.
    Directory,
    /// A regular file with these permission bits.
    File {
        /// Permission bits, e.g. `0o755`.
        mode: u32,
    },
    /// A symbolic link; the content is its target.
    Symlink,
    /// A character device node, mode 0600.
    CharDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
}

/// Size or path length does not fit the format.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {length} bytes, a newc archive takes at most 4 GiB - 1 per field")]
pub struct TooLong {
    path: String,
    length: usize,
}

/// An archive being written. Directories are made as they are needed.
#[derive(Default, Debug)]
pub struct Archive {
    bytes: Vec<u8>,
    inodes: u32,
    directories: std::collections::BTreeSet<String>,
}

impl Archive {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one entry at `path` (relative, no leading slash), and the directories above it that are still missing.
    ///
    /// # Errors
    /// The content or the path is longer than the format's 32-bit fields.
    pub fn add(&mut self, path: &str, kind: Kind, content: &[u8]) -> Result<(), TooLong> {
        for (at, _) in path.match_indices('/') {
            self.directory(&path[..at])?;
        }
        if kind == Kind::Directory {
            return self.directory(path);
        }
        self.entry(path, kind, content)
    }

    /// Ends the archive and gives its bytes.
    ///
    /// # Errors
    /// None in practice: the trailer is short.
    pub fn finish(mut self) -> Result<Vec<u8>, TooLong> {
        self.entry("TRAILER!!!", Kind::File { mode: 0 }, &[])?;
        Ok(self.bytes)
    }

    fn directory(&mut self, path: &str) -> Result<(), TooLong> {
        if self.directories.insert(path.to_owned()) {
            self.entry(path, Kind::Directory, &[])?;
        }
        Ok(())
    }

    fn entry(&mut self, path: &str, kind: Kind, content: &[u8]) -> Result<(), TooLong> {
        let too_long = |length| TooLong {
            path: path.to_owned(),
            length,
        };
        let name_size = u32::try_from(path.len() + 1).map_err(|_| too_long(path.len()))?;
        let file_size = u32::try_from(content.len()).map_err(|_| too_long(content.len()))?;
        let (mode, (major, minor)) = match kind {
            Kind::Directory => (0o040_755, (0, 0)),
            Kind::File { mode } => (0o100_000 | mode, (0, 0)),
            Kind::Symlink => (0o120_777, (0, 0)),
            Kind::CharDevice { major, minor } => (0o020_600, (major, minor)),
        };
        self.inodes += 1;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [
            self.inodes,
            mode,
            0,
            0,
            1,
            0,
            file_size,
            0,
            0,
            major,
            minor,
            name_size,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(path.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    /// Header with name, and content, each end on a multiple of four bytes.
    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new();
        archive
            .add("a/b/file", Kind::File { mode: 0o755 }, b"hello")
            .expect("short");
        archive.add("a/link", Kind::Symlink, b"b/file").expect("short");
        archive
            .add("dev/console", Kind::CharDevice { major: 5, minor: 1 }, &[])
            .expect("short");
        archive.finish().expect("short")
    }

    #[test]
    fn header_first_entry_is_the_missing_directory() {
        let bytes = sample();
        assert_eq!(&bytes[..6], b"070701");
        assert_eq!(&bytes[110..112], b"a\0");
        assert_eq!(bytes.len() % 4, 0);
    }

    #[test]
    fn archive_listed_by_cpio_has_every_entry_once() {
        let Ok(mut child) = Command::new("cpio")
            .args(["-itv", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
        else {
            println!("skipped: no cpio program");
            return;
        };
        child
            .stdin
            .take()
            .expect("piped")
            .write_all(&sample())
            .expect("cpio reads");
        let output = child.wait_with_output().expect("cpio ends");
        let listing = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{listing}");
        let names: Vec<&str> = listing
            .lines()
            .filter_map(|line| line.split_whitespace().last())
            .collect();
        assert_eq!(
            names,
            ["a", "a/b", "a/b/file", "b/file", "dev", "dev/console"],
            "{listing}"
        );
        assert!(listing.contains("-> b/file") && listing.contains("5,"), "{listing}");
    }
}
