//! The far side: real sockets, no mocks.

pub mod far;
