//! Decoders of content encodings: encoded bytes in, decoded bytes to a sink, nothing kept but the
//! format's own window.

use std::fmt::{self, Debug, Formatter};

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::{Decompress, FlushDecompress, Status};
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, Operation};

use super::ScanRefusal;

/// Takes decoded bytes; an error ends the decoding.
pub(super) type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), ScanRefusal>;

/// So many encoded bytes are decoded at once: the grain of what can be released.
const GRAIN: usize = 1 << 10;

/// So many decoded bytes are given to the sink at once.
const BUFFER: usize = 16 << 10;

/// The largest window that a `zstd` body may ask for, as RFC 9659 has it: 8 MiB.
const ZSTD_WINDOW_LOG: u32 = 23;

/// The shortest beginning of a `zstd` frame that says how it goes on.
const ZSTD_START: usize = 5;

/// The most members of a `gzip` body: each costs a new decoder.
const MAX_MEMBERS: usize = 1024;

/// The decoder of one body.
pub(super) struct Codec {
    format: Format,
    buffer: Box<[u8]>,
    phase: Phase,
}

enum Format {
    Brotli(Box<BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>>),
    /// zlib or bare deflate, told apart by their first two bytes, which are kept here.
    Deflate(Option<u8>),
    Flate(Decompress),
    Gzip(Decompress, usize),
    Zstd {
        decoder: ZstdDecoder<'static>,
        /// How many more bytes complete the block at hand.
        wanted: usize,
        /// Whether the block at hand has begun to arrive.
        is_partial: bool,
    },
}

/// Where in its format the body stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Phase {
    /// Before the first byte.
    Fresh,
    /// In the middle.
    Inside,
    /// At an end; some formats may begin anew.
    Ended,
}

impl Codec {
    pub(super) fn brotli() -> Self {
        let alloc = StandardAlloc::default;
        let state = BrotliState::new_strict(alloc(), alloc(), alloc());
        Self::new(Format::Brotli(Box::new(state)))
    }

    pub(super) fn deflate() -> Self {
        Self::new(Format::Deflate(None))
    }

    pub(super) fn gzip() -> Self {
        Self::new(Format::Gzip(gzip_member(), 1))
    }

    /// Returns `None` if the library refuses to make a decoder.
    pub(super) fn zstd() -> Option<Self> {
        let mut decoder = ZstdDecoder::new().ok()?;
        decoder
            .set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG))
            .ok()?;
        Some(Self::new(Format::Zstd {
            decoder,
            wanted: ZSTD_START,
            is_partial: false,
        }))
    }

    fn new(format: Format) -> Self {
        Self {
            format,
            buffer: vec![0; BUFFER].into(),
            phase: Phase::Fresh,
        }
    }

    /// Takes some of the bytes (at least one, if there are any), gives everything that can be told
    /// from all taken so far, returns how many were taken.
    pub(super) fn decode(&mut self, bytes: &[u8], sink: Sink<'_>) -> Result<usize, ScanRefusal> {
        let Some(first) = bytes.first() else {
            return Ok(0);
        };
        let grain = &bytes[..bytes.len().min(GRAIN)];
        let buffer = &mut self.buffer;
        if self.phase == Phase::Ended {
            match &mut self.format {
                Format::Gzip(_, members) if *members >= MAX_MEMBERS => {
                    return Err(ScanRefusal::Bomb);
                }
                Format::Gzip(inflate, members) => {
                    *inflate = gzip_member();
                    *members += 1;
                }
                Format::Zstd { .. } => {}
                Format::Brotli(_) | Format::Deflate(_) | Format::Flate(_) => {
                    return Err(ScanRefusal::Undecodable);
                }
            }
        }
        self.phase = Phase::Inside;
        let (taken, has_ended) = match &mut self.format {
            Format::Brotli(state) => brotli(state, grain, buffer, sink)?,
            Format::Deflate(None) => {
                self.format = Format::Deflate(Some(*first));
                (1, false)
            }
            Format::Deflate(Some(head)) => {
                let head = [*head, *first];
                let mut inflate = Decompress::new(is_zlib(head));
                let (_, has_ended) = flate(&mut inflate, &head, buffer, sink)?;
                self.format = Format::Flate(inflate);
                (1, has_ended)
            }
            Format::Flate(inflate) | Format::Gzip(inflate, _) => {
                flate(inflate, grain, buffer, sink)?
            }
            Format::Zstd {
                decoder,
                wanted,
                is_partial,
            } => {
                let due = &bytes[..bytes.len().min(*wanted)];
                let hint = zstd(decoder, due, buffer, sink)?;
                *wanted -= due.len();
                *is_partial = *wanted > 0;
                if !*is_partial {
                    *wanted = if hint == 0 { ZSTD_START } else { hint };
                }
                (due.len(), hint == 0)
            }
        };
        if has_ended {
            self.phase = Phase::Ended;
        }
        Ok(taken)
    }

    /// Says whether everything that the bytes taken so far can tell has been given to the sink.
    pub(super) fn is_settled(&self) -> bool {
        match &self.format {
            Format::Brotli(_) | Format::Flate(_) | Format::Gzip(..) => true,
            Format::Deflate(first) => first.is_none(),
            Format::Zstd { is_partial, .. } => !is_partial,
        }
    }

    /// Says whether the body may end here.
    pub(super) fn may_end(&self) -> bool {
        self.phase != Phase::Inside
    }
}

