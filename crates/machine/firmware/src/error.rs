//! Why a kernel cannot be booted: one line each, for the user.

use guest_memory::MemoryError;

/// Why a kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The file is nothing that any of the boot protocols knows.
    #[error("not a kernel: {0}")]
    NotKernel(&'static str),
    /// The file ends before the part that its header announces.
    #[error("the kernel file is truncated: {0}")]
    Truncated(&'static str),
    /// The file's headers contradict themselves.
    #[error("the kernel file is damaged: {0}")]
    Damaged(&'static str),
    /// The boot protocol of a Linux kernel is from before 2001.
    #[error("the kernel is too old: its boot protocol is {major}.{minor:02}, and 2.02 is needed")]
    TooOld {
        /// Major version.
        major: u8,
        /// Minor version.
        minor: u8,
    },
    /// The kernel asks for something of its loader that there is not.
    #[error("the kernel needs a multiboot feature that is not supported (header flags {0:#x})")]
    Unsupported(u32),
    /// Kernel and initrd do not fit into RAM.
    #[error("too little memory: the kernel and its initrd need {} MiB below 3 GiB, the guest has {} MiB", mib_up(*need), mib(*have))]
    TooLittleMemory {
        /// Bytes needed from address zero.
        need: u64,
        /// Bytes of RAM from address zero.
        have: u64,
    },
    /// The kernel limits the initrd's addresses more than the amount of RAM does.
    #[error("the initrd is too large for this kernel: {} MiB, and {} MiB have room", mib_up(*len), mib(*room))]
    InitrdTooLarge {
        /// Its length.
        len: u64,
        /// Bytes between the kernel's end and the kernel's limit for initrds.
        room: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("the command line is too long: {len} bytes, and the kernel takes {max}")]
    CommandLine {
        /// Its length.
        len: usize,
        /// The most that the kernel takes.
        max: usize,
    },
    /// The command line has a zero byte, which would end it.
    #[error("the command line has a zero byte in it")]
    CommandLineZero,
    /// A part of the kernel belongs to an address where there is no RAM.
    #[error("a segment of the kernel lies outside RAM: {len:#x} bytes at {start:#x}")]
    Segment {
        /// First guest physical address.
        start: u64,
        /// Length in memory.
        len: u64,
    },
    /// The kernel fills the low memory that the boot structures need.
    #[error("the kernel leaves no room below 640 KiB for its boot information")]
    NoLowMemory,
    /// Guest memory is not as its map says.
    #[error("boot data cannot be written")]
    Memory(#[from] MemoryError),
}

fn mib(bytes: u64) -> u64 {
    bytes >> 20
}

fn mib_up(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_little_memory_message_never_claims_enough() {
        let error = BootError::TooLittleMemory {
            need: (64 << 20) + 1,
            have: (65 << 20) - 1,
        };
        assert_eq!(
            error.to_string(),
            "too little memory: the kernel and its initrd need 65 MiB below 3 GiB, the guest has 64 MiB"
        );
    }
}
