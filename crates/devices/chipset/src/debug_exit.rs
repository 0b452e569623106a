//! debug_exit
