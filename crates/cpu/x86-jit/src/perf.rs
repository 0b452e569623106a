//! What `perf` reads to put names to code made at run time: `/tmp/perf-PID.map` (Linux, tools/perf/Documentation/
//! jit-interface.txt). Written when `OXBOW_PERF_MAP` is set: the guest address of every block, and its privilege level.

use std::fs::File;
use std::io::LineWriter;
use std::io::Write;

/// The map, if one is wanted.
pub(crate) struct PerfMap(Option<LineWriter<File>>);

impl PerfMap {
    /// Nothing is written without the variable, or where the file cannot be made.
    pub(crate) fn new() -> Self {
        let wanted = std::env::var_os("OXBOW_PERF_MAP").is_some();
        let path = format!("/tmp/perf-{}.map", std::process::id());
        Self(
            wanted
                .then(|| File::create_new(path).ok())
                .flatten()
                .map(LineWriter::new),
        )
    }

    /// Code of `len` bytes at `host`, translated from the guest's at `rip`.
    pub(crate) fn add(&mut self, host: u64, len: usize, rip: u64, cpl: u8) {
        if let Some(file) = &mut self.0
            && writeln!(file, "{host:x} {len:x} guest{cpl}:{rip:x}").is_err()
        {
            self.0 = None;
        }
    }
}
