//! Compressed blocks.
//!
//! A block's compressed bytes come from an image, so neither their number nor what they unpack to is believed: both are
//! bounded by the block size.

use std::io::Read;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;

use flate2::Compress;
use flate2::Compression;
use flate2::Decompress;
use flate2::FlushCompress;
use flate2::FlushDecompress;
use flate2::Status;

use crate::Result;
use crate::store::File;

/// How blocks are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Codec {
    /// RFC 1951, without a header. The end of the input may be padded.
    Deflate,
    /// RFC 1950.
    Zlib,
    /// RFC 8878.
    Zstd,
}

/// Where the compressed bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packed {
    /// Offset in the file.
    pub(crate) at: u64,
    /// Bytes at most; what is behind the end of the stream is padding.
    pub(crate) len: u64,
}

/// The block that was unpacked last: small reads in sequence unpack it once.
#[derive(Debug, Default)]
pub(crate) struct Cache(Mutex<Option<(Packed, Arc<[u8]>)>>);

impl Cache {
    /// The block of `size` bytes, of which the disk has the first `least`: the last block may end there.
    pub(crate) fn get(&self, file: &File, codec: Codec, packed: Packed, size: u64, least: u64) -> Result<Arc<[u8]>> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, block)) = last.filter(|(last, _)| *last == packed) {
            return Ok(block);
        }
        let bad = || file.corrupt(format!("the compressed block at {:#x} cannot be unpacked", packed.at));
        let size = usize::try_from(size).map_err(|_| bad())?;
        let len = usize::try_from(packed.len).ok().filter(|&len| len <= 2 * size + 65536);
        let mut input = vec![0; len.ok_or_else(bad)?];
        file.read_padded(packed.at, &mut input)?;
        let block: Arc<[u8]> = unpack(codec, &input, size, least).ok_or_else(bad)?.into();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((packed, Arc::clone(&block)));
        Ok(block)
    }

    /// The space of compressed blocks got another content.
    pub(crate) fn clear(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// `size` bytes out of `input`, or at least `least` of them and zeros behind; none otherwise.
pub(crate) fn unpack(codec: Codec, input: &[u8], size: usize, least: u64) -> Option<Vec<u8>> {
    let mut out = vec![0; size];
    match codec {
        Codec::Deflate | Codec::Zlib => {
            let mut inflate = Decompress::new(codec == Codec::Zlib);
            let status = inflate.decompress(input, &mut out, FlushDecompress::Finish);
            // The end of a stream that fills the block exactly may not have been seen.
            let ended = matches!(status, Ok(Status::StreamEnd | Status::BufError | Status::Ok));
            (ended && inflate.total_out() >= least).then_some(out)
        }
        Codec::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input).ok()?.single_frame();
            // 8 MiB: what a frame may ask for as its window.
            decoder.window_log_max(23).ok()?;
            decoder.read_exact(&mut out).ok()?;
            Some(out)
        }
    }
}

/// The compressed form, when it is smaller than the block.
#[cfg(test)]
fn pack(codec: Codec, block: &[u8]) -> Option<Vec<u8>> {
    pack_with(codec, &mut zstd_compressor(codec), block)
}

/// Zstandard's state, which is too large to be made anew for each block.
fn zstd_compressor(codec: Codec) -> Option<zstd::bulk::Compressor<'static>> {
    (codec == Codec::Zstd).then(|| zstd::bulk::Compressor::new(3).ok())?
}

fn pack_with(codec: Codec, zstd: &mut Option<zstd::bulk::Compressor<'_>>, block: &[u8]) -> Option<Vec<u8>> {
    match codec {
        Codec::Deflate | Codec::Zlib => {
            // qcow2 §"Compressed Clusters": the window is of 4 KiB, so that readers need little memory.
            let mut deflate = match codec {
                Codec::Deflate => Compress::new_with_window_bits(Compression::default(), false, 12),
                _ => Compress::new(Compression::default(), true),
            };
            let mut out = vec![0; block.len()];
            let status = deflate.compress(block, &mut out, FlushCompress::Finish).ok()?;
            let len = usize::try_from(deflate.total_out()).ok()?;
            out.truncate(len);
            (status == Status::StreamEnd && len < block.len()).then_some(out)
        }
        Codec::Zstd => zstd
            .as_mut()?
            .compress(block)
            .ok()
            .filter(|out| out.len() < block.len()),
    }
}

/// The compressed forms of blocks, by as many threads as there are processors.
pub(crate) fn pack_all(codec: Codec, blocks: &[&[u8]]) -> Vec<Option<Vec<u8>>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = blocks.len().div_ceil(threads).max(1);
    let pack_each = |blocks: &[&[u8]]| {
        let mut zstd = zstd_compressor(codec);
        blocks
            .iter()
            .map(|block| pack_with(codec, &mut zstd, block))
            .collect::<Vec<_>>()
    };
    let mut shares = blocks.chunks(share);
    let Some(first) = shares.next() else { return Vec::new() };
    std::thread::scope(|scope| {
        let others: Vec<_> = shares
            .map(|share| (share, scope.spawn(move || pack_each(share))))
            .collect();
        let mut packed = pack_each(first);
        for (share, thread) in others {
            // A block that cannot be packed stays as it is.
            packed.extend(thread.join().unwrap_or_else(|_| vec![None; share.len()]));
        }
        packed
    })
}

/// The form of RFC 1950 without compression, for what does not become smaller.
pub(crate) fn store(block: &[u8]) -> Option<Vec<u8>> {
    let mut out = vec![0; block.len() + block.len() / 8 + 64];
    let mut deflate = Compress::new(Compression::none(), true);
    let status = deflate.compress(block, &mut out, FlushCompress::Finish).ok()?;
    out.truncate(usize::try_from(deflate.total_out()).ok()?);
    (status == Status::StreamEnd).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_and_padding_is_ignored() {
        let block: Vec<u8> = (0..65536u32).map(|i| (i / 7 % 251) as u8).collect();
        for codec in [Codec::Deflate, Codec::Zlib, Codec::Zstd] {
            let mut packed = pack(codec, &block).unwrap();
            packed.extend([0; 100]);
            assert_eq!(
                unpack(codec, &packed, block.len(), 65536).as_deref(),
                Some(&block[..]),
                "{codec:?}"
            );
        }
    }

    #[test]
    fn what_unpacks_to_another_size_is_refused() {
        let block = vec![5; 4096];
        for codec in [Codec::Deflate, Codec::Zlib, Codec::Zstd] {
            let packed = pack(codec, &block).unwrap();
            assert!(unpack(codec, &packed, 8192, 8192).is_none(), "{codec:?}");
            assert!(
                unpack(codec, &packed[..packed.len() / 2], 4096, 4096).is_none(),
                "{codec:?}"
            );
            assert!(unpack(codec, &[0xff; 64], 4096, 4096).is_none(), "{codec:?}");
        }
    }
}
