//! The far side and a sealock of the test's own: real sockets, no mocks.

pub mod far;
pub mod site;
pub mod tls;
