//! reset_control
