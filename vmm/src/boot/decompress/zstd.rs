//! A Zstandard frame (RFC 8878), with its checksum compared at the end: the decoder computes it but leaves that to its
//! user.

use super::MAX_WINDOW;
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
use std::io::{self, Read};

/// Decompresses one frame.
pub(super) struct Reader<R> {
    decoder: FrameDecoder,
    input: R,
}

impl<R: Read> Reader<R> {
    /// Reads the frame's header.
    pub fn new(mut input: R) -> io::Result<Self> {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(u64::from(MAX_WINDOW));
        decoder.init(&mut input).map_err(io::Error::other)?;
        Ok(Self { decoder, input })
    }

    fn compare_checksums(&self) -> io::Result<()> {
        match (
            self.decoder.get_checksum_from_data(),
            self.decoder.get_calculated_checksum(),
        ) {
            (Some(stored), Some(computed)) if stored != computed => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("the contents' checksum is {computed:#010x}, but {stored:#010x} is stored"),
            )),
            _ => Ok(()),
        }
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.decoder.can_collect() == 0 {
            if self.decoder.is_finished() {
                self.compare_checksums()?;
                return Ok(0);
            }
            self.decoder
                .decode_blocks(&mut self.input, BlockDecodingStrategy::UptoBlocks(1))
                .map_err(io::Error::other)?;
        }
        self.decoder.read(buffer)
    }
}
