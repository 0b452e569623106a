//! pc_testdev
