//! Digests by which two images are compared: BLAKE3 with a key that the primary draws for each session.
//!
//! A guest chooses what is on its disks. With a checksum that it could compute, it could write two contents that
//! look equal, and have its standby keep the wrong one. It never learns the key. What must not be done here:
//! using a digest without a key.

use std::io;

use super::image::Storage;
use crate::core::disk::{DIGEST_BYTES, Digest, PairId};

/// As much as this is read at once.
const PIECE_BYTES: u64 = 256 << 10;

/// The key of one disk in one session.
#[derive(Clone)]
pub(crate) struct DigestKey([u8; 32]);

impl DigestKey {
    /// The key that belongs to the pair which a synchronisation makes. Both sides know its id, which is drawn at
    /// random; the guest does not.
    pub(super) fn of(candidate: PairId) -> Self {
        let id = candidate.0.to_le_bytes();
        Self(blake3::derive_key(
            "understudy: comparison of two images",
            &id,
        ))
    }

    pub(super) fn digest(&self, data: &[u8]) -> Digest {
        let mut digest = [0; DIGEST_BYTES];
        digest.copy_from_slice(&blake3::keyed_hash(&self.0, data).as_bytes()[..DIGEST_BYTES]);
        digest
    }

    /// Whether the image has something else there than what has this digest. What cannot be read differs.
    pub(super) fn differs(
        &self,
        image: &dyn Storage,
        offset: u64,
        bytes: u64,
        digest: &Digest,
    ) -> bool {
        match self.read(image, offset, bytes) {
            Ok(found) => found != *digest,
            Err(error) => {
                tracing::warn!(%error, "cannot read {bytes} bytes at byte {offset} of an image");
                true
            }
        }
    }

    /// The digest of what the host's storage has there, if possible not of what is in the host's memory.
    fn read(&self, image: &dyn Storage, offset: u64, bytes: u64) -> io::Result<Digest> {
        image.forget_cached(offset, bytes);
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        let mut piece = vec![0; bytes.min(PIECE_BYTES) as usize];
        for at in (0..bytes).step_by(PIECE_BYTES as usize) {
            let piece = &mut piece[..(bytes - at).min(PIECE_BYTES) as usize];
            image.read_at(offset + at, piece)?;
            hasher.update(piece);
        }
        let mut digest = [0; DIGEST_BYTES];
        digest.copy_from_slice(&hasher.finalize().as_bytes()[..DIGEST_BYTES]);
        Ok(digest)
    }
}
