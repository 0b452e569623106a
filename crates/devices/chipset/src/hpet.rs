//! hpet
