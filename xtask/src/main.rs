//! Everything one does to this repository besides editing it: `cargo xtask <command>`.
//!
//! Uses cargo, the tools of a Debian system and nothing that has to be installed first.
#![forbid(unsafe_code)]

mod arguments;
mod bench;
mod boot;
mod cpio;
mod demo;
mod guests;
mod iperf;
mod layers;
mod powercuts;
mod process;
mod size;
mod source;
mod test;
mod workspace;

use std::process::ExitCode;

use arguments::Arguments;

const USAGE: &str = "\
Usage: cargo xtask <command> [options]

  demo                  boot a stock Debian kernel to a shell; with no terminal, run `uname -a` in it and report
      --cpus N          processors of the guest
  test                  all that has to hold before a change is merged
      --no-guests       leave out the boots of whole guests
      --guests [NAME..] only the boots of guests whose test names contain one of these
  ci                    the same as `test`
  guests [NAME..]       fetch and build the guests: demo, full, i386 (default: these), system
      --update          ask the archive for newer packages first
      --list            say what there is and where it lies
  bench                 time real programs in a guest, on one machine beside the other
      --guest DIR       the guest (default: target/guests/bench, built when it is missing)
      --only A,B        these benchmarks
      -n ROUNDS         rounds; the figures are medians
      --machine NAME=COMMAND
                        a machine with {kernel}, {initrd}, {append}; may be repeated. `native=` is a chroot.
                        (default: native where we are root, qemu-tcg where QEMU is installed, and oxbow)
      --timeout SECONDS per machine and round (default 3600)
      --json FILE       where the figures are written too (default: target/bench.json)
      --markdown FILE   the same as a Markdown table (default: target/bench.md)
  bench io              disks and networks of a guest under QEMU's TCG and here: fio, iperf3, boots; as root
      --only A,B        these groups: disk, nat-virtio, nat-e1000, pair-virtio, pair-e1000, boot-virtio, boot-ide
      -n, --json, --markdown  as above
      --seconds N       how long each line lasts (default 5)
  powercuts             kill machines whose guests write to disks, and check what the images hold
      -n COUNT          how often (default 200)
      --guest GUEST     bare (default), a small program, or linux, which runs fio
  layers                check which crate uses which, and which may hold unsafe code
  size                  check the length of files and functions
  bless                 accept what the golden tests see now";

fn main() -> ExitCode {
    let mut arguments = Arguments::new(std::env::args().skip(1));
    let Some(command) = arguments.word() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let result = match command.as_str() {
        "demo" => demo::main(arguments),
        // What tests start in namespaces of theirs.
        "network-server" => test::network_server(),
        "test" | "ci" => test::main(arguments),
        "guests" => guests::main(arguments),
        "bench" => bench::main(arguments),
        "powercuts" => powercuts::main(arguments),
        "layers" => layers::main(arguments),
        "size" => size::main(arguments),
        "bless" => test::bless(arguments),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(())
        }
        other => Err(arguments::Usage(format!("there is no command {other}")).into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            if error.is::<arguments::Usage>() {
                eprintln!("`cargo xtask help` lists the commands");
                return ExitCode::from(2);
            }
            ExitCode::FAILURE
        }
    }
}
