//! The codec of writes against anything a peer may send.
