//! How fast guest code is: a loop of two instructions in a 64-bit guest without devices, against the same on the host.
//!
//! The guest is in ring 0, where emulating kernels are slow. Both loops are timed by the thread's own processor time, so
//! that a busy host counts for neither.

use std::sync::Arc;
use std::time::Duration;

use guest_memory::GuestMemory;
use guest_memory::Kind;
use guest_memory::MemoryRegion;
use kvm_bindings::kvm_segment;
use kvm_ioctls::Kvm;
use kvm_ioctls::VcpuExit;
use kvm_ioctls::VcpuFd;

use crate::kick::Kicker;
use crate::memory::Slots;

/// Rounds of the loop: a millisecond of a processor of today.
const ROUNDS: u64 = 2_000_000;
/// Where an emulator is stopped.
const PATIENCE: Duration = Duration::from_millis(100);

const PAGE_TABLES: u64 = 0x1000;
const CODE: u64 = 0x4000;
/// `1: dec rcx; jnz 1b; hlt`
const LOOP: [u8; 6] = [0x48, 0xff, 0xc9, 0x75, 0xfb, 0xf4];

fn processor_time() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes to a structure that lives.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Nanoseconds for one round on the host.
fn host_round() -> f64 {
    let start = processor_time();
    let mut left = ROUNDS;
    while left > 0 {
        left = std::hint::black_box(left) - 1;
    }
    (processor_time() - start).as_nanos() as f64 / ROUNDS as f64
}

/// How many times as long as on the host a loop takes in a guest.
pub(crate) fn slowdown(kvm: &Kvm) -> Result<f64, String> {
    let text = |what: &'static str| move |error: kvm_ioctls::Error| format!("{what}: {error}");
    let mut memory = GuestMemory::new();
    let ram = MemoryRegion::new("probe", Kind::Ram, 0x10000).map_err(|error| error.to_string())?;
    memory.add(0, Arc::new(ram)).map_err(|error| error.to_string())?;
    for (at, value) in [
        (0, PAGE_TABLES + 0x1003),
        (0x1000, PAGE_TABLES + 0x2003),
        (0x2000, 0x83),
    ] {
        let at = PAGE_TABLES + at;
        memory.write_obj(at, &value).map_err(|error| error.to_string())?;
    }
    memory.write(CODE, &LOOP).map_err(|error| error.to_string())?;
    let vm = kvm.create_vm().map_err(text("no machine"))?;
    let slots = Slots::new(Arc::new(memory), kvm.get_nr_memslots());
    slots.follow(&vm).map_err(|error| error.to_string())?;
    let mut vcpu = vm.create_vcpu(0).map_err(text("no vCPU"))?;
    enter_long_mode(&vcpu).map_err(text("no long mode"))?;
    let kicker = Kicker::new(&mut vcpu);
    let (done, rest) = std::sync::mpsc::channel::<()>();
    let watch = Arc::clone(&kicker);
    let watchdog = std::thread::spawn(move || {
        // Kicks until it is heard: the thread may not have entered yet.
        while rest.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            watch.interrupt();
        }
    });
    let start = processor_time();
    let result = kicker.during(|| match vcpu.run() {
        Ok(VcpuExit::Hlt) => Ok(()),
        Ok(exit) => Err(format!("a loop ends with {exit:?}")),
        Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => Ok(()),
        Err(error) => Err(error.to_string()),
    });
    let spent = processor_time() - start;
    drop(done);
    let _ = watchdog.join();
    result?;
    let left = vcpu.get_regs().map_err(text("no registers"))?.rcx;
    let rounds = ROUNDS.saturating_sub(left).max(1);
    let guest = spent.as_nanos() as f64 / rounds as f64;
    Ok(guest / host_round().max(0.01))
}

fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let segment = |kind: u8, l: u8| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: 8,
        type_: kind,
        present: 1,
        s: 1,
        l,
        db: 1 - l,
        g: 1,
        ..kvm_segment::default()
    };
    let mut sregs = vcpu.get_sregs()?;
    (sregs.cs, sregs.ds, sregs.ss) = (segment(0xb, 1), segment(3, 0), segment(3, 0));
    (sregs.es, sregs.fs, sregs.gs) = (sregs.ds, sregs.ds, sregs.ds);
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8000_0031, PAGE_TABLES, 0x20, 0x500);
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    (regs.rip, regs.rcx, regs.rflags) = (CODE, ROUNDS, 2);
    vcpu.set_regs(&regs)
}
