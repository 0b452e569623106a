//! Guests of a few bytes: multiboot images with hand-assembled 32-bit code.

use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

use tempfile::TempDir;

/// Where the image is loaded.
const BASE: u32 = 0x10_0000;
/// A multiboot header, and eight zero bytes that [`TRIPLE_FAULT`] loads as its IDTR.
const HEADER_LEN: u32 = 0x28;

/// mov dx, 604h; mov ax, 3400h; out dx, ax; then HLT for good.
pub(crate) const POWER_OFF: &[u8] = b"\x66\xba\x04\x06\x66\xb8\x00\x34\x66\xef\xf4\xeb\xfd";
/// cli; hlt; jmp to the hlt.
pub(crate) const IDLE: &[u8] = b"\xfa\xf4\xeb\xfd";
/// lidt of eight zero bytes; ud2.
pub(crate) const TRIPLE_FAULT: &[u8] = b"\x0f\x01\x1d\x20\x00\x10\x00\x0f\x0b";
/// mov dx, CF9h; mov al, 6; out dx, al; then HLT for good.
pub(crate) const RESET: &[u8] = b"\x66\xba\xf9\x0c\xb0\x06\xee\xf4\xeb\xfd";
/// Writes `x` to the serial port for ever.
pub(crate) const FLOOD: &[u8] = b"\x66\xba\xf8\x03\xb0x\xee\xeb\xfd";
/// Sends back what the serial port receives, up to and including a `q`.
pub(crate) const ECHO: &[u8] = b"\x66\xba\xfd\x03\xec\xa8\x01\x74\xf7\x66\xba\xf8\x03\xec\xee\x3cq\x75\xed";

/// mov eax, value; mov dx, F4h; out dx, eax; then HLT for good.
pub(crate) fn debug_exit(value: u8) -> Vec<u8> {
    let mut code = vec![0xb8, value, 0, 0, 0];
    code.extend(b"\x66\xba\xf4\x00\xef\xf4\xeb\xfd");
    code
}

/// For each byte: mov dx, 3F8h; mov al, byte; out dx, al.
pub(crate) fn print(text: &str) -> Vec<u8> {
    text.bytes()
        .flat_map(|byte| [0x66, 0xba, 0xf8, 0x03, 0xb0, byte, 0xee])
        .collect()
}

/// A guest's image in a directory of its own.
pub(crate) struct Guest {
    pub(crate) dir: TempDir,
}

impl Guest {
    pub(crate) fn new(parts: &[&[u8]]) -> Self {
        let (magic, flags) = (0x1bad_b002_u32, 0x1_0000_u32);
        let checksum = 0_u32.wrapping_sub(magic.wrapping_add(flags));
        let header = [magic, flags, checksum, BASE, BASE, 0, 0, BASE + HEADER_LEN, 0, 0];
        let mut image: Vec<u8> = header.into_iter().flat_map(u32::to_le_bytes).collect();
        image.extend(parts.concat());
        let dir = TempDir::new().unwrap();
        std::fs::write(dir.path().join("kernel"), image).unwrap();
        Self { dir }
    }

    pub(crate) fn kernel(&self) -> PathBuf {
        self.dir.path().join("kernel")
    }

    /// `oxbow run` of this guest.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = oxbow(&["run", "--memory", "16M", "--kernel"]);
        command.arg(self.kernel()).args(args);
        command
    }

    /// Runs it to its end with nothing to read.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).stdin(Stdio::null()).output().unwrap()
    }
}

/// The program, in a place where no demo guest is.
pub(crate) fn oxbow(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oxbow"));
    command
        .args(args)
        .env("OXBOW_CACHE", "/nonexistent")
        .env_remove("OXBOW_LOG");
    command
}

/// Asserts an exit status and what was printed to standard error, which is a line or nothing.
#[track_caller]
pub(crate) fn check(output: &Output, status: i32, message: &str) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert!(stderr.lines().count() <= 1, "{stderr}");
    if message.is_empty() {
        assert_eq!(stderr, "");
    } else {
        assert!(stderr.starts_with("oxbow: ") && stderr.contains(message), "{stderr}");
    }
}
