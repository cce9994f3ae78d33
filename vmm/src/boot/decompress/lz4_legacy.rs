//! LZ4's legacy frame, which `lz4 -l` writes and Linux uses (`lz4_Frame_format.md`, "Legacy frame"): a magic number,
//! then blocks of at most 8 MiB before compression, each behind its compressed size.

use std::io::{self, Read};

/// The magic number in the file's byte order.
pub(super) const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];

/// The most a block decompresses to: all blocks but the last have just this.
const BLOCK_BYTES: usize = 8 << 20;
/// The most a block may be compressed: incompressible input grows by one byte in 255, and 16.
const MAX_COMPRESSED: usize = BLOCK_BYTES + BLOCK_BYTES / 255 + 16;

/// Decompresses block by block.
pub(super) struct Reader<R> {
    input: R,
    compressed: Vec<u8>,
    block: Vec<u8>,
    /// How much of the block is valid, and how much of that was handed out.
    filled: usize,
    taken: usize,
}

impl<R: Read> Reader<R> {
    /// Reads the magic number.
    pub fn new(mut input: R) -> io::Result<Self> {
        let mut magic = [0; 4];
        input.read_exact(&mut magic)?;
        if magic != MAGIC {
            return Err(invalid(format!(
                "no LZ4 legacy frame: starts with {magic:02x?}, expected {MAGIC:02x?}"
            )));
        }
        Ok(Self {
            input,
            compressed: Vec::new(),
            block: Vec::new(),
            filled: 0,
            taken: 0,
        })
    }

    /// Decompresses the next block; `false` at the end of the input.
    fn next_block(&mut self) -> io::Result<bool> {
        let mut size = [0; 4];
        // The end of the input is the end of the frame, but a piece of a size is not.
        let first = loop {
            match self.input.read(&mut size) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => break other?,
            }
        };
        let Some(rest) = size.get_mut(first..).filter(|_| first > 0) else {
            return Ok(false);
        };
        self.input.read_exact(rest)?;
        let bytes = usize::try_from(u32::from_le_bytes(size)).unwrap_or(usize::MAX);
        if bytes == 0 || bytes > MAX_COMPRESSED {
            return Err(invalid(format!(
                "an LZ4 block of {bytes} bytes: expected 1 to {MAX_COMPRESSED}"
            )));
        }
        self.compressed.clear();
        // At once: a buffer that grows leaves its former selves behind in the heap.
        self.compressed.reserve_exact(bytes);
        let limit = u64::try_from(bytes).unwrap_or(u64::MAX);
        if self.input.by_ref().take(limit).read_to_end(&mut self.compressed)? != bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.block.resize(BLOCK_BYTES, 0);
        self.filled = lz4_flex::block::decompress_into(&self.compressed, &mut self.block)
            .map_err(|error| invalid(error.to_string()))?;
        self.taken = 0;
        Ok(true)
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.taken == self.filled {
            if buffer.is_empty() || !self.next_block()? {
                return Ok(0);
            }
        }
        let ready = self.block.get(self.taken..self.filled).unwrap_or_default();
        let count = ready.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), ready.get(..count)) {
            to.copy_from_slice(from);
        }
        self.taken += count;
        Ok(count)
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Tokens by the block format's description: literals only.
    fn literal_block(bytes: &[u8]) -> Vec<u8> {
        let mut block = vec![u8::try_from(bytes.len().min(15)).unwrap() << 4];
        if bytes.len() >= 15 {
            let mut rest = bytes.len() - 15;
            while rest >= 255 {
                block.push(255);
                rest -= 255;
            }
            block.push(u8::try_from(rest).unwrap());
        }
        block.extend(bytes);
        block
    }

    fn frame(blocks: &[&[u8]]) -> Vec<u8> {
        let mut frame = MAGIC.to_vec();
        for block in blocks {
            frame.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
            frame.extend(*block);
        }
        frame
    }

    fn decode(bytes: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        Reader::new(bytes)?.read_to_end(&mut out)?;
        Ok(out)
    }

    #[test]
    fn blocks_are_concatenated() {
        let (first, second) = (literal_block(b"hello, "), literal_block(&[b'x'; 300]));
        let out = decode(&frame(&[&first, &second])).unwrap();
        assert_eq!(out, [&b"hello, "[..], &[b'x'; 300]].concat());
    }

    #[test]
    fn frame_cut_within_a_block_or_a_size_is_refused() {
        let whole = frame(&[&literal_block(b"hello")]);
        for end in 5..whole.len() {
            assert!(decode(&whole[..end]).is_err(), "cut at {end}");
        }
        assert_eq!(decode(&whole[..4]).unwrap(), b"");
    }

    #[test]
    fn huge_block_size_is_refused() {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(u32::MAX.to_le_bytes());
        assert!(decode(&bytes).unwrap_err().to_string().contains("4294967295"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_bytes_end_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&frame(&[&bytes]));
        }
    }
}
