//! Where small frames are kept while they wait: side by side in blocks.
//!
//! A device reads a frame into a buffer that may be far larger than the frame. If the gate kept
//! that buffer, it would hold many times what it counts.

use bytes::{Bytes, BytesMut};

/// Size of a block. One that is left with a single frame costs this.
const BLOCK_BYTES: usize = 64 << 10;
/// Larger frames stay where they are: their buffers are little larger than they.
const COPY_BYTES_MAX: usize = 4 << 10;

/// The block that is being filled. A full one lives until its last frame has left.
#[derive(Default)]
pub(super) struct Block(BytesMut);

impl Block {
    /// The frame in memory that it does not share with anything large.
    pub(super) fn keep(&mut self, frame: &Bytes) -> Bytes {
        if frame.len() > COPY_BYTES_MAX {
            return frame.clone();
        }
        if self.0.capacity() < frame.len() {
            self.0 = BytesMut::with_capacity(BLOCK_BYTES);
        }
        self.0.extend_from_slice(frame);
        self.0.split().freeze()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_frames_lie_side_by_side_and_large_ones_stay() {
        let mut block = Block::default();
        let frames: Vec<Bytes> = (0..2000_u32)
            .map(|number| Bytes::from(vec![number as u8; 60]))
            .collect();
        let kept: Vec<Bytes> = frames.iter().map(|frame| block.keep(frame)).collect();
        assert_eq!(kept, frames);
        let neighbours = kept
            .windows(2)
            .filter(|pair| pair[0].as_ptr().wrapping_add(60) == pair[1].as_ptr());
        let blocks = (2000_usize * 60).div_ceil(BLOCK_BYTES);
        assert!(neighbours.count() >= 2000 - 1 - blocks);
        let large = Bytes::from(vec![7; COPY_BYTES_MAX + 1]);
        assert_eq!(block.keep(&large).as_ptr(), large.as_ptr());
    }
}