impl Debug for Codec {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let name = match &self.format {
            Format::Brotli(_) => "br",
            Format::Deflate(_) | Format::Flate(_) => "deflate",
            Format::Gzip(..) => "gzip",
            Format::Zstd { .. } => "zstd",
        };
        write!(f, "Codec({name}, {:?})", self.phase)
    }
}

fn gzip_member() -> Decompress {
    Decompress::new_gzip(15)
}

/// Says whether two bytes begin a zlib stream: method 8, a legal window, a sum divisible by 31.
fn is_zlib(head: [u8; 2]) -> bool {
    head[0] & 0x0f == 8 && head[0] >> 4 <= 7 && u16::from_be_bytes(head).is_multiple_of(31)
}

fn flate(
    inflate: &mut Decompress,
    input: &[u8],
    buffer: &mut [u8],
    sink: Sink<'_>,
) -> Result<(usize, bool), ScanRefusal> {
    let mut taken = 0;
    loop {
        let (read, written) = (inflate.total_in(), inflate.total_out());
        let status = inflate
            .decompress(&input[taken..], buffer, FlushDecompress::None)
            .map_err(|_| ScanRefusal::Undecodable)?;
        let read = count(inflate.total_in() - read);
        let written = count(inflate.total_out() - written);
        taken += read;
        sink(&buffer[..written])?;
        match status {
            Status::StreamEnd => return Ok((taken, true)),
            Status::Ok | Status::BufError if written == buffer.len() => {}
            Status::Ok | Status::BufError if taken == input.len() => return Ok((taken, false)),
            Status::Ok | Status::BufError if read == 0 => return Err(ScanRefusal::Undecodable),
            Status::Ok | Status::BufError => {}
        }
    }
}

fn brotli(
    state: &mut BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    input: &[u8],
    buffer: &mut [u8],
    sink: Sink<'_>,
) -> Result<(usize, bool), ScanRefusal> {
    let (mut left, mut taken) = (input.len(), 0);
    loop {
        let (mut space, mut written, mut total) = (buffer.len(), 0, 0);
        let result = BrotliDecompressStream(
            &mut left,
            &mut taken,
            input,
            &mut space,
            &mut written,
            buffer,
            &mut total,
            state,
        );
        sink(&buffer[..written])?;
        match result {
            BrotliResult::NeedsMoreInput => return Ok((taken, false)),
            BrotliResult::NeedsMoreOutput => {}
            BrotliResult::ResultFailure => return Err(ScanRefusal::Undecodable),
            BrotliResult::ResultSuccess => return Ok((taken, true)),
        }
    }
}

/// Gives all of the input to the decoder; returns how much it wants next, zero at a frame's end.
fn zstd(
    decoder: &mut ZstdDecoder<'static>,
    input: &[u8],
    buffer: &mut [u8],
    sink: Sink<'_>,
) -> Result<usize, ScanRefusal> {
    let mut taken = 0;
    loop {
        let status = decoder
            .run_on_buffers(&input[taken..], buffer)
            .map_err(|_| ScanRefusal::Undecodable)?;
        taken += status.bytes_read;
        sink(&buffer[..status.bytes_written])?;
        let is_full = status.bytes_written == buffer.len();
        // After the end of a frame, one more run would begin another.
        if taken == input.len() && (!is_full || status.remaining == 0) {
            return Ok(status.remaining);
        }
        if !is_full && status.bytes_read == 0 && status.bytes_written == 0 {
            return Err(ScanRefusal::Undecodable);
        }
    }
}

fn count(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
