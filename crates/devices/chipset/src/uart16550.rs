//! uart16550
